"""The page of a comparison: its text, and that it claims no more than its numbers."""

import random

import numpy as np
import pytest
import tiny

from dppmask_jax.comparing import drawing, page, published, verdicts, writing
from dppmask_jax.comparing.describing import Description
from dppmask_jax.comparing.outcomes import Measure, Outcome
from dppmask_jax.comparing.statistics import Difference

KNN = Measure("k-NN top-1")
RANK = Measure("effective rank", in_percent=False, better=None, digits=1)
GAP = Measure("background gap", better="lower")
STUDY = Description(
    title="Small photographs",
    sentences=["Ten classes, 64 px.", "Twenty epochs."],
    maskers={"random": "random", "dpp": "DPP, τ 0.8", "block": "blocks", "hard": "hard patches"},
    methods={"mae": "MAE"},
    measures={"knn": KNN, "rank": RANK},
    seeds=(0, 1, 2),
    lost={"mae": {"random": 0.015, "dpp": 0.0}},
)
# Differences of dpp 1, 2, 3 points and of block -9, -10, -11: of variance 1, as their mean is.
VALUES = {
    ("random", "knn"): (0.50, 0.52, 0.54),
    ("dpp", "knn"): (0.51, 0.54, 0.57),
    ("block", "knn"): (0.41, 0.42, 0.43),
    ("hard", "knn"): (None, 0.55),
    ("random", "rank"): (20.0, 21.0, 22.0),
    ("dpp", "rank"): (20.5, 22.5, 21.5),
}
OUTCOMES = [
    Outcome("mae", masker, seed, evaluation, value)
    for (masker, evaluation), values in VALUES.items()
    for seed, value in enumerate(values)
    if value is not None
]
# Errors are 1 / sqrt(3) points, t of 3.2 degrees of freedom is 3.0728 and p of dpp 0.0366; of the
# one masker with ranks, differences 0.5, 1.5 and -0.5, t of 2 is 4.3027 and p 0.478.
SECTION = """\
Small photographs

Ten classes, 64 px. Twenty epochs.

Of 3 differences to random, 1 is better, 1 is worse and 1 cannot be told from none.

![Differences to random, with intervals](figures/small.png)

### MAE

| masks | no patch of the object visible, % | k-NN top-1, % † | effective rank † (neither end is \
better) |
|---|---|---|---|
| random | 1.5 | 52.00, σ 2.00 (3 seeds) | 21.0, σ 1.0 (3 seeds) |
| DPP, τ 0.8 | 0.0 | +2.00 [+0.23, +3.77]<br>p 0.037, **better** | +0.5 [−2.0, +3.0]<br>p 0.478, \
none larger than 3.0 |
| blocks | – | −10.00 [−11.77, −8.23]<br>p < 0.001, **worse** | – |
| hard patches | – | +3.00 (1 seed)<br>no verdict | – |
| *smallest difference that would be found* | – | 3.50 | 3.3 |

- k-NN top-1: Better than random: DPP, τ 0.8 (+2.00 points). Worse than random: blocks (−10.00 \
points). Hard patches: one seed alone, no verdict.
- effective rank: DPP, τ 0.8: no difference larger than 3.0.

<details><summary>All intervals: over seeds alone, over images alone (a bootstrap that draws an \
image with all of its seeds), and over both</summary>

| evaluation | masks | seeds | images | difference | over seeds | over images | over both | p \
| p of Holm | smallest that would be found |
|---|---|---|---|---|---|---|---|---|---|---|
| k-NN top-1 | DPP, τ 0.8 | 0, 1, 2 | – | +2.00 | [+0.23, +3.77] | – | – | 0.037 | 0.037 | 3.50 |
| k-NN top-1 | blocks | 0, 1, 2 | – | −10.00 | [−11.77, −8.23] | – | – | < 0.001 | < 0.001 | 3.50 |
| k-NN top-1 | hard patches | 1 | – | +3.00 | – | – | – | – | – | – |
| effective rank | DPP, τ 0.8 | 0, 1, 2 | – | +0.5 | [−2.0, +3.0] | – | – | 0.478 | 0.478 | 3.3 |

</details>

Still missing, 2 of 12 runs: MAE with hard patches, seeds 0 and 2. Still missing, of effective \
rank: MAE with blocks, seeds 0, 1 and 2; MAE with hard patches, seed 1.
"""


