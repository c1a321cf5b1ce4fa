import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.data.images import corrupt


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def noise(count):
    return np.random.default_rng(1).random((count, 8, 8, 3), np.float32)


jitted = jax.jit(corrupt.zero_pixels, static_argnums=2)


@pytest.mark.parametrize("percent", [1, 2, 3, 4])
def test_whole_pixels_fall_exactly_so_many_of_each_image(percent):
    images = jnp.full((5, 10, 20, 3), 7, jnp.uint8)
    out = np.asarray(jitted(images, keys(5), percent))
    assert out.dtype == np.uint8
    black = np.all(out == 0, axis=-1)
    assert np.all(out[~black] == 7)
    assert black.sum((1, 2)).tolist() == [2 * percent] * 5
    assert len({image.tobytes() for image in black}) == 5


def test_the_number_is_the_nearest():
    assert [corrupt.zeroed_count(224 * 224, percent) for percent in (1, 2, 3, 4)] == [
        502, 1004, 1505, 2007,
    ]  # fmt: skip


def test_all_pixels_fall_alike_often():
    images = jnp.ones((4000, 2, 4, 1))
    fallen = np.asarray(jitted(images, keys(4000), 25.0))[..., 0] == 0
    expected, share = 4000 * 0.25, fallen.sum(0)
    # Each place varies as a binomial; the 8 add up to a constant, which leaves 7 degrees.
    statistic = np.sum((share - expected) ** 2 / (expected * 0.75)) * 7 / 8
    assert statistic < 24.3  # of chi-square with 7 degrees of freedom, 1 in 1000 lie beyond


def test_an_image_depends_on_its_own_key_alone():
    images = noise(4)
    whole = jitted(images, keys(4), 10)
    for i in (0, 3):
        np.testing.assert_array_equal(
            jitted(images[i : i + 1], keys(4)[i : i + 1], 10)[0], whole[i]
        )


def test_nothing_is_the_identity_and_everything_is_black():
    images = noise(2)
    assert corrupt.zero_pixels(images, keys(2), 0) is images
    assert not np.any(jitted(images, keys(2), 100))
    for percent in (-1, 100.5, float("nan")):
        with pytest.raises(ValueError, match="must be from 0 to 100"):
            corrupt.zero_pixels(images, keys(2), percent)
