"""What a difference says, in words that claim no more than its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from dppmask_jax.comparing.outcomes import Measure
from dppmask_jax.comparing.statistics import LEVEL, Difference

DAGGER = " †"
# What a difference is that is told from none.
TOLD = ("better", "worse", "higher", "lower")


def kind(difference: Difference, measure: Measure) -> str:
    """One of `TOLD`, of which a measure without a better end has the last two, where the adjusted p
    is below the level; "none" where it is not; "one seed" and "no spread" where nothing is tested.
    """
    if len(difference.seeds) < 2:
        return "one seed"
    if difference.adjusted is None:
        return "no spread"
    if difference.adjusted >= LEVEL:
        return "none"
    end = "higher" if difference.mean > 0 else "lower"
    if measure.better is None:
        return end
    return "better" if end == measure.better else "worse"


def verdict(difference: Difference, measure: Measure) -> str:
    """Such as "better", "no difference larger than 1.64 points", which is the larger end of the
    interval, or "one seed alone, no verdict"."""
    found = kind(difference, measure)
    if found == "none":
        return f"no difference larger than {with_unit(size(largest(difference), measure), measure)}"
    if found == "one seed":
        return "one seed alone, no verdict"
    if found == "no spread":
        return "the same in all seeds, no verdict"
    return found


def largest(difference: Difference) -> float:
    """The larger end of the interval, without its sign."""
    return max(map(abs, difference.over_both))


def size(value: float, measure: Measure) -> str:
    """A difference as shown, without its sign."""
    return f"{abs(value) * _factor(measure):.{measure.digits}f}"


def signed(value: float, measure: Measure) -> str:
    """A difference as shown, such as "+0.42" and "−1.30"; "0.00" has no sign."""
    text = f"{value * _factor(measure):+.{measure.digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def level(value: float, measure: Measure) -> str:
    """A score as shown."""
    return f"{value * _factor(measure):.{measure.digits}f}".replace("-", "−")


def with_unit(shown: str, measure: Measure) -> str:
    """A shown difference with what it counts."""
    return f"{shown} points" if measure.in_percent else shown


def chance(p: float) -> str:
    """Such as "0.031"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _factor(measure: Measure) -> float:
    return 100.0 if measure.in_percent else 1.0


def dagger(found: Mapping[tuple[str, str, str], Difference], method: str, evaluation: str) -> str:
    """The mark of a column with intervals that are over seeds alone, else "".

    Args:
      found: {(method, evaluation, masker): difference}.
    """
    column = (one for key, one in found.items() if key[:2] == (method, evaluation))
    return DAGGER if any(one.images is None for one in column) else ""
