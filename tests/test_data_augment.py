import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.data import augment


def images(batch=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, 4, 5, 3), dtype=np.uint8)


def test_normalize_by_hand():
    out = augment.normalize(jnp.array([[[[0, 255, 51]]]], jnp.uint8))
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(out[0, 0, 0], expected, rtol=1e-6)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_floats_run_from_zero_to_one(dtype):
    bytes_ = images()
    out = augment.normalize(jnp.asarray(bytes_ / 255.0, dtype))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, augment.normalize(jnp.asarray(bytes_)), atol=0.02)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_other_types_are_refused(dtype):
    with pytest.raises(TypeError, match="uint8"):
        augment.normalize(jnp.zeros((1, 2, 2, 3), dtype))


def test_denormalize_is_the_inverse():
    out = augment.denormalize(augment.normalize(jnp.asarray(images())))
    np.testing.assert_allclose(out, images() / 255.0, atol=1e-6)


def test_each_image_is_mirrored_or_not():
    batch = images(64)
    keys = jax.random.split(jax.random.key(0), 64)
    out = augment.flip_and_normalize(jnp.asarray(batch), keys)
    plain = augment.normalize(jnp.asarray(batch))
    mirrored = 0
    for one, original in zip(out, plain, strict=True):
        if np.array_equal(one, original[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(one, original)
    assert 20 < mirrored < 44


def test_mirroring_depends_on_the_own_key_alone():
    batch = jnp.asarray(np.repeat(images(1), 32, axis=0))
    keys = jax.random.split(jax.random.key(1), 32)
    order = np.random.default_rng(0).permutation(32)
    out = augment.flip_and_normalize(batch, keys)
    np.testing.assert_array_equal(augment.flip_and_normalize(batch, keys[order]), out[order])
    np.testing.assert_array_equal(augment.flip_and_normalize(batch[:5], keys[:5]), out[:5])


def test_no_flip():
    batch = jnp.asarray(images(16))
    keys = jax.random.split(jax.random.key(0), 16)
    out = augment.flip_and_normalize(batch, keys, flip=False)
    np.testing.assert_array_equal(out, augment.normalize(batch))


def test_under_jit():
    batch, keys = jnp.asarray(images(8)), jax.random.split(jax.random.key(2), 8)
    np.testing.assert_allclose(
        jax.jit(augment.flip_and_normalize)(batch, keys),
        augment.flip_and_normalize(batch, keys),
        rtol=1e-6,
        atol=1e-6,
    )
