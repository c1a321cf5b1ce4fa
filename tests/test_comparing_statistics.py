"""Statistics of a comparison: hand-computed cases, and their promises by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from dppmask_jax.comparing import statistics
from dppmask_jax.comparing.outcomes import Outcome
from dppmask_jax.comparing.statistics import Estimate

GROUPS = (("ibot", "knn"), ("mae", "knn"), ("mae", "ridge"))


def outcomes(scores, method="mae", evaluation="knn"):
    """Of {masker: {seed: value, or the values of its images}}."""
    return [
        Outcome(method, masker, seed, evaluation, float(np.mean(value)), _images(value))
        for masker, of_seed in scores.items()
        for seed, value in of_seed.items()
    ]


def _images(value):
    return np.asarray(value) if np.ndim(value) else None


def simulated(rng, studies, seeds, images, sizes):
    """(studies, seeds, images) of mean 0 with seed, image and rest effects of these sizes."""
    of_seeds, of_images, rest = sizes
    return (
        of_seeds * rng.standard_normal((studies, seeds, 1))
        + of_images * rng.standard_normal((studies, 1, images))
        + rest * rng.standard_normal((studies, seeds, images))
    )


def missed(estimate, level=0.05):
    """The share of intervals that leave out 0, the truth."""
    return float(np.mean(np.abs(estimate.mean) > statistics.reach(estimate, level)))


def chance_error(level, studies):
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(level * (1 - level) / studies)


def test_paired_t_by_hand():
    (found,) = statistics.differences(
        outcomes({"random": {0: 5.0, 1: 7.0, 2: 4.0}, "dpp": {0: 6.0, 1: 9.0, 2: 7.0}})
    )
    # Differences 1, 2, 3: mean 2, error 1 / sqrt(3), t of 2 degrees of freedom.
    assert found.mean == pytest.approx(2)
    ends = (2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3))
    assert found.over_seeds == pytest.approx(ends, abs=1e-5)
    assert found.over_both == pytest.approx(ends, abs=1e-5)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))  # 1 - t / sqrt(t² + 2), t² = 12
    assert found.adjusted == found.p
    assert found.seeds == (0, 1, 2)
    assert found.images is None and found.over_images is None


def test_errors_of_a_table_by_hand():
    # Means of seeds 0 and 1/3, of images 1, 0, -1/2; MS_seeds 1/6, MS_images 7/6, MS_rest 1/6.
    found = statistics.crossed(np.array([[1, 0, -1], [1, 0, 0]]))
    assert found.mean == pytest.approx(1 / 6)
    assert found.of_seeds == pytest.approx(1 / 6)
    assert found.of_images == pytest.approx(math.sqrt(1 / 6))
    half = math.hypot(12.706205 / 6, 4.302653 * math.sqrt(1 / 6))
    assert statistics.reach(found) == pytest.approx(half, abs=1e-5)


def test_images_that_vary_no_more_than_chance_add_no_error():
    # MS_images = MS_rest = 2/9, MS_seeds 1/3.
    found = statistics.crossed(np.array([[1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]]))
    assert found.of_seeds == pytest.approx(1 / 6)
    assert found.of_images == pytest.approx(0, abs=1e-7)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def test_errors_are_pooled_by_hand():
    # Differences of variance 1 and 4, three seeds each: mean 2.5, 4 * 2 * 2 / 5 degrees of freedom.
    scores = {"random": [0.0] * 3, "quiet": [1.0, 2.0, 3.0], "loud": [-2.0, 0.0, 2.0]}
    scores = {masker: dict(enumerate(row)) for masker, row in scores.items()}
    loud, quiet = statistics.differences(outcomes(scores))
    quantile = stats.t.isf(0.025, 3.2)
    assert quiet.mean == pytest.approx(2) and loud.mean == pytest.approx(0)
    half = quantile * math.sqrt(2.5 / 3)  # the mean variance
    assert quiet.over_seeds == pytest.approx((2 - half, 2 + half))
    half = quantile * math.sqrt(4 / 3)  # its own, as it is larger
    assert loud.over_seeds == pytest.approx((-half, half))


def test_maskers_of_other_seeds_count_by_them():
    # Variances 1 of 3 seeds, 5 of 2: mean (2 * 1 + 1 * 5) / 3, of 9 / (2.25 + (1 + √2)² / 4).
    one, other = statistics.pooled(
        [statistics.over_seeds([1.0, 2.0, 3.0]), statistics.over_seeds([0.0, math.sqrt(10)])]
    )
    freedom = 9 / (2.25 + (1 + math.sqrt(2)) ** 2 / 4)
    assert one.of_seeds == pytest.approx(math.sqrt(7 / 9))
    assert other.of_seeds == pytest.approx(math.sqrt(5 / 2))
    assert one.freedom == other.freedom == pytest.approx(freedom)


def test_p_is_the_level_at_which_the_interval_ends_at_zero():
    estimate = Estimate(np.float64(-1.3), np.float64(0.3), np.float64(0.4), 2, 3, 200)
    p = statistics.p_value(estimate)
    assert statistics.reach(estimate, p) == pytest.approx(1.3)
    assert statistics.p_value(estimate._replace(mean=np.float64(0.0))) == pytest.approx(1)
    assert 0 < statistics.p_value(estimate._replace(mean=np.float64(1e9))) < 1e-6


def test_power_without_images_is_that_of_the_noncentral_t():
    estimate = Estimate(np.float64(0), np.float64(0.5), np.float64(0), 4, 5)
    for shift in (0.0, 1.0, 3.0, 5.0):
        least = stats.t.isf(0.025, 4)
        expected = stats.nct.sf(least, 4, shift) + stats.nct.cdf(-least, 4, shift)
        assert statistics.power(estimate, 0.5 * shift) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seeds,level", [(3, 0.05), (3, 0.05 / 6), (5, 0.05), (5, 0.05 / 6)])
def test_detectable_differences_are_found_in_four_of_five_simulated_studies(seeds, level):
    errors = (0.1, 0.7, 1.0)
    truth = Estimate(
        np.float64(0),
        np.sqrt((errors[0] ** 2 + errors[2] ** 2 / 50) / seeds),
        np.float64(errors[1] / math.sqrt(50)),
        seeds - 1,
        seeds,
        50,
    )
    size = statistics.detectable(truth, level)
    found = statistics.crossed(size + simulated(np.random.default_rng(0), 2000, seeds, 50, errors))
    share = float(np.mean(found.mean > statistics.reach(found, level)))
    assert share == pytest.approx(0.8, abs=0.04)


def family(rng, studies, seeds, spreads, alike=0.0):
    """Pooled estimates of studies without a difference: the spread of a seed under the base, then
    under each masker, which have a share of their variance in common."""
    base, *others = spreads
    common = math.sqrt(alike) * rng.standard_normal((studies, seeds))
    random = base * rng.standard_normal((studies, seeds))
    return statistics.pooled(
        [
            statistics.over_seeds(
                spread * (common + math.sqrt(1 - alike) * rng.standard_normal((studies, seeds)))
                - random
            )
            for spread in others
        ]
    )


@pytest.mark.parametrize("seeds", (3, 5))
@pytest.mark.parametrize(
    "spreads,alike",
    (((1,) * 13, 0.0), ((1,) * 13, 0.5), ((2, *(1,) * 12), 0.0), ((1, 4, *(1,) * 11), 0.0)),
    ids=("even", "maskers are alike", "base varies most", "one goes astray"),
)
def test_studies_without_a_difference_seldom_find_one(seeds, spreads, alike):
    found = family(np.random.default_rng(0), 4000, seeds, spreads, alike)
    level = 0.05 / len(found)  # Holm's first step decides whether anything is found
    wrong = [np.abs(one.mean) > statistics.reach(one, level) for one in found]
    assert np.any(wrong, axis=0).mean() < 0.05 + chance_error(0.05, 4000)


def test_maskers_together_need_smaller_differences_than_one_alone():
    found = family(np.random.default_rng(0), 500, 3, (1,) * 13)
    alone = [
        one._replace(freedom=2, of_seeds=np.sqrt(2 / 3)) for one in found
    ]  # as if each knew its own three seeds, and these exactly
    level = 0.05 / 12
    together = [np.median(statistics.reach(one, level)) for one in found]
    assert max(together) < 0.5 * min(np.median(statistics.reach(one, level)) for one in alone)


@pytest.mark.parametrize("seeds", (3, 5))
@pytest.mark.parametrize("sizes", ((0.3, 0.1, 1.0), (0.1, 0.7, 1.0), (0.0, 1.0, 0.3)))
def test_intervals_hold_the_truth(seeds, sizes):
    table = simulated(np.random.default_rng(0), 8000, seeds, 50, sizes)
    found = statistics.crossed(table)
    for level in (0.05, 0.05 / 12):  # the second is the first step of Holm's correction
        assert missed(found, level) < level + chance_error(level, 8000)
    # They are not too wide by much: the errors that are known exactly would miss 5 %.
    known = math.sqrt(sizes[0] ** 2 / seeds + (sizes[1] ** 2 + sizes[2] ** 2 / seeds) / 50)
    widest = known * stats.t.isf(0.025, seeds - 1)
    assert np.sqrt(np.mean(np.square(statistics.reach(found)))) < 1.05 * widest


def test_the_interval_over_seeds_alone_is_exact():
    values = np.random.default_rng(1).standard_normal((20_000, 3))
    share = missed(statistics.over_seeds(values))
    assert share == pytest.approx(0.05, abs=chance_error(0.05, 20_000))


def test_few_seeds_alone_do_not_know_the_images():
    """What the interval over both is for: that over seeds misses the truth far too often."""
    table = simulated(np.random.default_rng(0), 2000, 3, 50, (0.0, 1.0, 0.3))
    assert missed(statistics.over_seeds(table.mean(axis=-1))) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seeds", (2, 3, 5))
@pytest.mark.parametrize("shared", (0.0, 0.5, 0.9))
def test_intervals_hold_the_truth_of_right_and_wrong(seeds, shared):
    """Images are right or wrong, as k-NN has them, with all effects on both maskers; `shared` is
    how much of an image's effect on one is that on the other."""
    rng, found = np.random.default_rng(0), []
    difficulty = rng.standard_normal((3000, 1, 1, 200)) * math.sqrt(shared)
    own = rng.standard_normal((3000, 2, 1, 200)) * math.sqrt(1 - shared)
    training = 0.15 * rng.standard_normal((3000, 2, seeds, 1))
    for studies in np.array_split(np.arange(3000), 10):
        noise = rng.standard_normal((len(studies), 2, seeds, 200))
        right = (difficulty + own + training)[studies] + noise > 0
        found.append(statistics.crossed(right[:, 0].astype(float) - right[:, 1]))
    # Two seeds agree by chance in shares of so few images, which is not rare at smaller levels.
    for level in (0.05, 0.05 / 12)[: seeds - 1]:
        share = np.mean([missed(estimate, level) for estimate in found])
        assert share < level + chance_error(level, 3000)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", (3, 5))
