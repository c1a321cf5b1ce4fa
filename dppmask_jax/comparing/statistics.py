"""Differences between maskers, paired by seed, with intervals, Holm's correction and power.

A difference d[s, i] is that of seed s on image i. Seeds and images are both samples: another
training would have other weights, another validation split other images, and some images are
changed by some trainings alone. So d[s, i] = mean + seed[s] + image[i] + rest[s, i], as readers and
cases are crossed in studies of diagnostic imaging (Obuchowski and Rockette 1995). The variance of
the mean is the sum of two, one known from few seeds, the other from many images, and its interval
is Howe's (JASA 69, 1974, p. 789): the reaches of both, each with its own t, are added as squares.
One t with Satterthwaite's degrees of freedom errs at three seeds up to six times as often as it
says where Holm's correction makes the level small; Howe's interval does not, and is a little too
wide where seeds and images count alike.

Three seeds know their own spread badly, but all maskers of a study together know it better: the
error over seeds is the larger of a difference's own and of their mean, see `pooled`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from dppmask_jax.comparing.outcomes import Outcome, check, named

LEVEL = 0.05  # a difference whose adjusted p is below is told from none
POWER = 0.8  # share of studies that would find a difference of the size `detectable`
_RESAMPLES = 4999
_SLICE = 2_000_000  # images of resamples that are held at once
_QUANTILES, _SIDE = 2000, 50  # of one distribution, and of each of two
_LEAST_LOG_LEVEL = -600.0  # of a p value: below, quantiles of t are not known
_SAME = 1e-9  # numbers that differ by less, relative to their size, differ by rounding


class Difference(NamedTuple):
    """A masker less the base, of one method under one evaluation.

    Attributes:
      method, evaluation, masker, base: their names.
      seeds: that both have, S of them, ascending.
      images: M, or None where no score of an image is known, or not for the same number.
      mean: over the seeds.
      over_seeds: 95 % interval of t, paired by seed: images are those at hand. Of a study with one
        masker beside the base it is that of the paired t-test. None for one seed.
      over_images: 95 % interval of a cluster bootstrap, in which an image is drawn with all of its
        seeds: trainings are those at hand. None without images.
      over_both: 95 % interval over both, or over seeds alone without images. None for one seed, and
        where no seed differs from another.
      p: of no difference, two-sided, the level at which `over_both` ends at 0; None where that is.
      adjusted: p after Holm's correction over the maskers of a method and evaluation.
      detectable: the smallest true difference that 80 % of studies with these standard errors
        would find at the first level of Holm's correction. None where p is.
    """

    method: str
    evaluation: str
    masker: str
    base: str
    seeds: tuple[int, ...]
    images: int | None
    mean: float
    over_images: tuple[float, float] | None
    over_seeds: tuple[float, float] | None = None
    over_both: tuple[float, float] | None = None
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None


class Estimate(NamedTuple):
    """A mean and the two parts of its standard error; numbers or arrays alike.

    Attributes:
      mean: over S seeds and M images.
      of_seeds: its error if the images are those at hand.
      of_images: what other images would add, of M - 1 degrees of freedom; 0 where they are not
        known.
      freedom: degrees of freedom of `of_seeds`.
      seeds, images: S and M.
    """

    mean: np.ndarray
    of_seeds: np.ndarray
    of_images: np.ndarray
    freedom: np.ndarray
    seeds: int
    images: float = math.inf


def differences(outcomes: Iterable[Outcome], base: str = "random") -> list[Difference]:
    """All differences to `base`, by method, evaluation and masker; any order of outcomes gives the
    same. A masker without a seed in common with the base has none.

    Raises:
      ValueError: a run is there twice, a value is not finite, or is not the mean of its images.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, Outcome]]] = {}
    for outcome in outcomes:
        check(outcome)
        of_masker = groups.setdefault((outcome.method, outcome.evaluation), {})
        of_seed = of_masker.setdefault(outcome.masker, {})
        if outcome.seed in of_seed:
            raise ValueError(f"{named(outcome)} is there twice")
        of_seed[outcome.seed] = outcome
    found = []
    for (method, evaluation), of_masker in sorted(groups.items()):
        pairs = {
            masker: _pairs(of_seed, of_masker.get(base, {}))
            for masker, of_seed in sorted(of_masker.items())
            if masker != base
        }
        found += _tested(
            [
                _difference((method, evaluation, masker, base), pair)
                for masker, pair in pairs.items()
                if pair
            ]
        )
    return found


