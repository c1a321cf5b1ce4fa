import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.data.images import augment


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
    out = augment.flip(jnp.asarray(batch), keys)
    assert out.dtype == np.uint8
    mirrored = 0
    for one, original in zip(out, batch, strict=True):
        if np.array_equal(one, original[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(one, original)
    assert 20 < mirrored < 44


def test_mirroring_depends_on_the_own_key_alone():
    batch = jnp.asarray(np.repeat(images(1), 32, axis=0))
    keys = jax.random.split(jax.random.key(1), 32)
    order = np.random.default_rng(0).permutation(32)
    out = augment.flip(batch, keys)
    np.testing.assert_array_equal(augment.flip(batch, keys[order]), out[order])
    np.testing.assert_array_equal(augment.flip(batch[:5], keys[:5]), out[:5])


# Random erasing.

BATCH, HEIGHT, WIDTH = 2000, 36, 24
erase = jax.jit(augment.random_erasing)


def erased(prob, seed=0):
    """(B, H, W) bool, and the images, of a batch that was 9 everywhere."""
    keys = jax.random.split(jax.random.key(seed), BATCH)
    out = np.asarray(erase(jnp.full((BATCH, HEIGHT, WIDTH, 3), 9.0), keys, prob=prob))
    changed = out != 9.0
    assert np.array_equal(changed.any(-1), changed.all(-1))  # all channels together
    return changed[..., 0], out


def test_erased_are_boxes_of_the_promised_sizes():
    where, _ = erased(1.0)
    heights, widths = where.any(2).sum(1), where.any(1).sum(1)
    np.testing.assert_array_equal(where.sum((1, 2)), heights * widths)  # full boxes
    assert np.all((heights > 0) & (heights < HEIGHT)) and np.all((widths > 0) & (widths < WIDTH))
    # As the same draws by NumPy, of which the first that fits is taken.
    rng = np.random.default_rng(0)
    area = HEIGHT * WIDTH * rng.uniform(0.02, 1 / 3, (20_000, 10))
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), (20_000, 10)))
    tall, wide = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    first = np.arange(20_000), np.argmax((tall < HEIGHT) & (wide < WIDTH), axis=1)
    tall, wide = tall[first], wide[first]
    for ours, theirs in (
        (heights, tall),
        (widths, wide),
        (heights * widths / 10, tall * wide / 10),
        (10 * np.log(heights / widths), 10 * np.log(tall / wide)),
    ):
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert abs(np.quantile(ours, q) - np.quantile(theirs, q)) <= 1.2
    # Places: the upper left corner is uniform over where the box fits.
    for hit, size, whole in ((where.any(2), heights, HEIGHT), (where.any(1), widths, WIDTH)):
        start, room = hit.argmax(1), whole - size
        assert np.all(start <= room) and np.any(start == room) and start.min() == 0
        assert np.mean(start / room) == pytest.approx(0.5, abs=0.03)


def test_erased_values_are_normal_noise():
    where, out = erased(1.0)
    values = out[where][:50_000]
    assert values.mean() == pytest.approx(0, abs=0.015)
    assert values.std() == pytest.approx(1, abs=0.015)
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.02  # each value its own


def test_a_share_of_the_images_is_erased():
    assert 0.22 < erased(0.25)[0].any((1, 2)).mean() < 0.28
    assert not erased(0.0)[0].any()


def test_erasing_depends_on_the_own_key_alone():
    keys = jax.random.split(jax.random.key(1), BATCH)
    batch = jax.random.uniform(jax.random.key(2), (BATCH, HEIGHT, WIDTH, 3))
    order = np.random.default_rng(0).permutation(BATCH)
    out = np.asarray(erase(batch, keys, prob=0.5))
    np.testing.assert_array_equal(erase(batch[order], keys[order], prob=0.5), out[order])


def test_bytes_cannot_be_erased():
    with pytest.raises(AssertionError):
        augment.random_erasing(jnp.asarray(images(2)), jax.random.split(jax.random.key(0), 2))
