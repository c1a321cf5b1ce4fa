import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from dppmask_jax.errors import InputError
from dppmask_jax.scores import classification

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2]], np.float32)


@pytest.mark.parametrize(
    "labels,k,expected",
    [
        ([1, 1, 0, 1], 1, 1 / 4),  # ranks 0, 1, 1 (tie won), 1 (tie lost)
        ([1, 1, 0, 1], 2, 1.0),
        ([1, 1, 1, 0], 1, 2 / 4),  # ranks 0, 1, 2 (tie lost), 0 (tie won)
        ([1, 1, 1, 0], 2, 3 / 4),
        ([1, 0, 2, 0], 1, 1.0),
        ([0, 1, 0, 2], 1, 0.0),
        ([0, 2, 1, 2], 3, 1.0),
        ([0, 2, 1, 2], 5, 1.0),
    ],
)
def test_by_hand(labels, k, expected):
    assert classification.top_k_accuracy(SCORES, np.array(labels), k) == expected


def test_a_constant_model_is_right_on_the_first_classes_only():
    scores, labels = np.zeros((6, 6)), np.arange(6)
    for k in (1, 2, 5):
        assert classification.top_k_accuracy(scores, labels, k) == k / 6


@pytest.mark.parametrize("k", [1, 3])
def test_is_scikit_learn_where_nothing_is_tied(k):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=np.arange(7))
    np.testing.assert_allclose(classification.top_k_accuracy(scores, labels, k), expected)


def test_infinite_scores_are_compared():
    scores = np.array([[-np.inf, 0.0, np.inf], [-np.inf, 0.0, -np.inf]])
    assert classification.top_k_accuracy(scores, np.array([2, 1])) == 1.0
    assert classification.top_k_accuracy(scores, np.array([1, 0])) == 0.0
    assert classification.top_k_accuracy(scores, np.array([1, 0]), 2) == 1.0


@pytest.mark.parametrize(
    "scores,labels,words",
    [
        (np.zeros((0, 3)), [], "no image"),
        (SCORES, [0, 1, 3, 0], "image 2 has label 3, but .* 0 to 2"),
        (SCORES, [0, -1, 0, 0], "image 1 has label -1"),
        (np.where(SCORES == 0.6, np.nan, SCORES), [0, 0, 0, 0], "1 of 4 .* image 2"),
    ],
)
def test_bad_input_in_one_line(scores, labels, words):
    with pytest.raises(InputError, match=words) as caught:
        classification.top_k_accuracy(scores, np.array(labels, int))
    assert "\n" not in str(caught.value)