def crossed(table: np.ndarray) -> Estimate:
    """The mean of a table of seeds and images that are both samples.

    With the mean squares MS of the two-way table, of seeds, of images and of the rest, the squared
    errors are MS_seeds / (S M), which holds the rest, and max(MS_images - MS_rest, 0) / (S M),
    which therefore does not.

    Args:
      table: (..., S, M) differences, S at least 2, M at least 2.

    Returns:
      Arrays of the leading shape.
    """
    table = np.asarray(table, np.float64)
    seeds, images = table.shape[-2:]
    mean = table.mean(axis=(-2, -1))
    of_seeds = table.mean(axis=-1, keepdims=True)
    of_images = table.mean(axis=-2, keepdims=True)
    rest = table - of_seeds - of_images + mean[..., None, None]
    ms_images = seeds * of_images.var(axis=-1, ddof=1)[..., 0]
    ms_rest = np.square(rest).sum(axis=(-2, -1)) / ((seeds - 1) * (images - 1))
    beyond = np.maximum(ms_images - ms_rest, 0) / (seeds * images)
    return over_seeds(of_seeds[..., 0])._replace(of_images=np.sqrt(beyond), images=images)


def over_seeds(values: np.ndarray) -> Estimate:
    """The mean of S numbers, at least 2, of which each seed gives one; (..., S)."""
    values = np.asarray(values, np.float64)
    seeds = values.shape[-1]
    error = values.std(axis=-1, ddof=1) / math.sqrt(seeds)
    return Estimate(values.mean(axis=-1), error, np.zeros_like(error), seeds - 1, seeds)


