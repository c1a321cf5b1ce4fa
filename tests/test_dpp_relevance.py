"""Greedy selection with a quality for each patch; the authors' orders are in the oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_dpp as reference

from dppmask_jax import dpp
from dppmask_jax.dpp import greedy, picks

NUM_KEEP = 12


def make(seed, num_patches=24, width=5):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_patches, width)).astype(np.float32)
    return features, rng.uniform(0.3, 3.0, num_patches).astype(np.float32)


def written_out(matrix, noise, quality, tau, tie=1e-9):
    """By the definition: determinants of the weighted kernel, float64."""
    quality = np.float64(quality)
    weighted, chosen = quality[:, None] * matrix * quality, []
    while len(chosen) < NUM_KEEP and tau < 1:
        gain = reference.gains(weighted, chosen)
        gain = np.where(gain / quality**2 >= tau, gain, -np.inf)
        if np.isneginf(gain.max()):
            break
        tied = np.flatnonzero(gain >= gain.max() - tie)
        chosen.append(int(tied[np.argmin(noise[tied])]))
    return chosen + [int(i) for i in np.argsort(noise, kind="stable") if i not in chosen], len(
        chosen
    )


@functools.cache
def chooser(form):
    def serial(key, features, quality, tau):
        return dpp.select(key, features, NUM_KEEP, tau, quality=quality)

    def kernels(key, features, quality, tau):
        noise = jax.random.uniform(key, (len(features),))
        kernel = dpp.gaussian_kernel(features)
        return dpp.greedy_order(kernel, noise, NUM_KEEP, tau, quality=quality)

    def batched(key, features, quality, tau):
        noise = jax.random.uniform(key, (1, len(features)))
        (weights,) = greedy._weights(quality, len(features))
        limit, ones = greedy._limit(tau, "d2")[None], jnp.ones(1)
        given = (noise, limit, features[None], ones, weights[None])
        order, count = picks.batched_from_features(NUM_KEEP, "gaussian", *given)
        return order[0], count[0]

    forms = {"serial": serial, "kernels": kernels, "batched": batched}
    return jax.jit(forms[form.partition(",")[0]])


@pytest.mark.parametrize("form", ["serial", "kernels", "batched", "batched, many patches"])
def test_picks_are_those_of_the_weighted_kernel_written_out(form, monkeypatch):
    if form == "batched, many patches":
        monkeypatch.setattr(picks, "_FEW_PATCHES", 16)
        monkeypatch.setattr(picks, "_MAX_ROWS", 4)
    stopped = passed_over = 0
    for seed, tau in enumerate((0.0, 0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 1.0)):
        key, (features, quality) = jax.random.key(seed), make(seed)
        noise = np.asarray(jax.random.uniform(key, (24,)))
        matrix = reference.kernel_matrix(features)
        order, count = written_out(matrix, noise, quality, tau)
        found, num_greedy = chooser(form)(key, features, quality, tau)
        assert num_greedy == count and np.array_equal(found, order), tau
        stopped += 1 < count < NUM_KEEP
        if count:
            assert found[0] == np.argmax(quality)
            gain = reference.gains(matrix * np.outer(quality, quality), order[: count - 1])
            passed_over += order[count - 1] != np.argmax(gain)
    assert stopped >= 2 and passed_over >= 1


def test_a_relevant_twin_is_passed_over_and_does_not_end_the_selection():
    features = np.eye(6, dtype=np.float32)
    features[1] = features[0]
    quality = np.float32([5, 4, 1, 2, 0.5, 0])
    order, num_greedy = dpp.select(jax.random.key(0), features, 6, 0.5, quality=quality)
    assert list(order[:4]) == [0, 3, 2, 4] and num_greedy == 5, "5 of no quality comes last"
    assert order[4] == 5 and order[5] == 1


def test_only_ratios_of_qualities_count_and_equal_ones_change_nothing():
    key, (features, quality) = jax.random.key(3), make(3)
    choose = jax.jit(lambda q: dpp.select(key, features, NUM_KEEP, 0.6, quality=q))
    expected = np.asarray(choose(quality)[0])
    for scale in (2.0**-40, 2.0**70):
        assert np.array_equal(choose(quality * np.float32(scale))[0], expected)
    plain = dpp.select(key, features, NUM_KEEP, 0.6)
    for one, other in zip(choose(np.full(24, 0.7, np.float32)), plain, strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(expected, plain[0])


def test_qualities_that_are_none():
    key, (features, quality) = jax.random.key(4), make(4)
    for bad in (-1.0, np.nan, np.inf):
        spoilt = quality.copy()
        spoilt[7] = bad
        with pytest.raises(ValueError, match="quality must be finite and 0 or more"):
            dpp.select(key, features, NUM_KEEP, 0.0, quality=spoilt)
        order, _ = chooser("serial")(key, features, spoilt, 0.0)
        assert 7 not in order[:NUM_KEEP] and sorted(order) == list(range(24))
    with pytest.raises(ValueError, match=r"quality must be \(24,\), got \(3,\)"):
        dpp.select(key, features, NUM_KEEP, quality=quality[:3])
    order, num_greedy = dpp.select(key, features, NUM_KEEP, 0.0, quality=np.zeros(24))
    assert num_greedy == NUM_KEEP and order[0] == np.argmin(jax.random.uniform(key, (24,)))
