import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import stats

from dppmask_jax import dpp

pytestmark = oracles.MARKS
DRAWS = 20000


@pytest.mark.parametrize("case", "abc")
def test_greedy_orders(case):
    oracle = oracles.load("greedy_map")
    features, quality = oracle[f"{case}_features"], oracle[f"{case}_quality"]
    first = np.arange(len(features)) / len(features)  # ties go to the first index, as theirs do
    kernel = dpp.gaussian_kernel(features)
    for name, weights in (("unit", None), ("quality", quality)):
        expected = oracle[f"{case}_order_{name}"]
        order, count = dpp.greedy_order(kernel, first, len(expected), 0.0, quality=weights)
        assert count == len(expected)
        oracles.same(f"greedy_map, {case}, {name}", order[: len(expected)], expected)


def test_greedy_order_of_low_rank():
    oracle = oracles.load("greedy_map")
    expected, features = oracle["lowrank_order_asked12"], oracle["lowrank_features"]
    order, count = dpp.greedy_order(dpp.cosine_kernel(features), np.arange(20) / 20, 12, 1e-6)
    oracles.same("greedy_map, rank 5", order[:count], expected)


def test_exact_draws():
    oracle = oracles.load("kdpp")
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draw = jax.jit(jax.vmap(lambda key, kernel: dpp.sample_exact(key, kernel, 4), (0, None)))
    for name in ("gaussian", "weighted", "duplicate"):
        sets = np.asarray(draw(keys, jnp.asarray(oracle[f"{name}_kernel"], jnp.float32)))
        chosen = np.zeros((DRAWS, 12))
        np.put_along_axis(chosen, sets, 1.0, axis=1)
        assert (chosen.sum(axis=1) == 4).all(), "four different items"
        single, pairs = oracle[f"{name}_marginals_k4"], oracle[f"{name}_pair_marginals_k4"].copy()
        np.fill_diagonal(pairs, single)
        # Counts of items depend on each other: their covariance is what the pairs say.
        excess = chosen.sum(axis=0) - DRAWS * single
        covariance = DRAWS * (pairs - np.outer(single, single))
        inverse, rank = np.linalg.pinv(covariance, rcond=1e-6, hermitian=True), 11
        bound = stats.chi2.isf(1e-3, rank)
        oracles.below(f"kdpp, {name}, chi-square of items", excess @ inverse @ excess, bound)
        upper = np.triu_indices(12, 1)
        counts, chances = (chosen.T @ chosen)[upper], pairs[upper]
        assert not counts[chances < 1e-12].any(), "twins never come together"
        counts, chances = counts[chances > 1e-12], chances[chances > 1e-12]
        spread = np.sqrt(DRAWS * chances * (1 - chances))
        bound = stats.norm.isf(1e-3 / 2 / len(counts))  # of all pairs together
        error = np.max(np.abs(counts - DRAWS * chances) / spread)
        oracles.below(f"kdpp, {name}, deviates of pairs", error, bound)
