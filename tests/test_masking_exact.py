import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dppmask_jax import dpp, masking
from dppmask_jax.masking.exact_dpp import exact


@functools.cache
def drawer(num_keep=None):
    return jax.jit(
        lambda keys, features, counts: jax.vmap(
            lambda key, one, count: exact(key, one, count, num_keep=num_keep)
        )(keys, features, counts)
    )


def test_visible_patches_are_draws_of_the_process_for_counts_that_differ():
    features = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    keys, many = jax.random.split(jax.random.key(0), 6000), (6000, 8, 3)
    counts = np.resize([2, 3, 8], 6000)
    mask = drawer(3)(keys, np.broadcast_to(features, many), counts)
    assert np.array_equal(np.sort(mask.order, axis=1), np.broadcast_to(np.arange(8), (6000, 8)))
    assert np.array_equal(np.sum(~np.asarray(mask.mask), axis=1), counts)
    kernel = np.float64(dpp.gaussian_kernel(features))
    pairs = np.array([(i, j) for i in range(8) for j in range(i)])
    chances = 1 - kernel[pairs[:, 0], pairs[:, 1]] ** 2
    visible = ~np.asarray(mask.mask)[counts == 2]
    found = np.sum(visible[:, pairs[:, 0]] & visible[:, pairs[:, 1]], axis=0)
    expected = chances / chances.sum() * len(visible)
    assert stats.chisquare(found, expected).pvalue > 1e-3
    assert stats.chisquare(found).pvalue < 1e-3, "at random they would all be as likely"


def test_a_mask_is_a_function_of_its_own_key_in_the_dict_as_well():
    features = np.random.default_rng(1).normal(size=(4, 16, 6)).astype(np.float32)
    mask = masking.export_masks(
        np.zeros((4, 64, 64, 3), np.uint8), strategy="exact", ratio=0.5, features=features, seed=3
    )
    assert np.all(mask.count == 8) and np.all(mask.mask.sum(axis=1) == 8)
    last = masking.export_masks(
        np.zeros((1, 64, 64, 3), np.uint8), strategy="exact", ratio=0.5, features=features[3:],
        seed=3, start_index=3,
    )  # fmt: skip
    assert np.array_equal(last.order[0], mask.order[3])


def test_bad_arguments():
    key, features = jax.random.key(0), jnp.eye(4)
    for count in (0, 5):
        with pytest.raises(ValueError):
            exact(key, features, count, num_keep=4)
    with pytest.raises(ValueError, match="kernel must be"):
        exact(key, features, 2, kernel="nosuch")
    with pytest.raises(ValueError, match="a traced count needs num_keep"):
        jax.jit(lambda count: exact(key, features, count))(2)
