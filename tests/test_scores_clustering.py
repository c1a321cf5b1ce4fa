import itertools
import math

import numpy as np
import pytest

from dppmask_jax.errors import InputError
from dppmask_jax.scores import clustering


def from_confusion(confusion):
    """Assignment and labels with so many images of each cluster (row) and class (column)."""
    confusion = np.asarray(confusion)
    rows, columns = np.indices(confusion.shape)
    return [np.repeat(index.ravel(), confusion.ravel()) for index in (rows, columns)]


def test_by_hand():
    scores = clustering.cluster_scores(*from_confusion([[2, 0], [1, 3]]))
    # 7 pairs share a cluster, 6 a class, 4 both, of 15.
    expected_pairs = 6 * 7 / 15
    information = math.log(2) / 3 + math.log(1 / 2) / 6 + math.log(3 / 2) / 2
    of_clusters = math.log(3) / 3 + math.log(3 / 2) * 2 / 3
    assert scores == pytest.approx(
        {
            "nmi": information / ((math.log(2) + of_clusters) / 2),
            "ari": (4 - expected_pairs) / ((6 + 7) / 2 - expected_pairs),
            "fmi": 4 / math.sqrt(6 * 7),
            "acc": 5 / 6,
        }
    )
    assert all(type(value) is float for value in scores.values())


def test_the_numbers_of_the_clusters_do_not_matter():
    assignment = np.array([8191, 8191, -4, -4, -4, 17])
    scores = clustering.cluster_scores(assignment, np.array([2, 2, 5, 5, 5, 0]))
    assert scores == pytest.approx({"nmi": 1.0, "ari": 1.0, "fmi": 1.0, "acc": 1.0})


def test_clusters_that_know_nothing_of_the_classes():
    scores = clustering.cluster_scores(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    assert scores == pytest.approx({"nmi": 0.0, "ari": -0.5, "fmi": 0.0, "acc": 0.5}, abs=1e-12)


@pytest.mark.parametrize(
    "confusion,expected",
    [
        ([[5, 4], [4, 0]], 8 / 13),  # the largest cell is not part of the best matching
        ([[2], [1], [1]], 2 / 4),  # clusters without a partner
        ([[1, 3, 2]], 3 / 6),  # classes without a partner
        ([[3, 0, 1], [3, 1, 0]], 4 / 8),  # two clusters of one class: only one of them has it
    ],
)
def test_matched_accuracy_by_hand(confusion, expected):
    assignment, labels = from_confusion(confusion)
    assert clustering.cluster_scores(assignment, labels)["acc"] == pytest.approx(expected)


def test_matching_is_the_best_of_all_permutations():
    rng = np.random.default_rng(0)
    for _ in range(20):
        assignment, labels = rng.integers(0, 4, (2, 30))
        best = max(
            np.mean(np.array(classes)[assignment] == labels)
            for classes in itertools.permutations(range(4))
        )
        assert clustering.cluster_scores(assignment, labels)["acc"] == pytest.approx(best)


def test_as_many_clusters_as_images():
    scores = clustering.cluster_scores(np.arange(60), np.arange(60) % 3)
    assert scores["acc"] == pytest.approx(3 / 60)
    assert scores["fmi"] == 0.0 and scores["ari"] == pytest.approx(0.0, abs=1e-12)
    assert scores["nmi"] == pytest.approx(math.log(3) / ((math.log(3) + math.log(60)) / 2))


def test_kmeans_finds_directions_whatever_the_lengths():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    directions = np.eye(5)[labels] + 0.05 * rng.normal(size=(60, 5))
    features = (directions * 10.0 ** rng.uniform(-2, 2, (60, 1))).astype(np.float32)
    before = features.copy()
    assignment = clustering.kmeans(features, 3, seed=0)
    assert clustering.cluster_scores(assignment, labels)["acc"] == 1.0
    assert assignment.dtype == np.int32 and set(assignment) == {0, 1, 2}
    np.testing.assert_array_equal(features, before)


def test_kmeans_depends_on_the_seed_alone():
    features = np.random.default_rng(0).normal(size=(80, 4))
    features[7] = 0.0
    first = clustering.kmeans(features, 6, seed=3)
    np.testing.assert_array_equal(clustering.kmeans(features, 6, seed=3), first)
    assert np.any(clustering.kmeans(features, 6, seed=4) != first)


def test_fano_bound_at_its_ends_and_in_the_paper():
    for num_classes in (2, 10, 100):
        assert clustering.fano_bound(1.0, num_classes) == 1.0
        assert clustering.fano_bound(1 / num_classes, num_classes) == pytest.approx(0, abs=1e-12)
    # The iBOT row of DPPMask's table 2 reports NMI .522 with ACC 68.28 %.
    assert clustering.fano_bound(0.6828, 100) == pytest.approx(0.548, abs=5e-4)


def test_fano_bound_is_reached_where_errors_are_spread_evenly():
    confusion = np.ones((5, 5), int) + 7 * np.eye(5, dtype=int)
    scores = clustering.cluster_scores(*from_confusion(confusion))
    assert scores["acc"] == pytest.approx(8 / 12)
    assert scores["nmi"] == pytest.approx(clustering.fano_bound(8 / 12, 5))


def test_no_assignment_is_below_the_fano_bound():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 10)
    for _ in range(50):
        kept = rng.random(40) < rng.random()
        assignment = np.where(kept, labels, rng.integers(0, 4, 40))
        scores = clustering.cluster_scores(assignment, labels)
        assert scores["nmi"] >= clustering.fano_bound(scores["acc"], 4) - 1e-12


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: clustering.cluster_scores(np.zeros(0, int), np.zeros(0, int)), "no image"),
        (lambda: clustering.cluster_scores(np.zeros(3, int), np.array([0, -1, 1])), "1 of 3"),
        (lambda: clustering.kmeans(np.ones((3, 2)), 4, 0), "3 images cannot make 4 clusters"),
        (lambda: clustering.kmeans(np.ones((3, 2)), 0, 0), "cannot make 0 clusters"),
        (lambda: clustering.kmeans(np.array([[1.0], [np.nan]]), 1, 0), "first of them image 1"),
        (lambda: clustering.fano_bound(68.28, 100), "accuracy 68.28"),
        (lambda: clustering.fano_bound(0.5, 1), "over 1 classes"),
    ],
)
def test_bad_input_in_one_line(call, words):
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
