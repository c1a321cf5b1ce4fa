import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.data.images import mixing

OTHER = [1, 0, 3, 2, 5, 4]


def batch(size=6, height=10, width=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(size, height, width, 3)).astype(np.float32)
    return images, np.eye(size, dtype=np.float32)


def mixed(images, targets, seed, **options):
    out = mixing.mix(jnp.asarray(images), jnp.asarray(targets), jax.random.key(seed), **options)
    return map(np.asarray, out)


def test_smoothed_targets_by_hand():
    out = mixing.smooth_one_hot(jnp.array([1, 3]), 4, 0.1)
    np.testing.assert_allclose(out, [[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]])
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(mixing.smooth_one_hot(jnp.array([2]), 3, 0.0), [[0, 0, 1]])


def test_mixup_blends_neighbours():
    images, targets = batch()
    found = []
    for seed in range(8):
        out, soft = mixed(images, targets, seed, cutmix=0.0)
        share = soft[0, 0]
        np.testing.assert_allclose(soft, share * targets + (1 - share) * targets[OTHER], rtol=1e-6)
        expected = share * images + (1 - share) * images[OTHER]
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
        found.append(share)
    assert len(set(found)) == 8 and min(found) >= 0 and max(found) <= 1


def test_cutmix_pastes_the_neighbours_box():
    images, targets = batch()
    areas = []
    for seed in range(20):
        out, soft = mixed(images, targets, seed, mixup=0.0)
        own, other = (np.all(out == those, axis=-1) for those in (images, images[OTHER]))
        assert np.all(own != other)
        assert np.all(other == other[0])  # one box for all
        rows, columns = other[0].any(1), other[0].any(0)
        np.testing.assert_array_equal(other[0], rows[:, None] & columns)
        for line in (rows, columns):
            assert line.sum() == 0 or np.all(np.diff(np.flatnonzero(line)) == 1)
        share = 1 - other[0].sum() / 80
        np.testing.assert_allclose(soft, share * targets + (1 - share) * targets[OTHER], atol=1e-6)
        areas.append(other[0].sum())
    assert len(set(areas)) > 5


@functools.partial(jax.jit, static_argnames=("mixup", "cutmix"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def _mix_black_and_white(key, mixup, cutmix, switch_prob):
    pair = jnp.stack([jnp.zeros((16, 16, 3)), jnp.ones((16, 16, 3))])
    options = {"mixup": mixup, "cutmix": cutmix, "switch_prob": switch_prob}
    out, soft = mixing.mix(pair, jnp.eye(2), key, **options)
    return soft[0, 0], jnp.all((out == 0) | (out == 1))


def shares(mixup=0.8, cutmix=1.0, switch_prob=0.5):
    """(4000,) share of the own image, and whether the other was pasted (not blended)."""
    keys = jax.random.split(jax.random.key(3), 4000)
    return map(np.asarray, _mix_black_and_white(keys, mixup, cutmix, switch_prob))


@pytest.mark.parametrize("alpha", [0.8, 0.2])
def test_mixup_shares_are_beta(alpha):
    share, pasted = shares(mixup=alpha, cutmix=0.0)
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    assert pasted.mean() < 0.1  # a share rounded to 0 or 1


def test_cutmix_shares_are_those_of_boxes_drawn_by_numpy():
    share, pasted = shares(mixup=0.0)
    assert pasted.all()
    rng = np.random.default_rng(0)
    side = (16 * np.sqrt(1 - rng.uniform(size=20_000))).astype(int)
    area = np.ones(20_000)
    for _ in range(2):
        centre = rng.integers(16, size=20_000)
        area *= np.minimum(centre - side // 2 + side, 16) - np.maximum(centre - side // 2, 0)
    expected = 1 - area / 256
    assert share.mean() == pytest.approx(expected.mean(), abs=0.015)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(share, q) == pytest.approx(np.quantile(expected, q), abs=0.04)


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_either_of_the_two(prob):
    _, pasted = shares(switch_prob=prob)
    assert pasted.mean() == pytest.approx(prob, abs=0.05)


def test_neither_of_the_two():
    images, targets = batch()
    out, soft = mixed(images, targets, 0, mixup=0.0, cutmix=0.0)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(soft, targets)


def test_parts_of_a_batch_are_mixed_as_the_whole():
    images, targets = batch(size=8)
    for seed in range(6):
        whole = list(mixed(images, targets, seed))
        parts = [list(mixed(images[i : i + 2], targets[i : i + 2], seed)) for i in (0, 2, 4, 6)]
        for i in range(2):
            np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))


def test_types_stay():
    images, targets = batch()
    out, soft = mixing.mix(jnp.asarray(images, jnp.bfloat16), targets, jax.random.key(0))
    assert out.dtype == jnp.bfloat16 and soft.dtype == jnp.float32


def test_odd_batches_are_refused():
    images, targets = batch(size=3)
    with pytest.raises(ValueError, match="3 images cannot be mixed in pairs"):
        mixing.mix(images, targets, jax.random.key(0))
