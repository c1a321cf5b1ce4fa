"""Exact k-DPP draws against sums over all sets; the authors' marginals are in the oracles."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dppmask_jax import dpp
from dppmask_jax.dpp import exact

DRAWS = 6000


@functools.cache
def drawer(k, draws=DRAWS):
    keys = jax.random.split(jax.random.key(11), draws)
    draw = jax.vmap(
        lambda key, kernel, size: dpp.sample_exact(key, kernel, k, size=size), (0, None, None)
    )
    return jax.jit(lambda kernel, size=k: draw(keys, jnp.asarray(kernel, jnp.float32), size))


def gram(seed, items, rank):
    factor = np.random.default_rng(seed).normal(size=(items, rank))
    return factor @ factor.T


def set_probabilities(kernel, k):
    """{set: probability} by all determinants, float64."""
    sets = list(itertools.combinations(range(len(kernel)), k))
    found = np.array([max(np.linalg.det(kernel[np.ix_(one, one)]), 0.0) for one in sets])
    return sets, found / found.sum()


def assert_drawn_from(sets, chances, draws):
    """Chi-square at 1e-3 over the sets; those of less than five expected draws are one cell."""
    place = {one: i for i, one in enumerate(sets)}
    counts = np.bincount([place[tuple(sorted(d))] for d in draws.tolist()], minlength=len(sets))
    expected = chances * len(draws)
    assert not counts[expected < 1e-6 * len(draws)].any()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("rank", [7, 4])
def test_sets_are_as_frequent_as_their_determinants(rank):
    kernel = 1e4 * gram(rank, 7, rank)
    assert_drawn_from(*set_probabilities(kernel, 3), np.asarray(drawer(3)(kernel)))


def test_a_smaller_size_is_drawn_as_exactly_and_filled_at_random():
    kernel = gram(5, 7, 7)
    draws = np.asarray(drawer(3)(kernel, jnp.int32(2)))
    assert_drawn_from(*set_probabilities(kernel, 2), draws[:, :2])
    rest = [sorted(set(range(7)) - set(d[:2])).index(d[2]) for d in draws.tolist()]
    assert stats.chisquare(np.bincount(rest, minlength=5)).pvalue > 1e-3


def test_beyond_the_rank_the_rest_is_drawn_at_random():
    kernel = np.zeros((7, 7))
    kernel[:4, :4] = gram(6, 4, 2)
    draws = np.asarray(drawer(3)(kernel))
    assert all(len(set(d)) == 3 for d in draws.tolist())
    assert_drawn_from(*set_probabilities(kernel[:4, :4], 2), draws[:, :2])
    rest = [sorted(set(range(7)) - set(d[:2])).index(d[2]) for d in draws.tolist()]
    assert stats.chisquare(np.bincount(rest, minlength=5)).pvalue > 1e-3
    draws = np.asarray(drawer(3)(np.zeros((7, 7))))
    assert_drawn_from(list(itertools.combinations(range(7), 3)), np.full(35, 1 / 35), draws)


def test_an_item_of_nan_is_drawn_last():
    kernel = gram(7, 7, 7)
    kernel[2] = kernel[:, 2] = np.nan
    draws = np.asarray(drawer(3)(kernel))
    assert not np.any(draws == 2)
    healthy = np.delete(np.delete(kernel, 2, 0), 2, 1)
    assert_drawn_from(*set_probabilities(healthy, 3), draws - (draws > 2))


@pytest.mark.parametrize("k", [49, 98])
def test_eigenvectors_of_a_large_kernel_are_kept_as_in_float64(k):
    """The polynomials themselves pass what float32 holds; chances come from their ratios."""
    values = np.sort(np.random.default_rng(0).lognormal(-2, 2, 196))
    values = np.float32(values / values[-1])
    table = np.full((k + 1, 197), -np.inf)
    table[0] = 0.0
    for n, value in enumerate(np.float64(values)):
        table[1:, n + 1] = np.logaddexp(table[1:, n], np.log(value) + table[:-1, n])
    uniform = np.random.default_rng(1).random((20, 196)).astype(np.float32)
    keep = jax.jit(jax.vmap(lambda u: exact._keep_vectors(k, values, u, k)))
    for found, drawn in zip(np.asarray(keep(uniform)), uniform, strict=True):
        left, expected = k, np.zeros(196, bool)
        for n in range(195, -1, -1):
            if left:
                chance = np.exp(np.log(values[n]) + table[left - 1, n] - table[left, n + 1])
                assert abs(chance - drawn[n]) > 1e-5, "another seed: this one is on the edge"
                expected[n] = drawn[n] < chance
                left -= expected[n]
        assert found.sum() == k and np.array_equal(found, expected)


@pytest.mark.slow
def test_draws_of_many_patches_differ_from_each_other_and_are_reproducible():
    features = np.random.default_rng(2).normal(size=(2, 40, 24)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    kernels = jax.vmap(dpp.gaussian_kernel)(features)
    draw = lambda key, kernel: dpp.sample_exact(key, kernel, 20)  # noqa: E731
    together = np.asarray(jax.jit(jax.vmap(draw))(keys, kernels))
    assert together.dtype == np.int32 and all(len(set(one)) == 20 for one in together.tolist())
    assert np.array_equal(jax.jit(draw)(keys[0], kernels[0]), together[0])
    values, vectors = exact._eigen(kernels)
    uniform = [
        jax.random.uniform(k, (n,))
        for k, n in zip(jax.random.split(keys[0]), (40, 20), strict=True)
    ]
    alone = exact._sample(20, values[0], vectors[0], *uniform, 20)
    assert np.array_equal(alone, together[0]), "the form that GPU and TPU run"


def test_bad_arguments():
    key, kernel = jax.random.key(0), jnp.eye(5)
    for k in (0, 6, 2.0):
        with pytest.raises(ValueError, match=r"k must be an int in 1\.\.5"):
            dpp.sample_exact(key, kernel, k)
    with pytest.raises(ValueError, match=r"kernel must be \(N, N\)"):
        dpp.sample_exact(key, kernel[None], 2)
    with pytest.raises(ValueError, match="kernel must be real"):
        dpp.sample_exact(key, kernel * 1j, 2)
    with pytest.raises(ValueError, match="k is static"):
        jax.jit(dpp.sample_exact)(key, kernel, 2)