def test_a_study_without_a_difference_finds_one_in_at_most_five_percent(seeds):
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(150):
        values = 0.5 + 0.01 * rng.standard_normal((7, seeds))
        scores = {f"m{i}": dict(enumerate(map(float, row))) for i, row in enumerate(values)}
        found = statistics.differences(outcomes(scores), base="m0")
        wrong += min(difference.adjusted for difference in found) < 0.05
    assert wrong / 150 < 0.05 + chance_error(0.05, 150)


@pytest.fixture(scope="module")
def planted():
    """Of five seeds on 800 images: "better" is right 8 points more often, "same" is not."""
    rng = np.random.default_rng(0)
    difficulty = rng.standard_normal(800)
    shifts = {"random": 0.0, "same": 0.0, "better": 0.36, "worse": -0.36}
    scores = {
        masker: {seed: difficulty + rng.standard_normal(800) > -shift for seed in range(5)}
        for masker, shift in shifts.items()
    }
    return {found.masker: found for found in statistics.differences(outcomes(scores))}


def test_planted_differences_are_found(planted):
    assert planted["better"].adjusted < 0.05 and planted["better"].mean > 0.05
    assert planted["worse"].adjusted < 0.05 and planted["worse"].mean < -0.05
    assert 0 < planted["better"].detectable < 0.1