def pooled(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates of differences to one base, whose errors over seeds know of one another.

    Trainings vary about alike under all maskers. So the variance of a seed's difference is taken to
    be the mean over K maskers, or the masker's own where that is larger, as of one whose trainings
    go astray. All differences hold the same base: any two correlate by 1/2, their variances by 1/4,
    and the mean knows 4 K (S - 1) / (K + 3) degrees of freedom rather than K (S - 1). Maskers that
    resemble one another more than the base, which mislead the usual analysis of variance in blocks,
    do it no harm. Differences that are the same for all seeds say nothing of the spread and are
    left out of the mean.

    The degrees of freedom are those of the mean for all. So the interval of a masker that varies
    more than the others is too narrow: at 3 times their spread, with three seeds and 12 maskers, it
    misses in 10 % of simulated studies rather than in 5.

    Returns:
      The estimates with the new error and degrees of freedom; as they were where all errors are 0.
    """
    if not estimates:
        return []
    own = np.array([np.square(one.of_seeds) * one.seeds for one in estimates])
    seeds = np.array([one.seeds for one in estimates]).reshape(-1, *[1] * (own.ndim - 1))
    known = np.where(own > 0, seeds - 1.0, 0.0)
    total = known.sum(axis=0)
    if not np.all(total):
        return list(estimates)
    mean = (known * own).sum(axis=0) / total
    freedom = np.square(total) / (0.75 * total + 0.25 * np.square(np.sqrt(known).sum(axis=0)))
    errors = np.sqrt(np.maximum(own, mean) / seeds)
    return [
        one._replace(of_seeds=error, freedom=freedom)
        for one, error in zip(estimates, errors, strict=True)
    ]


def reach(estimate: Estimate, level: float = LEVEL) -> np.ndarray:
    """Half the interval that holds the true mean in at least 1 - level of all studies; without an
    error of images it is that of the t-test."""
    return np.hypot(
        stats.t.isf(level / 2, estimate.freedom) * estimate.of_seeds,
        stats.t.isf(level / 2, estimate.images - 1) * estimate.of_images,
    )


def p_value(estimate: Estimate) -> float:
    """Of no difference: the level at which the interval of one estimate ends at 0."""

    def beyond(log_level):
        return float(reach(estimate, math.exp(log_level))) - abs(float(estimate.mean))

    if beyond(_LEAST_LOG_LEVEL) < 0:
        return math.exp(_LEAST_LOG_LEVEL)
    return min(math.exp(optimize.brentq(beyond, _LEAST_LOG_LEVEL, 0.0)), 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of a family, in its order (Holm 1979): below a level, they err in the whole family
    no more often than that, however they depend on one another."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def power(estimate: Estimate, difference: float, level: float = LEVEL) -> float:
    """The share of studies with these true errors that would find a true difference.

    It is the mean over what the seeds' error would be found to be, see `_errors_found`. Of one
    masker without an error of images it is the power of the t-test, as the noncentral t has it,
    whose function in SciPy is nan for some of the few degrees of freedom that occur here.
    """
    total = math.hypot(estimate.of_seeds, estimate.of_images)
    found = estimate.of_seeds * _errors_found(estimate.seeds - 1, float(estimate.freedom))
    needed = reach(estimate._replace(of_seeds=found), level)
    above, below = (difference - needed) / total, (-difference - needed) / total
    return float(np.mean(stats.norm.cdf(above) + stats.norm.cdf(below)))


@functools.cache
def _errors_found(own: int, freedom: float) -> np.ndarray:
    """Quantiles of an error that is found, relative to the true one: the root of a mean square of
    `own` degrees of freedom, or of one of `freedom`, of more maskers, where that is larger. They
    are taken to be independent, which says a little too much."""
    if freedom <= own:
        return np.sqrt(_quantiles(_QUANTILES, own))
    one, other = np.meshgrid(_quantiles(_SIDE, own), _quantiles(_SIDE, freedom))
    return np.sqrt(np.maximum(one, other)).ravel()


def _quantiles(count: int, freedom: float) -> np.ndarray:
    """As many quantiles of chi-squared, divided by its degrees of freedom."""
    return stats.chi2.ppf((np.arange(count) + 0.5) / count, freedom) / freedom


def detectable(estimate: Estimate, level: float = LEVEL) -> float:
    """The smallest true difference that `POWER` of the studies with these errors would find."""

    def lacks(difference):
        return power(estimate, difference, level) - POWER

    most = float(reach(estimate, level))
    while lacks(most) < 0:
        most *= 2
    return float(optimize.brentq(lacks, 0.0, most))


def _pairs(of_seed, of_base) -> list[tuple[Outcome, Outcome]]:
    return [(of_seed[seed], of_base[seed]) for seed in sorted(of_seed.keys() & of_base.keys())]


def _table(pairs) -> np.ndarray | None:
    """(S, M) differences of each image, None where images are missing or not as many."""
    images = [outcome.of_images for pair in pairs for outcome in pair]
    if any(of_one is None for of_one in images) or len({len(of_one) for of_one in images}) > 1:
        return None
    if len(images[0]) < 2:
        return None
    return np.array(
        [
            np.asarray(one.of_images, np.float64) - np.asarray(other.of_images, np.float64)
            for one, other in pairs
        ]
    )


def _difference(names, pairs) -> tuple[Difference, Estimate | None]:
    """A difference without what needs several seeds, and the estimate that is made of these."""
    values = np.array([one.value - other.value for one, other in pairs])
    table = _table(pairs)
    found = Difference(
        *names,
        seeds=tuple(one.seed for one, _ in pairs),
        images=None if table is None else table.shape[1],
        mean=float(values.mean()),
        over_images=None if table is None else _bootstrap(table.mean(axis=0)),
    )
    if len(pairs) < 2:
        return found, None
    estimate = over_seeds(values) if table is None else crossed(table)
    size = max(abs(outcome.value) for pair in pairs for outcome in pair)
    if estimate.of_seeds <= _SAME * size:
        estimate = estimate._replace(of_seeds=np.float64(0.0))
    return found, estimate


def _tested(family: Sequence[tuple[Difference, Estimate | None]]) -> list[Difference]:
    """Differences of one method and evaluation with all that depends on the others."""
    several = [found for found, estimate in family if estimate is not None]
    estimates = pooled([estimate for _, estimate in family if estimate is not None])
    if not any(estimate.of_seeds > 0 for estimate in estimates):
        return [found for found, _ in family]
    p = [p_value(estimate) for estimate in estimates]
    tested = {
        found.masker: found._replace(
            over_seeds=_ends(estimate._replace(of_images=np.float64(0.0))),
            over_both=_ends(estimate),
            p=own,
            adjusted=adjusted,
            detectable=detectable(estimate, LEVEL / len(p)),
        )
        for found, estimate, own, adjusted in zip(several, estimates, p, holm(p), strict=True)
    }
    return [tested.get(found.masker, found) for found, _ in family]


def _ends(estimate: Estimate) -> tuple[float, float]:
    half = reach(estimate)
    return float(estimate.mean - half), float(estimate.mean + half)


def _bootstrap(of_images: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of (M,), by percentiles; the same for the same numbers."""
    if np.ptp(of_images) == 0:
        return float(of_images[0]), float(of_images[0])
    found = stats.bootstrap(
        (of_images,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _SLICE // len(of_images)),
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
