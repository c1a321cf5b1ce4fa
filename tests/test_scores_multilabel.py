import json

import numpy as np
import pytest
from sklearn import metrics

from dppmask_jax.errors import InputError
from dppmask_jax.scores import multilabel

# Three classes, the last without a positive image. At 0.5: cat has one hit, one false alarm and
# one miss; dog one hit, one false alarm (tied with the hit) and two misses; yak one false alarm,
# and a probability on the threshold.
NAMES = ("cat", "dog", "yak")
PROBABILITIES = np.array([[0.9, 0.2, 0.7], [0.8, 0.6, 0.5], [0.3, 0.6, 0.1], [0.1, 0.4, 0.1]])
TARGETS = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], np.uint8)


def test_by_hand():
    scores = multilabel.multilabel_scores(PROBABILITIES, TARGETS, NAMES, 0.5)
    cat = {"ap": (1 / 1 + 2 / 3) / 2, "f1": 1 / 2, "precision": 1 / 2, "recall": 1 / 2}
    dog = {"ap": (1 / 2 + 2 / 3 + 3 / 4) / 3, "f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3}
    assert scores.pop("excluded") == ["yak"]
    per_class = scores.pop("per_class")
    assert per_class["cat"] == pytest.approx(cat | {"positives": 2})
    assert per_class["dog"] == pytest.approx(dog | {"positives": 3})
    assert list(per_class) == ["cat", "dog"]
    expected = {
        "mAP": 53 / 72,
        "precision_macro": 1 / 2,
        "recall_macro": 5 / 12,
        "f1_macro": 0.45,
        "f1_of_means": 5 / 11,
        "f1_micro": 2 * 2 / (2 * 2 + 3 + 3),
        "f1_weighted": (2 * 0.5 + 3 * 0.4) / 5,
        "accuracy": 6 / 12,
    }
    assert scores == pytest.approx(expected)


def test_scores_are_json():
    scores = multilabel.multilabel_scores(
        PROBABILITIES.astype(np.float32), TARGETS.astype(np.int64), NAMES, 0.5
    )
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_is_scikit_learn_with_ties_and_an_absent_class(threshold):
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 11, (300, 6)) / 10 + 0.001
    probabilities = np.minimum(probabilities, 1.0)
    targets = (rng.random((300, 6)) < probabilities * [1, 0.5, 0.2, 0.05, 0, 0.9]).astype(int)
    names = [f"label {c}" for c in range(6)]
    scores = multilabel.multilabel_scores(probabilities, targets, names, threshold)
    assert scores["excluded"] == ["label 4"] and len(scores["per_class"]) == 5
    there, predicted = [0, 1, 2, 3, 5], (probabilities > threshold).astype(int)
    options = {"zero_division": 0, "average": None}
    expected = {
        "ap": [metrics.average_precision_score(targets[:, c], probabilities[:, c]) for c in there],
        "f1": metrics.f1_score(targets, predicted, **options)[there],
        "precision": metrics.precision_score(targets, predicted, **options)[there],
        "recall": metrics.recall_score(targets, predicted, **options)[there],
    }
    for name, values in expected.items():
        found = [scores["per_class"][names[c]][name] for c in there]
        np.testing.assert_allclose(found, values, rtol=1e-12, err_msg=name)
    for name, key in (("ap", "mAP"), ("f1", "f1_macro"), ("recall", "recall_macro")):
        assert scores[key] == pytest.approx(np.mean(expected[name])), key
    for average in ("micro", "weighted"):
        options = {"zero_division": 0, "average": average}
        found = metrics.f1_score(targets, predicted, **options)
        assert scores[f"f1_{average}"] == pytest.approx(found)
    assert scores["accuracy"] == pytest.approx(
        metrics.accuracy_score(targets.ravel(), predicted.ravel())
    )


def test_the_order_of_the_images_does_not_matter():
    first = multilabel.multilabel_scores(PROBABILITIES, TARGETS, NAMES, 0.5)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(4)
        scores = multilabel.multilabel_scores(PROBABILITIES[order], TARGETS[order], NAMES, 0.5)
        assert scores == first


def test_all_right_all_wrong_and_nothing_predicted():
    summary = ("mAP", "f1_macro", "f1_micro", "f1_weighted", "f1_of_means", "accuracy")
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1]])
    right = multilabel.multilabel_scores(0.2 + 0.6 * targets, targets, "ab", 0.5)
    assert all(right[name] == 1.0 for name in summary)
    wrong = multilabel.multilabel_scores(0.8 - 0.6 * targets, targets, "ab", 0.5)
    assert all(wrong[name] == 0.0 for name in summary[1:])
    # The one positive of "a" comes last: 1 / 4; those of "b" share the last of four ranks: 3 / 4.
    assert wrong["mAP"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    silent = multilabel.multilabel_scores(0.2 + 0.2 * targets, targets, "ab", 0.5)
    assert silent["mAP"] == 1.0 and silent["accuracy"] == 0.5
    assert all(silent[name] == 0.0 for name in summary[1:-1])


def test_average_precision_of_a_constant_is_the_share_of_positives():
    positive = np.array([[1], [0], [0], [1], [0]])

    def average_precision(probabilities):
        return multilabel.multilabel_scores(probabilities[:, None], positive, ["a"], 0.5)["mAP"]

    assert average_precision(np.full(5, 0.3)) == pytest.approx(2 / 5)
    logits = np.array([3.0, -1.0, 4.0, 1.0, -5.0])
    assert average_precision(1 / (1 + np.exp(-logits))) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"names": ("cat", "dog")}, "2 class names do not fit"),
        ({"targets": TARGETS[:3]}, r"\(4, 3\).*\(3, 3\)"),
        ({"names": ("cat", "dog", "cat")}, "two classes are named 'cat'"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"probabilities": PROBABILITIES * 2}, "'cat' in image 0 is 1.8"),
        (
            {"probabilities": np.where(PROBABILITIES == 0.4, np.nan, PROBABILITIES)},
            "'dog' in image 3 is nan",
        ),
        ({"targets": TARGETS * 2}, "'cat' in image 0 is 2"),
        ({"targets": TARGETS * 0}, "no image has any"),
        ({"targets": TARGETS[:0], "probabilities": PROBABILITIES[:0]}, "no image has any"),
    ],
)
def test_bad_input_in_one_line(change, words):
    good = {
        "probabilities": PROBABILITIES, "targets": TARGETS, "names": NAMES, "threshold": 0.5,
    }  # fmt: skip
    with pytest.raises(InputError, match=words) as caught:
        multilabel.multilabel_scores(**good | change)
    assert "\n" not in str(caught.value)