def test_no_difference_is_found_where_there_is_none(planted):
    same = planted["same"]
    assert same.adjusted > 0.05
    assert same.over_both[0] < 0 < same.over_both[1]


def test_the_interval_over_images_is_that_of_clusters(planted):
    """Of means over the seeds of an image, as normal theory has it for 800 of them."""
    rng = np.random.default_rng(3)
    table = rng.standard_normal((1, 800)) + 0.2 * rng.standard_normal((3, 800))
    scores = {"random": dict.fromkeys(range(3), np.zeros(800)), "dpp": dict(enumerate(table))}
    (found,) = statistics.differences(outcomes(scores))
    half = 1.96 * table.mean(axis=0).std(ddof=1) / math.sqrt(800)
    low, high = found.over_images
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert (high + low) / 2 == pytest.approx(found.mean, abs=0.1 * half)
    assert found.images == 800


def test_any_order_gives_the_same():
    rng = np.random.default_rng(0)
    scores = {
        masker: {seed: rng.random(50) < 0.5 for seed in (0, 1, 2)}
        for masker in ("random", "dpp", "block")
    }
    given = outcomes(scores) + outcomes(scores, "ibot") + outcomes(scores, evaluation="ridge")
    first = statistics.differences(given)
    assert statistics.differences(given[::-1]) == first
    names = [(found.method, found.evaluation, found.masker) for found in first]
    assert names == [(*group, name) for group in GROUPS for name in ("block", "dpp")]


