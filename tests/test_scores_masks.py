"""What is counted of masks: by hand, by counting all masks, against scipy and float64."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from dppmask_jax.scores import coverage, filling, mask_shape

_BLOCK = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
_CHECKERS = np.indices((4, 4)).sum(axis=0) % 2 == 1


def test_object_patches_half_tiny_and_empty():
    foreground = np.zeros((4, 4, 6), bool)  # 2 x 3 patches of 2 pixels
    foreground[0, 0, 0:2] = True  # half of patch 0
    foreground[0, 2, 4] = True  # a quarter of patch 5
    foreground[1, 3, 3] = foreground[1, 0, 5] = True  # a quarter of patches 4 and 2
    foreground[2] = True
    objects = coverage.object_patches(foreground, 2)
    assert [np.flatnonzero(row).tolist() for row in objects] == [[0], [2], [0, 1, 2, 3, 4, 5], []]


def test_coverage_of_hand_made_masks():
    objects = np.zeros((3, 20), bool)
    objects[0, :10] = objects[1, :10] = objects[2, 5] = True
    visible = np.zeros((3, 20), bool)
    visible[0, 10:18] = True  # nothing of the object
    visible[1, 9:17] = True  # one of its ten patches; its fair share is four
    visible[2, :8] = True
    found = coverage.coverage(visible, objects, almost=0.5)
    assert found["none"].tolist() == [1, 0, 0]
    assert found["almost"].tolist() == [1, 1, 0]
    assert coverage.coverage(visible, objects, almost=0.25)["almost"].tolist() == [1, 0, 0]
    assert found["kept"].tolist() == [0, 0.1, 1]
    assert found["on_object"].tolist() == [0, 1 / 8, 1 / 8]


def test_exact_random_agrees_with_counting_all_masks():
    objects = np.array([[True, True, True, False, False, False, False]])
    every = np.zeros((35, 7), bool)
    for row, kept in enumerate(itertools.combinations(range(7), 3)):
        every[row, list(kept)] = True
    for almost in (0.25, 0.7, 0.9):
        found = coverage.coverage(every, objects.repeat(35, axis=0), almost)
        exact = coverage.exact_random(objects, 3, almost)
        for name, values in exact.items():
            np.testing.assert_allclose(values[0], found[name].mean(), err_msg=name)


def test_log_det_is_that_of_the_kernel():
    features = np.random.default_rng(1).normal(size=(2, 6, 4))
    kept = np.array([[0, 3, 5], [2, 1, 4]])
    found = coverage.log_det(coverage.kernel_of(features), kept)
    for row in range(2):
        x = features[row, kept[row]]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        kernel = np.exp(-np.sum((x[:, None] - x[None]) ** 2, axis=-1))
        np.testing.assert_allclose(found[row], np.log(np.linalg.det(kernel)))


def test_pieces_are_counted_image_by_image():
    foreground = np.zeros((3, 5, 5), bool)
    foreground[0, 0, 0] = foreground[0, 1, 1] = True  # touch at a corner: one piece
    foreground[0, 4, 4] = True
    foreground[2] = True
    found, owner = coverage.pieces(foreground)
    assert owner.tolist() == [0, 0, 2]
    assert found.sum(axis=(1, 2)).tolist() == [2, 1, 25]
    found, owner = coverage.pieces(foreground[1:2])
    assert found.shape == (0, 5, 5) and owner.shape == (0,)


def test_the_error_of_a_mean_counts_an_image_once():
    values = np.random.default_rng(2).normal(size=30)
    mean, error = coverage.mean_and_error(values, np.arange(30))
    np.testing.assert_allclose([mean, error], [values.mean(), values.std(ddof=1) / 30**0.5])
    # ten copies of everything tell nothing new
    again = coverage.mean_and_error(values.repeat(10), np.arange(30).repeat(10))
    np.testing.assert_allclose(again, [mean, error])


def test_terciles_part_the_images_and_keep_equal_sizes_together():
    size = np.array([1, 1, 1, 1, 5, 6, 9, 9, 9])
    groups = coverage.terciles(size)
    assert (np.sum(groups, axis=0) == 1).all()
    assert [group.sum() for group in groups] == [4, 2, 3]


def test_object_patches_of_oblong_patches():
    foreground = np.zeros((1, 4, 4), bool)
    foreground[0, 0] = True  # half of the two upper patches of 2 x 2, a quarter of those of 4 x 1
    assert coverage.object_patches(foreground, 2).tolist() == [[True, True, False, False]]
    assert coverage.object_patches(foreground, (4, 1)).tolist() == [[True, False, False, False]]
    assert coverage.object_patches(foreground, (1, 2)).sum() == 2


def test_equal_neighbours_are_counted_along_both_axes():
    # 24 pairs; those that differ lie along the block's border, 4, and around the corner patch, 2
    found = mask_shape.equal_neighbours(np.stack([_BLOCK, _CHECKERS]))
    np.testing.assert_allclose(found, [18 / 24, 0])


def test_the_largest_piece_touches_at_sides_alone():
    touching = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    found = mask_shape.largest_piece(np.stack([touching, touching[::-1]]))
    np.testing.assert_allclose(found, [3 / 4, 3 / 4])
    np.testing.assert_allclose(
        mask_shape.largest_piece(np.stack([_BLOCK, _CHECKERS])), [4 / 5, 1 / 8]
    )


def test_pieces_and_distances_agree_with_scipy():
    hidden = np.random.default_rng(3).random((20, 7, 5)) < 0.75
    hidden[:, 3, 2], hidden[:, 0, 0] = False, True
    away = [ndimage.distance_transform_edt(mask)[mask].mean() for mask in hidden]
    np.testing.assert_allclose(mask_shape.distance_to_visible(hidden), away)
    largest = [np.bincount(ndimage.label(mask)[0][mask]).max() / mask.sum() for mask in hidden]
    np.testing.assert_allclose(mask_shape.largest_piece(hidden), largest)


def test_the_distance_of_a_row_by_hand():
    hidden = np.array([[[1, 1, 1, 0, 1]], [[0, 1, 1, 1, 1]]], bool)
    np.testing.assert_allclose(mask_shape.distance_to_visible(hidden), [7 / 4, 10 / 4])
    nearest, _ = mask_shape.nearest_visible(np.array([[[0, 1, 0]]], bool))
    assert nearest.tolist() == [[0, 0, 2]]  # the first of equally near ones


def test_low_frequencies_of_waves_and_of_noise():
    slow = np.tile(np.arange(16) // 8 == 1, (16, 1))  # a square wave of 1 and 3, 5, 7 / 16
    across = np.abs(np.fft.fft(slow[0].astype(float))) ** 2
    low, power = across[1:5].sum() + across[-4:].sum(), across[1:].sum()
    side = np.abs(np.fft.fftfreq(16))
    frequency = np.hypot(side[:, None], side)
    few = ((frequency > 0) & (frequency <= 0.25)).sum() / 255
    checkers = np.indices((16, 16)).sum(axis=0) % 2 == 1
    noise = np.random.default_rng(0).random((400, 16, 16)) < 0.75
    found = mask_shape.low_frequencies(np.stack([slow, checkers]))
    np.testing.assert_allclose(found, [low / power / few, 0], atol=1e-12)
    assert mask_shape.low_frequencies(noise).mean() == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="3x3"):
        mask_shape.low_frequencies(noise[:, :3, :3])


def test_the_inner_patches_are_the_middle_half():
    hidden = np.ones((2, 8, 8), bool)
    hidden[0, 2:6, 2:6] = False
    hidden[1, 0, :6] = False
    np.testing.assert_allclose(mask_shape.inner_gap(hidden), [1, -6 / 48])


def test_a_hidden_patch_is_a_copy_of_the_nearest_visible_one():
    pixels = np.array([[[1.0, 2], [4, 6], [9, 9]]])
    hidden = np.array([[[False, True, True]]])
    # 1, 2 for 4, 6 and for 9, 9: squares 9, 16, 64, 49
    np.testing.assert_allclose(filling.copied(pixels, hidden), [np.sqrt(138 / 4)])


def test_interpolation_finds_planes():
    rng = np.random.default_rng(5)
    row, column = np.indices((6, 5)).reshape(2, -1)
    hidden = rng.random((3, 6, 5)) < 0.6
    corners = np.ix_(range(3), (0, -1), (0, -1))
    hidden[corners] = False  # nothing lies outside of the triangles
    plane = np.stack([2.0 * row - column, 7.0 - 3 * column], axis=1)[None].repeat(3, axis=0)
    np.testing.assert_allclose(filling.interpolated(plane, hidden), 0, atol=1e-5)


def test_interpolation_within_a_triangle_and_copies_outside_of_it():
    """Three patches are visible, of 1, 5 and 9; the others are 0, so that the error is what is
    guessed of them."""
    hidden = np.ones((1, 4, 4), bool)
    hidden[0, [0, 0, 3], [0, 3, 0]] = False
    pixels = np.zeros((1, 16, 1))
    pixels[0, [0, 3, 12], 0] = 1, 5, 9
    guessed = []
    for row in range(4):
        for column in range(4):
            if row + column <= 3:
                guess = 1 + (5 - 1) * column / 3 + (9 - 1) * row / 3
            else:  # no two are equally near but of (2, 2) and (3, 3), where the first counts
                apart = [
                    np.hypot(row, column),
                    np.hypot(row, column - 3),
                    np.hypot(row - 3, column),
                ]
                guess = (1, 5, 9)[int(np.argmin(apart))]
            guessed.append(guess)
    squares = [guess**2 for i, guess in enumerate(guessed) if i not in (0, 3, 12)]
    found = filling.interpolated(pixels, hidden)
    np.testing.assert_allclose(found, [np.sqrt(np.mean(squares))], rtol=1e-6)


def test_visible_patches_without_a_triangle_are_copied():
    hidden = np.ones((2, 4, 4), bool)
    hidden[0, 1] = False  # a line
    hidden[1, 1, 2] = False  # one
    pixels = np.random.default_rng(0).random((2, 16, 3))
    np.testing.assert_allclose(filling.interpolated(pixels, hidden), filling.copied(pixels, hidden))
