import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.targets import hog, pixels
from dppmask_jax.targets.base import masked_square_error


def test_masked_pixel_loss_by_hand():
    # Two images, two patches of two values; errors per patch: 2.5, 0 / 4, 1.
    target = jnp.zeros((2, 2, 2))
    pred = jnp.array([[[1.0, 2.0], [0.0, 0.0]], [[2.0, 2.0], [1.0, 1.0]]])
    mask = jnp.array([[True, False], [True, True]])
    # Over the whole batch: (2.5 + 4 + 1) / 3 masked patches.
    assert masked_square_error(pred, target, mask) == 2.5


def test_loss_ignores_visible_patches():
    rng = np.random.default_rng(0)
    target, pred = rng.normal(size=(2, 3, 8, 5)).astype(np.float32)
    mask = np.arange(8) % 3 == 0
    mask = np.broadcast_to(mask, (3, 8))
    loss = masked_square_error(pred, target, mask)
    changed = np.where(mask[..., None], pred, 1e3)
    assert masked_square_error(changed, target, mask) == loss
    changed = np.where(mask[..., None], pred + 1.0, pred)
    assert masked_square_error(changed, target, mask) != loss
    grad = jax.grad(masked_square_error)(jnp.asarray(pred), target, mask)
    assert np.all(np.asarray(grad)[~mask] == 0) and np.all(np.asarray(grad)[mask] != 0)


def test_nothing_masked_is_zero_not_nan():
    pred = jnp.ones((1, 2, 3))
    assert masked_square_error(pred, 0 * pred, jnp.zeros((1, 2), bool)) == 0


def test_target_uses_the_unbiased_variance():
    patch = np.array([[[1.0, 2.0, 3.0, 6.0]]], np.float32)
    # mean 3, sum of squares 4 + 1 + 0 + 9 = 14, divided by n - 1 = 3.
    expected = (patch - 3.0) / np.sqrt(14.0 / 3.0 + 1e-6)
    np.testing.assert_allclose(pixels.pixel_target(patch, norm_pix=True), expected, rtol=1e-6)
    np.testing.assert_array_equal(pixels.pixel_target(patch, norm_pix=False), patch)


def test_flat_patch_has_a_finite_target():
    target = pixels.pixel_target(jnp.full((1, 1, 12), 0.7), norm_pix=True)
    assert np.all(np.isfinite(target)) and np.all(np.abs(target) < 1e-2)


def test_low_precision_inputs_are_averaged_in_float32():
    pred = jnp.full((1, 1000, 3), 0.1, jnp.bfloat16)
    loss = masked_square_error(pred, jnp.zeros((1, 1000, 3)), jnp.ones((1, 1000), bool))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, float(jnp.bfloat16(0.1)) ** 2, rtol=1e-5)


# HOG. The values of the authors' code are in tests/test_oracles_targets.py.


def test_hog_of_an_edge_is_one_bin_of_the_cells_that_it_crosses():
    image = np.zeros((1, 16, 32, 3), np.uint8)
    image[:, :, 12:] = 200  # differences from left to right alone: a quarter turn, bin 4
    image[:, :, :, 1] = 7  # the second colour is flat
    found = np.asarray(hog.features(image)).reshape(2, 3, 9, 2, 2)
    expected = np.zeros_like(found)
    expected[0, [0, 2], 4, :, 1] = 1.0  # columns 11 and 12 lie in the second column of cells
    np.testing.assert_array_equal(found, expected)
    upright = np.asarray(hog.features(image.transpose(0, 2, 1, 3))).reshape(2, 3, 9, 2, 2)
    expected = np.zeros_like(found)
    expected[0, [0, 2], 0, 1] = 1.0
    np.testing.assert_array_equal(upright, expected)


@pytest.mark.parametrize("window", [False, True])
def test_hog_of_flat_images_is_zero_and_brightness_changes_nothing(window):
    find = jax.jit(functools.partial(hog.features, window=window))
    flat = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 16, 16, 3))
    assert not np.any(find(flat))
    image = np.random.default_rng(0).integers(0, 200, (256, 16, 16, 3), dtype=np.uint8)
    found = np.asarray(find(image))
    np.testing.assert_array_equal(find(image + np.uint8(55)), found)
    np.testing.assert_allclose(np.linalg.norm(found.reshape(-1, 3, 9, 4), axis=2), 1.0, rtol=1e-6)
    one = jax.vmap(lambda image: find(image[None])[0])(image[:8])
    np.testing.assert_allclose(one, found[:8], atol=1e-6)


def test_hog_of_patches_of_another_size_is_made_of_the_same_cells():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), dtype=np.uint8)
    cells = np.asarray(hog.features(image, patch_size=8)).reshape(4, 6, 3, 9)
    for n, patch in enumerate(np.asarray(hog.features(image))[0]):
        row, column = divmod(n, 3)
        expected = cells[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].transpose(2, 3, 0, 1)
        np.testing.assert_array_equal(patch.reshape(3, 9, 2, 2), expected)
    for bad in (dict(patch_size=12), dict(patch_size=32)):
        with pytest.raises(ValueError, match="multiple of 8"):
            hog.features(image, **bad)
    with pytest.raises(ValueError, match="B, H, W, C"):
        hog.features(image[0])