def test_seeds_are_paired_and_those_without_a_pair_left_out():
    (found,) = statistics.differences(
        outcomes({"random": {0: 1.0, 1: 2.0, 7: 50.0}, "dpp": {1: 2.5, 0: 1.7, 3: -9.0}})
    )
    assert found.seeds == (0, 1)
    assert found.mean == pytest.approx(0.6)


def test_a_single_seed_has_images_alone():
    rng = np.random.default_rng(0)
    (found,) = statistics.differences(
        outcomes({"random": {0: rng.random(90) < 0.4}, "dpp": {0: rng.random(90) < 0.6}})
    )
    assert found.over_seeds is None and found.over_both is None
    assert found.p is None and found.adjusted is None and found.detectable is None
    assert found.over_images[0] < found.mean < found.over_images[1]


def test_without_a_common_seed_or_a_base_there_is_nothing_to_compare():
    assert statistics.differences(outcomes({"random": {0: 1.0}, "dpp": {1: 1.0}})) == []
    assert statistics.differences(outcomes({"dpp": {1: 1.0}})) == []
    assert statistics.differences([]) == []


def test_other_images_leave_the_seeds():
    rng = np.random.default_rng(0)
    scores = {
        "random": {0: rng.random(90), 1: rng.random(90)},
        "dpp": {0: rng.random(90), 1: rng.random(91)},
    }
    (found,) = statistics.differences(outcomes(scores))
    assert found.images is None and found.over_images is None
    assert found.over_both == found.over_seeds


@pytest.mark.parametrize("step", (0.0, 0.1))
def test_seeds_that_do_not_differ_prove_nothing_alone(step):
    scores = {"random": {0: 0.3, 1: 0.7, 2: 0.2}}
    scores["dpp"] = {seed: value + step for seed, value in scores["random"].items()}
    (dpp,) = statistics.differences(outcomes(scores))
    assert dpp.p is None and dpp.over_both is None and dpp.mean == pytest.approx(step)
    # Another masker knows the spread, and theirs does not make it smaller.
    block = {"block": {0: 0.3, 1: 0.6, 2: 0.4}}
    (alone,) = statistics.differences(outcomes({"random": scores["random"]} | block))
    first, dpp = statistics.differences(outcomes(scores | block))
    assert first.over_both == alone.over_both
    assert dpp.over_both[1] - dpp.mean == pytest.approx(first.over_both[1] - first.mean)


@pytest.mark.parametrize(
    "change,message",
    (
        ({"value": math.nan}, "no number"),
        ({"of_images": np.array([True, False])}, "the mean of its images is 0.5"),
        ({"of_images": np.ones((2, 2))}, "shape"),
        ({}, "knn of mae with random masks, seed 0 is there twice"),
    ),
)
def test_bad_outcomes_are_refused(change, message):
    good = Outcome("mae", "random", 0, "knn", 0.25)
    with pytest.raises(ValueError, match=message):
        statistics.differences([good, good._replace(**change)])
