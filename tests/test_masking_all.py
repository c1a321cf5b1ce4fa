"""What holds for every strategy: exact counts, and the same masks however they are drawn."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax import masking
from dppmask_jax.errors import InputError

DRAWS = 16  # in a batch
DEFAULTS = {
    name.removeprefix("mask."): field.default
    for kind in masking.MASKERS.values()
    for name, field in kind.fields.items()
}
CASES = {
    " ".join([name, *map(str, variant.values())]): (name, dict(variant))
    for name, kind in masking.MASKERS.items()
    for variant in kind.variants
}
FIRST = {name: case for case, (name, _) in reversed(CASES.items())}


def masker_of(case):
    name, variant = CASES[case]
    return masking.MASKERS[name].build(SimpleNamespace(**DEFAULTS | {"ratio": 0.75} | variant))


def can_show(case, grid, count):
    """Whether a strategy has masks with so many visible patches."""
    name, variant = CASES[case]
    check = masking.MASKERS[name].check_counts
    hidden = grid[0] * grid[1] - count
    try:
        if check:
            check(SimpleNamespace(**DEFAULTS | variant), grid, hidden, hidden)
    except InputError:
        return False
    return True


def inputs(grid, counts):
    """What any strategy may ask for, of a batch: arrays by their names in `Seen`."""
    rng, num_patches = np.random.default_rng(0), grid[0] * grid[1]
    # Images that all look alike are among them.
    features = rng.normal(size=(DRAWS, num_patches, 8)) * (np.arange(DRAWS) % 4 > 0)[:, None, None]
    counts = np.broadcast_to(counts, DRAWS)
    order = np.argsort(rng.random((DRAWS, num_patches)), axis=1)
    return {
        "features": features.astype(np.float32),
        "attention": rng.random((DRAWS, 2, num_patches), np.float32),
        "hardness": rng.random((DRAWS, num_patches), np.float32),
        "parts": rng.integers(0, 3, (DRAWS, num_patches), np.int32),
        "proposed": order >= counts[:, None],
    }


def draw(masker, grid, keys, count, most, shown):
    """The Mask of a batch; `shown` has a leading axis of its size."""
    seen = masking.Seen(grid, 0.5, 3, **{name: (lambda x=x: x) for name, x in shown.items()})
    return masker.draw(keys, count, seen, most)[0]


def check(mask, count):
    """A mask is consistent and has `count` (() or (B,)) visible patches; returns how many are
    thrown away in each image."""
    order, masked = np.asarray(mask.order), np.asarray(mask.mask)
    batch, num_patches = order.shape
    count = np.broadcast_to(count, batch)
    thrown = np.zeros_like(masked) if mask.thrown is None else np.asarray(mask.thrown)
    assert (order.dtype, masked.dtype, mask.count.dtype) == (np.int32, np.bool_, np.int32)
    np.testing.assert_array_equal(mask.count, count)
    np.testing.assert_array_equal(np.sort(order), np.tile(np.arange(num_patches), (batch, 1)))
    assert not (masked & thrown).any()
    place = np.argsort(order, axis=1)
    np.testing.assert_array_equal(~(masked | thrown), place < count[:, None])
    np.testing.assert_array_equal(thrown, place >= num_patches - thrown.sum(axis=1)[:, None])
    return thrown.sum(axis=1)


@pytest.mark.parametrize("case", CASES)
def test_counts_are_exact(case):
    grid, masker = (3, 5), masker_of(case)
    counts = [n for n in (1, 6, 14) if can_show(case, grid, n)]
    assert counts

    @jax.jit
    def all_counts(keys, shown):
        return [draw(masker, grid, keys, n, n, each) for n, each in zip(counts, shown, strict=True)]

    keys = jax.random.split(jax.random.key(1), DRAWS)
    drawn = all_counts(keys, [inputs(grid, count) for count in counts])
    # Hints are shown in addition: here one, of the 10 % with most attention.
    hints = 1 if case == "attention hint" else 0
    for count, mask in zip(counts, drawn, strict=True):
        assert len(set(check(mask, count + hints).tolist())) == 1, (
            "how many are thrown away is static"
        )


@functools.cache
def drawn_at_once(name):
    """(function of keys, counts and what is shown; its arguments, the masks of all images)."""
    masker, keys = masker_of(FIRST[name]), jax.random.split(jax.random.key(2), DRAWS)
    # A view without any masked patch has all of them visible.
    counts = np.int32([1, 3, 6, 12, 24, 11])[np.arange(DRAWS) % 6]

    def step(keys, counts, shown):
        return draw(masker, (4, 6), keys, counts, 12, shown)

    arguments = keys, counts, inputs((4, 6), counts)
    return step, arguments, jax.device_get(jax.jit(step)(*arguments))


def same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", FIRST)
def test_counts_that_are_traced_are_exact_and_a_mask_is_of_its_image_alone(name):
    step, arguments, whole = drawn_at_once(name)
    check(whole, arguments[1])
    one = jax.jit(step)
    for i in (2, 5):
        alone = one(*jax.tree.map(lambda x, i=i: x[i : i + 1], arguments))
        same(alone, jax.tree.map(lambda x, i=i: x[i : i + 1], whole))
    assert len({row.tobytes() for row in whole.mask}) > 4


@pytest.mark.parametrize("name", FIRST)
def test_masks_are_the_same_on_several_devices(name):
    assert jax.local_device_count() == 4
    step, arguments, whole = drawn_at_once(name)
    split = jax.tree.map(lambda x: jnp.reshape(x, (4, DRAWS // 4, *x.shape[1:])), arguments)
    each = jax.device_get(jax.pmap(step)(*split))
    same(jax.tree.map(lambda x: x.reshape(DRAWS, *x.shape[2:]), each), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
def test_masks_are_the_same_in_a_sharded_batch_and_without_jit(name):
    step, arguments, whole = drawn_at_once(name)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("batch",))
    over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    # XLA partitions an eigendecomposition with collectives, and on a CPU with fewer cores than
    # devices these can wait for one another for ever. shard_map has none.
    if name != "exact":
        same(jax.jit(step)(*jax.device_put(arguments, over)), whole)
    same(step(*arguments), whole)
