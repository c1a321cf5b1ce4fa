"""The forest plot of a study."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from dppmask_jax.comparing import describing, verdicts
from dppmask_jax.comparing.describing import Description
from dppmask_jax.comparing.outcomes import Measure, Outcome
from dppmask_jax.comparing.statistics import Difference, differences
from dppmask_jax.figures.forest import Panel, Row, draw_forest

_INTERVALS = {
    "thick": "95 % over seeds and images",
    "thin": "95 % over seeds",
    "dotted": "one seed: 95 % over images",
}


def draw(description: Description, outcomes: Sequence[Outcome]) -> Figure:
    """A panel for each method and evaluation, a row for each masker but the base; those without a
    number are empty.

    Raises:
      ValueError: nothing can be compared yet, or as `page.page` says.
    """
    describing.check(description, outcomes)
    found = {
        (one.method, one.evaluation, one.masker): one
        for one in differences(outcomes, description.base)
    }
    panels = []
    for method, label in description.methods.items():
        for name, measure in description.measures.items():
            if any(key[:2] == (method, name) for key in found):
                title = measure.words + verdicts.dagger(found, method, name)
                if len(description.methods) > 1:
                    title = f"{label}: {title}"
                rows = [
                    _row(words, found.get((method, name, masker)), measure)
                    for masker, words in description.maskers.items()
                    if masker != description.base
                ]
                panels.append(Panel(title, rows, _unit(measure)))
    base = description.maskers[description.base]
    note = f"Differences to {base}, paired by seed."
    if any(panel.title.endswith(verdicts.DAGGER) for panel in panels):
        note += " †: over seeds alone."
    return draw_forest(panels, _INTERVALS, note)


def _row(label: str, one: Difference | None, measure: Measure) -> Row:
    if one is None:
        return Row(label)
    factor = 100 if measure.in_percent else 1
    kind = verdicts.kind(one, measure)

    def scaled(ends):
        return None if ends is None else (factor * ends[0], factor * ends[1])

    return Row(
        label,
        factor * one.mean,
        scaled(one.over_both),
        scaled(one.over_seeds),
        scaled(one.over_images) if len(one.seeds) == 1 else None,
        kind if kind in verdicts.TOLD else "",
    )


def _unit(measure: Measure) -> str:
    unit = "points" if measure.in_percent else "difference"
    ends = {"higher": "right is better", "lower": "left is better", None: "neither end is better"}
    return f"{unit} ({ends[measure.better]})"
