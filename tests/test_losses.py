import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import losses


def test_masked_pixel_loss_by_hand():
    # Two images, two patches of two values; errors per patch: 2.5, 0 / 4, 1.
    target = jnp.zeros((2, 2, 2))
    pred = jnp.array([[[1.0, 2.0], [0.0, 0.0]], [[2.0, 2.0], [1.0, 1.0]]])
    mask = jnp.array([[True, False], [True, True]])
    # Over the whole batch: (2.5 + 4 + 1) / 3 masked patches.
    assert losses.masked_pixel_loss(pred, target, mask) == 2.5


def test_loss_ignores_visible_patches():
    rng = np.random.default_rng(0)
    target, pred = rng.normal(size=(2, 3, 8, 5)).astype(np.float32)
    mask = np.arange(8) % 3 == 0
    mask = np.broadcast_to(mask, (3, 8))
    loss = losses.masked_pixel_loss(pred, target, mask)
    changed = np.where(mask[..., None], pred, 1e3)
    assert losses.masked_pixel_loss(changed, target, mask) == loss
    changed = np.where(mask[..., None], pred + 1.0, pred)
    assert losses.masked_pixel_loss(changed, target, mask) != loss
    grad = jax.grad(losses.masked_pixel_loss)(jnp.asarray(pred), target, mask)
    assert np.all(np.asarray(grad)[~mask] == 0) and np.all(np.asarray(grad)[mask] != 0)


def test_nothing_masked_is_zero_not_nan():
    pred = jnp.ones((1, 2, 3))
    assert losses.masked_pixel_loss(pred, 0 * pred, jnp.zeros((1, 2), bool)) == 0


def test_target_uses_the_unbiased_variance():
    patch = np.array([[[1.0, 2.0, 3.0, 6.0]]], np.float32)
    # mean 3, sum of squares 4 + 1 + 0 + 9 = 14, divided by n - 1 = 3.
    expected = (patch - 3.0) / np.sqrt(14.0 / 3.0 + 1e-6)
    np.testing.assert_allclose(losses.pixel_target(patch, norm_pix=True), expected, rtol=1e-6)
    np.testing.assert_array_equal(losses.pixel_target(patch, norm_pix=False), patch)


def test_flat_patch_has_a_finite_target():
    target = losses.pixel_target(jnp.full((1, 1, 12), 0.7), norm_pix=True)
    assert np.all(np.isfinite(target)) and np.all(np.abs(target) < 1e-2)


def test_low_precision_inputs_are_averaged_in_float32():
    pred = jnp.full((1, 1000, 3), 0.1, jnp.bfloat16)
    loss = losses.masked_pixel_loss(pred, jnp.zeros((1, 1000, 3)), jnp.ones((1, 1000), bool))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, float(jnp.bfloat16(0.1)) ** 2, rtol=1e-5)