@pytest.fixture(scope="module")
def text():
    return page.page({"small": STUDY}, {"small": OUTCOMES}, {"small": "figures/small.png"})


def section(description=STUDY, outcomes=OUTCOMES):
    """What the page has of one study, after its heading's signs."""
    figures = {"small": "figures/small.png"}
    return page.page({"small": description}, {"small": outcomes}, figures).split("\n## ")[2]


def test_a_page_byte_for_byte(text):
    assert text.split("\n## ")[2] == SECTION


def test_any_order_of_outcomes_gives_the_same_page(text):
    for seed in range(3):
        shuffled = random.Random(seed).sample(OUTCOMES, len(OUTCOMES))
        assert (
            page.page({"small": STUDY}, {"small": shuffled}, {"small": "figures/small.png"}) == text
        )


def test_studies_stand_in_their_order():
    other = STUDY._replace(title="Spacing")
    text = page.page({"b": other, "a": STUDY}, {"a": OUTCOMES, "b": OUTCOMES})
    assert text.index("## Spacing") < text.index("## Small photographs")
    assert "![" not in text


def test_a_study_without_a_run_says_what_is_missing():
    found = section(outcomes=())
    assert "12 of 12 runs" in found and "hard patches, seeds 0, 1 and 2" in found
    assert "|" not in found and "better" not in found


def test_without_a_run_of_the_base_nothing_is_compared():
    found = section(outcomes=[one for one in OUTCOMES if one.masker != "random"])
    assert "| random | 1.5 | – |" in found
    assert (
        "better than" not in found.lower() and "p " not in found.split("### MAE")[1].split("-")[0]
    )


def test_a_negative_result_is_said():
    outcomes = [one for one in OUTCOMES if one.masker != "dpp" and one.evaluation == "knn"]
    found = section(outcomes=outcomes)
    assert "Of 1 difference to random, 1 is worse. No masks were found to be better" in found


def test_one_seed_has_no_verdict():
    outcomes = [one for one in OUTCOMES if one.seed == 0]
    found = section(STUDY._replace(seeds=(0,)), outcomes)
    assert "No difference to random is tested yet" in found
    assert "| DPP, τ 0.8 | 0.0 | +1.00<br>no verdict" in found
    assert "**" not in found and "*smallest" not in found


def test_a_measure_that_is_better_lower():
    outcomes = [one._replace(evaluation="gap") for one in OUTCOMES if one.evaluation == "knn"]
    found = section(STUDY._replace(measures={"gap": GAP}), outcomes)
    assert "background gap, % † (lower is better)" in found
    assert "+2.00 [+0.23, +3.77]<br>p 0.037, **worse**" in found
    assert "−10.00 [−11.77, −8.23]<br>p < 0.001, **better**" in found


def test_a_measure_without_a_better_end():
    outcomes = [one._replace(evaluation="rank") for one in OUTCOMES if one.evaluation == "knn"]
    measures = {"rank": RANK._replace(digits=3)}
    found = section(STUDY._replace(measures=measures), outcomes)
    assert "+0.020 [+0.002, +0.038]<br>p 0.037, **higher**" in found
    assert "1 is higher and 1 is lower." in found
    assert "better than" not in found and "points" not in found


def test_scores_of_images_take_the_mark_away():
    rng = np.random.default_rng(0)
    outcomes = []
    for masker in ("random", "dpp"):
        for seed in range(3):
            right = rng.random(200) < 0.5
            outcomes.append(Outcome("mae", masker, seed, "knn", float(right.mean()), right))
    found = section(outcomes=outcomes)
    assert "| k-NN top-1, % |" in found
    row = next(line for line in found.splitlines() if "| 0, 1, 2 | 200 |" in line)
    assert row.count("[") == 3  # over seeds, over images and over both


