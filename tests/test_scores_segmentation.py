"""Mean IoU, pixel accuracy and their errors, by hand."""

import numpy as np
import pytest

from dppmask_jax.scores.segmentation import (
    agreement,
    confusion,
    enlarged,
    majority,
    pixels,
)
from dppmask_jax.scores.uncertainty import error_of_mean, jackknife

TRUE = np.array([[[0, 0, 1], [1, 1, 255]], [[0, 0, 0], [2, 255, 0]]])
PREDICTED = np.array([[[0, 1, 1], [1, 0, 2]], [[0, 0, 3], [3, 3, 0]]])


def test_confusion_by_hand_and_what_does_not_count():
    found = confusion(TRUE, PREDICTED, 4, ignored=255)
    first = np.zeros((4, 4), int)
    first[0, 0], first[0, 1], first[1, 1], first[1, 0] = 1, 1, 2, 1
    second = np.zeros((4, 4), int)
    second[0, 0], second[0, 3], second[2, 3] = 3, 1, 1
    np.testing.assert_array_equal(found, [first, second])
    assert found.dtype == np.int64
    for wrong, words in (
        ((TRUE, PREDICTED, 4), "true classes go from 0 to 255"),
        ((TRUE, PREDICTED, 3, 255), "predicted classes go from 0 to 3, not within 0 to 2"),
        ((TRUE, PREDICTED[:1], 4, 255), "do not go together"),
    ):
        with pytest.raises(ValueError, match=words):
            confusion(*wrong)


def test_scores_by_hand_and_absent_classes():
    found = agreement(pixels(confusion(TRUE, PREDICTED, 5, ignored=255)))
    # Class 0: 6 true, 5 predicted, 4 right; 1: 3, 3, 2; 2: 1, 0, 0; 3 and 4 have no true pixel,
    # and that 3 is predicted twice costs the classes that are there alone.
    np.testing.assert_allclose(found.iou, [4 / 7, 2 / 4, 0, np.nan, np.nan])
    assert found.miou == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)
    assert found.accuracy == pytest.approx(6 / 10)
    # Without the first image: class 0 3/4, class 2 0; without the second 1/3 and 2/4.
    without = np.array([3 / 8, 5 / 12])
    assert found.miou_error == pytest.approx(abs(np.diff(without)[0]) / 2)
    assert found.accuracy_error == pytest.approx(jackknife(np.array([3 / 5, 3 / 5])))
    assert found.iou_error[0] == pytest.approx((3 / 4 - 1 / 3) / 2)
    assert np.isnan(found.iou_error[1:]).all(), "one image alone has classes 1 and 2"
    right = agreement(pixels(confusion(TRUE, np.where(TRUE == 255, 3, TRUE), 4, 255)))
    assert right.miou == right.accuracy == 1 and right.miou_error == 0
    with pytest.raises(ValueError, match="no pixel of any class"):
        agreement(pixels(confusion(np.full((2, 1, 1), 9), np.zeros((2, 1, 1)), 3, 9)))


def test_errors_are_those_over_images():
    """Of images with as many pixels each, the accuracy is a mean over images, and its error that of
    a mean; another sample of images confirms it."""
    rng = np.random.default_rng(0)

    def sample(count):
        true = rng.integers(0, 3, (count, 4, 4))
        wrong = rng.random((count, 1, 1)) * rng.random((count, 4, 4)) > 0.4
        return true, np.where(wrong, (true + 1) % 3, true)

    true, predicted = sample(70)  # more than are handled at a time
    found = agreement(pixels(confusion(true, predicted, 3)))
    of_images = (true == predicted).mean(axis=(1, 2))
    assert found.accuracy_error == pytest.approx(error_of_mean(of_images))
    spread = np.std([agreement(pixels(confusion(*sample(70), 3))).miou for _ in range(200)])
    assert found.miou_error == pytest.approx(spread, rel=0.3)


def test_majority_of_oblong_patches_where_ignored_pixels_do_not_vote():
    true = np.array([[[0, 0, 2, 255], [1, 0, 255, 255], [255] * 4, [255, 1, 1, 0]]] * 2)
    found = majority(true, (2, 2), 3, ignored=255)
    np.testing.assert_array_equal(found, [[0, 2, 1, 0]] * 2)  # of equally many the lower class
    np.testing.assert_array_equal(majority(true[:, :2], (2, 2), 3, 255)[0], [0, 2, 0, -1])
    assert found.dtype == np.int32
    maps = enlarged(majority(true[:, :2], (2, 2), 3, 255), (2, 2), (2, 4))
    np.testing.assert_array_equal(maps[1], [[0, 0, 2, 2], [0, 0, -1, -1]])