@pytest.mark.parametrize(
    "change,named",
    (
        ({"masker": "amt"}, "masker amt"),
        ({"method": "ibot"}, "method ibot"),
        ({"evaluation": "ridge"}, "evaluation ridge"),
        ({"seed": 7}, "seed 7, which is not of this study; known are 0, 1, 2"),
    ),
)
def test_an_outcome_of_another_study_is_refused(change, named):
    with pytest.raises(ValueError, match=f"Small photographs: an outcome is of {named}"):
        section(outcomes=[OUTCOMES[0]._replace(**change)])
    with pytest.raises(ValueError, match=named):
        drawing.draw(STUDY, [OUTCOMES[0]._replace(**change)])


def difference(**change):
    found = Difference(
        "mae", "knn", "dpp", "random", (0, 1, 2), None, 0.01, None,
        over_both=(-0.0123, 0.0323), p=0.2, adjusted=0.4,
    )  # fmt: skip
    return found._replace(**change)


@pytest.mark.parametrize(
    "change,measure,words",
    (
        ({}, KNN, "no difference larger than 3.23 points"),
        ({"over_both": (-0.4, 0.1)}, RANK, "no difference larger than 0.4"),
        ({"adjusted": 0.05}, KNN, "no difference larger than 3.23 points"),
        ({"adjusted": 0.04}, KNN, "better"),
        ({"adjusted": 0.04, "mean": -0.01}, KNN, "worse"),
        ({"adjusted": 0.04}, GAP, "worse"),
        ({"adjusted": 0.04}, RANK, "higher"),
        ({"adjusted": 0.04, "mean": -0.01}, RANK, "lower"),
        ({"seeds": (0,), "adjusted": None}, KNN, "one seed alone, no verdict"),
        ({"adjusted": None}, KNN, "the same in all seeds, no verdict"),
    ),
)  # fmt: skip
def test_verdicts(change, measure, words):
    assert verdicts.verdict(difference(**change), measure) == words


def test_numbers_as_shown():
    assert verdicts.signed(-0.00001, KNN) == "0.00"
    assert verdicts.signed(0.0042, KNN) == "+0.42"
    assert verdicts.signed(-1.25, RANK) == "−1.2"
    assert verdicts.chance(0.0004) == "< 0.001"
    assert verdicts.chance(0.25) == "0.250"


def test_a_forest_has_a_panel_an_evaluation_and_a_row_a_masker():
    figure = drawing.draw(STUDY, OUTCOMES)
    knn, rank = figure.axes
    assert [label.get_text() for label in knn.get_yticklabels()] == [
        "DPP, τ 0.8",
        "blocks",
        "hard patches",
    ]
    assert (knn.get_title(), rank.get_title()) == ("k-NN top-1 †", "effective rank †")
    assert knn.get_xlabel() == "points (right is better)"
    dots = [line for line in knn.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([2, -10, 3])
    assert len([line for line in rank.lines if line.get_marker() == "o"]) == 1
    # The line at 0, then of dpp the thick interval and the thin one.
    assert knn.lines[1].get_xdata() == pytest.approx([0.226, 3.774], abs=1e-3)
    assert knn.lines[1].get_linewidth() > knn.lines[2].get_linewidth()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"better", "worse", "cannot be told from none", "no verdict"} <= set(legend)


def test_nothing_to_compare_is_not_drawn():
    with pytest.raises(ValueError, match="no difference to draw"):
        drawing.draw(STUDY, OUTCOMES[:3])


@pytest.mark.slow
def test_the_page_in_the_docs_is_that_of_the_results_beside_it(tmp_path):
    docs = tiny.ROOT / "docs"
    written, *_ = writing.write(tmp_path / "comparison.md", published.read(docs / "results"))
    assert written.read_text() == (docs / "comparison.md").read_text()
