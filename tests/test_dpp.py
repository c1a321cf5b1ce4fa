import functools
import itertools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_dpp as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dppmask_jax import dpp
from dppmask_jax.dpp import greedy, picks

KERNELS = {
    "gaussian": dpp.gaussian_kernel,
    "cosine": lambda features, _: dpp.cosine_kernel(features),
}


# Called without jit here: what is compiled is kept per shape and count, so that tests share it. The
# tests of transformations call them under jit.
select, greedy_order = dpp.select, dpp.greedy_order
orders_from_kernels = jax.jit(picks.batched_from_kernels, static_argnums=0)
orders_from_features = jax.jit(picks.batched_from_features, static_argnums=(0, 1))


def noise_of(key, num_patches):
    return np.asarray(jax.random.uniform(key, (num_patches,), jnp.float32))


def make_features(seed, batch, num_patches, width, common=0.0):
    """Normal features; `common` adds a shared direction, which makes patches more alike."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(batch, num_patches, width))
    return (features + common * rng.normal(size=(batch, 1, width))).astype(np.float32)


def make_batch(seed, batch=12, num_patches=24, width=6, common=1.0):
    keys = jax.random.split(jax.random.key(seed), batch)
    return keys, make_features(seed, batch, num_patches, width, common)


def one_by_one(keys, features, num_keep, tau, **options):
    """`select` of each image by itself, by the reference; exact because gains are well apart."""
    pairs = [
        reference.brute_force_order(
            reference.kernel_matrix(image), noise_of(key, len(image)), num_keep, tau, **options
        )
        for key, image in zip(keys, features, strict=True)
    ]
    return np.stack([order for order, _ in pairs]), np.array([count for _, count in pairs])


# The kernel.


@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 5.0])
def test_kernel_follows_its_definition(kernel, bandwidth):
    features = make_features(0, 1, 30, 7, 0.5)[0]
    features[3] = 0.0
    features[4] = features[5]
    features[6] = -features[5]
    got = np.asarray(KERNELS[kernel](features, bandwidth))
    want = reference.kernel_matrix(features, kernel, bandwidth)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-6)
    assert np.array_equal(got, got.T)
    assert np.all(np.diag(got) == 1.0)


def test_gaussian_kernel_is_psd_with_entries_in_range():
    features = make_features(1, 1, 196, 768, 1.0)[0]
    kernel = np.asarray(dpp.gaussian_kernel(features))
    assert np.linalg.eigvalsh(kernel.astype(np.float64)).min() > 0
    assert kernel.min() >= np.exp(-4) - 1e-6 and kernel.max() == 1.0
    opposite = np.stack([features[0], -features[0]])
    np.testing.assert_allclose(dpp.gaussian_kernel(opposite)[0, 1], np.exp(-4), rtol=1e-5)


def test_orthogonal_patches_have_the_gains_of_the_closed_form():
    # m orthogonal picks leave 1 - m r^2 / (1 + (m - 1) r) with r = exp(-2).
    r = np.exp(-2)
    kernel = np.asarray(dpp.gaussian_kernel(np.eye(60, dtype=np.float32) * 7))
    for m, gain in [(1, 0.982), (5, 0.941), (10, 0.917), (18, 0.900), (48, 0.881)]:
        np.testing.assert_allclose(reference.gains(kernel, range(m)).max(), gain, atol=6e-4)
        exact = 1 - m * r**2 / (1 + (m - 1) * r)
        for tau, more in [(exact - 1e-4, True), (exact + 1e-4, False)]:
            num_greedy = greedy_order(kernel, noise_of(jax.random.key(m), 60), 49, tau)[1]
            assert (int(num_greedy) > m) == more


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_any_dtype_is_computed_in_float32(dtype):
    values = np.random.default_rng(2).integers(0, 256, (24, 6))
    features = jnp.asarray(values, dtype)
    as_float32 = features.astype(jnp.float32)
    kernel = dpp.gaussian_kernel(features)
    assert kernel.dtype == jnp.float32
    assert np.array_equal(kernel, dpp.gaussian_kernel(as_float32))
    key = jax.random.key(0)
    for got, want in zip(
        select(key, features, 9, 0.5), select(key, as_float32, 9, 0.5), strict=True
    ):
        assert got.dtype == jnp.int32 and np.array_equal(got, want)


def test_every_product_asks_for_full_precision():
    keys, features = make_batch(3)
    choose = jax.jit(jax.vmap(lambda key, image: dpp.select(key, image, 5, 0.5)))
    products = 0
    for platform in ("tpu", "cuda", "cpu"):
        text = choose.trace(keys, features).lower(lowering_platforms=(platform,)).as_text()
        for line in text.splitlines():
            if "dot_general" in line:
                products += 1
                assert "precision = [HIGHEST, HIGHEST]" in line, line
    assert products >= 6


# One image against the definition.


@pytest.mark.parametrize("threshold_on", ["d2", "d"])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.6, 0.8, 0.95, 0.9999])
def test_matches_brute_force_in_float64(tau, threshold_on):
    keys, features = make_batch(4)
    order, num_greedy = jax.vmap(
        lambda key, image: select(key, image, 10, tau, threshold_on=threshold_on)
    )(keys, features)
    want_order, want_greedy = one_by_one(keys, features, 10, tau, threshold_on=threshold_on)
    assert np.array_equal(num_greedy, want_greedy)
    assert np.array_equal(order, want_order)


def test_every_pick_is_the_brute_force_argmax_of_log_det():
    keys, features = make_batch(5)
    for key, image in zip(keys, features, strict=True):
        kernel = reference.kernel_matrix(image)
        order = np.asarray(select(key, image, 10, 0.0)[0])
        for m in range(1, 10):
            rest = [i for i in range(24) if i not in order[:m]]
            values = [reference.log_det(kernel, [*order[:m], i]) for i in rest]
            assert rest[int(np.argmax(values))] == order[m]


def test_cosine_and_bandwidth_reach_the_loop():
    keys, features = make_batch(6, width=40)
    for options in ({"kernel": "cosine"}, {"bandwidth": 0.2}, {"bandwidth": 4.0}):
        for key, image in zip(keys[:4], features[:4], strict=True):
            kernel = reference.kernel_matrix(image, **options)
            for tau in (0.0, 0.3, 0.75):
                got = select(key, image, 10, tau, **options)
                reference.check_order(kernel, noise_of(key, 24), 10, tau, *got)


# 300: more patches than one integer sorts, and at 0.72 more picks than are made row by row.
@pytest.mark.parametrize(("num_patches", "width"), [(60, 30), (300, 100)])
def test_select_equals_kernel_then_greedy_order(num_patches, width):
    keys, features = make_batch(7, num_patches=num_patches, width=width)
    counts = []
    for tau in (0.0, 0.5, 0.72, 0.9):
        got = jax.vmap(lambda key, image, tau=tau: select(key, image, 20, tau))(keys, features)
        kernels = jax.vmap(dpp.gaussian_kernel)(features)
        noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
        want = jax.vmap(lambda k, u, tau=tau: greedy_order(k, u, 20, tau))(kernels, noise)
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])
        limits, ones = jnp.full(len(keys), tau), jnp.ones(len(keys))
        for form in (
            orders_from_kernels(20, kernels, noise, limits),
            orders_from_features(20, "gaussian", noise, limits, jnp.asarray(features), ones),
        ):
            assert np.array_equal(form[0], want[0]) and np.array_equal(form[1], want[1])
        counts.append(int(got[1].max()))
    if num_patches == 300:
        assert counts[2] > picks._MAX_ROWS > counts[3]


@pytest.mark.parametrize("num_patches", [257, 1024, 2**13])
def test_sorting_of_integers_is_that_by_place_then_noise_then_index(num_patches):
    rng = np.random.default_rng(num_patches)
    place = np.full(num_patches, num_patches // 4, np.int32)
    made = rng.permutation(num_patches)[: num_patches // 4]
    place[made] = np.arange(len(made))
    drawn = noise_of(jax.random.key(num_patches), num_patches)
    with_ties = np.float32(rng.integers(0, 2**23, num_patches) // 2**18 * 2.0**-5)
    for noise in (drawn, with_ties, with_ties - 0.5):  # the last are no draws of [0, 1)
        got = picks._ordered_on_cpu(jnp.asarray(place), jnp.asarray(noise))
        assert np.array_equal(got, np.lexsort((np.arange(num_patches), noise, place)))


def test_factor_is_the_cholesky_factor_and_gains_add_up_to_log_det():
    features = make_features(8, 1, 30, 20, 1.0)[0]
    kernel = dpp.gaussian_kernel(features)
    noise = jax.random.uniform(jax.random.key(8), (30,))
    state = picks._start(jnp.diagonal(kernel), 12)
    state = picks._loop(0, 12, state, noise, 0.0, lambda j, _: kernel[j])
    place, factor = np.asarray(state.place), np.asarray(state.factor, np.float64)
    made = np.argsort(place)[:12]
    assert list(place[made]) == list(range(12))
    lower = np.tril(factor[:, made].T, -1)
    gain = 1.0 - (lower**2).sum(axis=1)
    cholesky = lower + np.diag(np.sqrt(gain))
    matrix = np.asarray(kernel, np.float64)
    np.testing.assert_allclose(cholesky @ cholesky.T, matrix[np.ix_(made, made)], atol=1e-5)
    np.testing.assert_allclose(np.log(gain).sum(), reference.log_det(matrix, made), atol=1e-4)
    assert np.all(np.diff(gain) <= 1e-6)  # gains never grow
    assert gain.min() >= np.linalg.eigvalsh(matrix).min() - 1e-6 and gain.max() <= 1


def test_greedy_reaches_the_guarantee_of_shifted_submodular_maximisation():
    # log det itself is negative and decreasing here; with k c added it is monotone.
    for seed in range(6):
        features = make_features(seed, 1, 9, 4, 1.0)[0]
        kernel = reference.kernel_matrix(features)
        shift = 3 * max(0.0, -np.log(np.linalg.eigvalsh(kernel).min()))
        greedy = select(jax.random.key(seed), features, 3, 0.0)[0][:3]
        sets = itertools.combinations(range(9), 3)
        best = max(reference.log_det(kernel, list(chosen)) for chosen in sets)
        assert reference.log_det(kernel, greedy) + shift >= (1 - 1 / np.e) * (best + shift)


def test_second_pick_is_the_least_similar_patch():
    keys, features = make_batch(9)
    for key, image in zip(keys, features, strict=True):
        order = np.asarray(select(key, image, 10, 0.0)[0])
        assert order[0] == np.argmin(noise_of(key, 24))
        assert order[1] == np.argmin(reference.kernel_matrix(image)[order[0]])


def test_permuting_patches_and_noise_together_permutes_the_answer():
    features = make_features(10, 1, 24, 6, 1.0)[0]
    noise = noise_of(jax.random.key(10), 24)
    permutation = np.random.default_rng(10).permutation(24)
    for tau in (0.0, 0.7, 1.0):
        order, num_greedy = greedy_order(dpp.gaussian_kernel(features), noise, 10, tau)
        moved, moved_greedy = greedy_order(
            dpp.gaussian_kernel(features[permutation]), noise[permutation], 10, tau
        )
        assert num_greedy == moved_greedy
        assert np.array_equal(permutation[np.asarray(moved)], order)


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
def test_scale_of_the_features_does_not_matter(factor):
    keys, features = make_batch(11)
    for tau in (0.0, 0.8):
        choose = jax.vmap(lambda key, image, tau=tau: select(key, image, 10, tau))
        for got, want in zip(
            choose(keys, features * np.float32(factor)), choose(keys, features), strict=True
        ):
            assert np.array_equal(got, want)


# tau.


@pytest.mark.parametrize("tau", [1.0, 1.5, np.inf, np.nan])
@pytest.mark.parametrize("bandwidth", [1e-3, 1.0])
def test_tau_from_one_on_is_argsort_of_the_noise_bit_for_bit(tau, bandwidth):
    # With a tiny bandwidth L is exactly the identity: later gains are exactly 1, and only an
    # explicit test of tau keeps them from being greedy picks.
    keys, features = make_batch(12)
    order, num_greedy = jax.vmap(
        lambda key, image: select(key, image, 10, jnp.float32(tau), bandwidth=bandwidth)
    )(keys, features)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (24,), jnp.float32))(keys)
    assert np.array_equal(order, jnp.argsort(noise, axis=1))
    assert np.all(np.asarray(num_greedy) == 0)


@pytest.mark.parametrize(
    "num_patches", [257, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 255, 256, 300))]
)
@pytest.mark.parametrize("draw", ["uniform", "normal", "ties", "zeros of both signs", "up to one"])
def test_any_noise_orders_the_fill(draw, num_patches):
    rng = np.random.default_rng(num_patches)
    noise = {
        "uniform": lambda: rng.integers(0, 2**23, num_patches) / 2**23,
        "normal": lambda: rng.normal(size=num_patches) * 1e3,
        "ties": lambda: rng.integers(0, 4, num_patches) / 4,
        "zeros of both signs": lambda: rng.choice([0.0, -0.0], num_patches),
        "up to one": lambda: rng.permutation(num_patches) / max(num_patches - 1, 1),
    }[draw]()
    noise = noise.astype(np.float32)
    features = rng.normal(size=(num_patches, 3)).astype(np.float32)
    num_keep = min(40, num_patches)
    kernel = dpp.gaussian_kernel(features)
    order, num_greedy = greedy_order(kernel, noise, num_keep, 0.3)
    picks = np.asarray(order[:num_greedy])
    assert 0 < num_greedy < num_keep or num_patches == 1
    by_noise = np.argsort(noise, kind="stable")
    assert np.array_equal(order[int(num_greedy) :], by_noise[~np.isin(by_noise, picks)])


@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
def test_tau_zero_picks_everything_greedily_even_when_the_kernel_is_singular(kernel):
    # 5 distinct patches of 40 in 3 dimensions: after a few picks all gains are rounding noise
    # around 0, and only the clamp keeps the negative ones eligible.
    few = make_features(13, 20, 5, 3)
    features = np.tile(few, (1, 8, 1))
    keys = jax.random.split(jax.random.key(13), 20)
    for tau in (0.0, jnp.float32(-0.5)):
        order, num_greedy = jax.vmap(
            lambda key, image, tau=tau: select(key, image, 30, tau, kernel=kernel)
        )(keys, features)
        assert np.all(np.asarray(num_greedy) == 30)
        assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(40), (20, 1)))
        if kernel == "gaussian":  # of rank 5: the 5 distinct patches come first
            assert all(len(set(row)) == 5 for row in np.asarray(order)[:, :5] % 5)


def test_higher_tau_stops_earlier_on_the_same_path():
    keys, features = make_batch(14, num_patches=60, width=30)
    taus = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0]
    results = [jax.vmap(lambda k, x, t=t: select(k, x, 20, t))(keys, features) for t in taus]
    greedy = np.stack([num for _, num in results])
    assert np.all(np.diff(greedy, axis=0) <= 0)
    assert len(set(greedy.mean(axis=1))) >= 5
    for i in range(len(keys)):
        for order, num in results:
            assert np.array_equal(order[i, : num[i]], results[0][0][i, : num[i]])


def test_fewer_patches_are_a_prefix_of_more():
    keys, features = make_batch(15, num_patches=60, width=30)
    for tau in (0.0, 0.6, 0.9):
        long, long_greedy = jax.vmap(lambda k, x, t=tau: select(k, x, 20, t))(keys, features)
        for num_keep in (1, 10):
            short, short_greedy = jax.vmap(lambda k, x, t=tau, n=num_keep: select(k, x, n, t))(
                keys, features
            )
            assert np.array_equal(short[:, :num_keep], long[:, :num_keep])
            assert np.array_equal(short_greedy, np.minimum(long_greedy, num_keep))


def test_tau_can_follow_a_traced_schedule_and_differ_between_images():
    keys, features = make_batch(16)

    @jax.jit
    def scheduled(step):
        tau = 0.2 + 0.2 * step
        return jax.vmap(lambda k, x: dpp.select(k, x, 10, tau))(keys, features)

    for step, tau in enumerate(np.float32([0.2, 0.4, 0.6, 0.8, 1.0])):
        order, num_greedy = scheduled(step)
        want_order, want_greedy = one_by_one(keys, features, 10, 0.2 + 0.2 * step)
        assert np.array_equal(num_greedy, want_greedy), tau
        assert np.array_equal(order, want_order)

    taus = jnp.linspace(-0.1, 1.1, len(keys))
    order, num_greedy = jax.jit(jax.vmap(lambda k, x, t: dpp.select(k, x, 10, t)))(
        keys, features, taus
    )
    for i in range(len(keys)):
        want = reference.brute_force_order(
            reference.kernel_matrix(features[i]), noise_of(keys[i], 24), 10, float(taus[i])
        )
        assert np.array_equal(order[i], want[0]) and num_greedy[i] == want[1]


# Ties, duplicates and other degenerate images.


def many_masks(seed, features, tau, draws=3000):
    """Masks of one image under many keys."""
    keys = jax.random.split(jax.random.key(seed), draws)
    order, num_greedy = jax.vmap(lambda key: select(key, features, 10, tau))(keys)
    return np.asarray(order), np.asarray(num_greedy)


def test_all_ties_follow_the_noise_and_the_first_pick_is_uniform():
    noise = noise_of(jax.random.key(17), 24)
    order, num_greedy = greedy_order(np.eye(24, dtype=np.float32), noise, 10, 0.5)
    assert num_greedy == 10 and np.array_equal(order, np.argsort(noise))
    # Equal noise falls back on the index, as a stable argsort does.
    order, _ = greedy_order(np.eye(24, dtype=np.float32), np.zeros(24, np.float32), 10, 0.5)
    assert np.array_equal(order, np.arange(24))

    order, _ = many_masks(18, make_features(18, 1, 24, 6)[0], 0.0)
    counts = np.bincount(order[:, 0], minlength=24)
    assert np.abs(counts - 125).max() < 5 * np.sqrt(125), counts


@pytest.mark.parametrize("normalize,bandwidth", [("center", 1.0), ("standardize", 40.0)])
def test_a_common_offset_stops_the_selection_unless_it_is_taken_away(normalize, bandwidth):
    keys, features = make_batch(25, batch=6, width=40, common=0.0)
    features += 10 * (make_features(26, 1, 1, 40) if normalize == "center" else 1)
    choose = lambda **options: jax.vmap(  # noqa: E731
        lambda key, image: select(key, image, 10, 0.7, **options)
    )(keys, features)
    assert np.all(choose()[1] == 1)
    axis = {"center": 1, "standardize": 2}[normalize]
    # Standardised patches are L2-normalised ones times sqrt(40).
    centred = features.astype(np.float64)
    centred -= centred.mean(axis=axis, keepdims=True)
    want = one_by_one(keys, centred, 10, 0.7)
    for got, expected in zip(choose(normalize=normalize, bandwidth=bandwidth), want, strict=True):
        assert np.array_equal(got, expected)
    assert want[1].min() > 3


def test_centring_leaves_out_patches_that_are_not_finite():
    features = make_features(27, 1, 24, 6)[0] + 10.0
    spoilt = features.copy()
    spoilt[[3, 8], [0, 5]] = np.nan, np.inf
    kept = np.setdiff1d(np.arange(24), [3, 8])
    kernel = np.asarray(dpp.gaussian_kernel(spoilt, normalize="center"))
    want = dpp.gaussian_kernel(features[kept], normalize="center")
    np.testing.assert_allclose(kernel[np.ix_(kept, kept)], want, atol=1e-5)
    assert np.all(np.isnan(kernel[[3, 8]]))


def test_a_duplicate_of_a_selected_patch_is_picked_last():
    features = make_features(19, 1, 24, 6)[0]
    features[12:] = features[:12]
    order = np.asarray(select(jax.random.key(19), features, 24, 0.0)[0])
    assert sorted(order[:12] % 12) == list(range(12))
    # Picked just after its twin, a duplicate would have a gain of 0.
    assert reference.gains(reference.kernel_matrix(features), order[:12]).max() < 1e-6


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_an_image_of_one_colour_has_one_greedy_pick(value):
    features = np.full((24, 6), value, np.float32)
    if value == 0.0:  # zero patches are at distance 0 from each other
        assert np.all(np.asarray(dpp.gaussian_kernel(features)) == 1.0)
    for tau in (0.01, 0.5, 0.99):
        order, num_greedy = select(jax.random.key(20), features, 10, tau)
        assert num_greedy == 1
        assert np.array_equal(order, np.argsort(noise_of(jax.random.key(20), 24)))


@pytest.mark.parametrize("num_patches,num_keep", [(1, 1), (2, 2), (24, 1), (24, 24)])
def test_extreme_counts(num_patches, num_keep):
    features = make_features(21, 1, num_patches, 6, 0.5)[0]
    kernel = reference.kernel_matrix(features)
    key = jax.random.key(21)
    for tau in (0.0, 0.5, 1.0):
        got = select(key, features, num_keep, tau)
        reference.check_order(kernel, noise_of(key, num_patches), num_keep, tau, *got)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(-2, 2), min_size=30, max_size=30),
    seed=st.integers(0, 2**31),
    num_keep=st.sampled_from([4, 10]),
    tau=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.0, 1.0, width=32)),
    threshold_on=st.sampled_from(["d2", "d"]),
)
def test_any_image_of_few_values(values, seed, num_keep, tau, threshold_on):
    # 10 patches of 3 small integers: full of zeros, duplicates and opposites.
    features = np.array(values, np.float32).reshape(10, 3)
    key = jax.random.key(seed)
    got = select(key, features, num_keep, tau, threshold_on=threshold_on)
    reference.check_order(
        reference.kernel_matrix(features),
        noise_of(key, 10),
        num_keep,
        tau,
        *got,
        threshold_on=threshold_on,
        tol=1e-4,
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("tau", [0.0, 0.8, 1.0])
def test_non_finite_patches_are_never_greedy_picks_and_leave_the_others_alone(bad, tau):
    features = make_features(22, 1, 24, 6, 0.3)[0]
    spoilt = [0, 5, 17]
    features[spoilt, 2] = bad
    healthy = np.setdiff1d(np.arange(24), spoilt)
    key = jax.random.key(22)
    order, num_greedy = select(key, features, 10, tau)
    assert sorted(np.asarray(order)) == list(range(24))
    noise = noise_of(key, 24)
    want, want_greedy = reference.brute_force_order(
        reference.kernel_matrix(features[healthy]), noise[healthy], 10, tau
    )
    assert num_greedy == want_greedy
    assert np.array_equal(order[:num_greedy], healthy[want[:want_greedy]])
    kernel = dpp.gaussian_kernel(features)
    one = greedy_order(kernel, noise, 10, tau)
    many = orders_from_kernels(10, kernel[None], noise[None], greedy._limit(tau, "d2")[None])
    for got in (one, [leaf[0] for leaf in many]):
        assert np.array_equal(got[0], order) and got[1] == num_greedy


def test_an_image_of_nan_is_masked_at_random():
    features = make_features(23, 1, 24, 6)[0]
    features[:, 2] = np.nan
    with pytest.warns(UserWarning, match="no patch is finite"):
        order, num_greedy = select(jax.random.key(23), features, 10, 0.0)
    assert num_greedy == 0
    assert np.array_equal(order, np.argsort(noise_of(jax.random.key(23), 24)))


# What the selection is like.


def test_random_masking_keeps_every_patch_equally_often():
    order, _ = many_masks(24, make_features(24, 1, 24, 6)[0], 1.0)
    counts = np.bincount(np.ravel(order[:, :10]), minlength=24)
    p = 10 / 24
    assert np.abs(counts - 3000 * p).max() < 5 * np.sqrt(3000 * p * (1 - p)), counts


def test_the_fill_after_an_early_stop_is_uniform():
    # One patch unlike all the others: two greedy picks, then 8 of the 22 others at random.
    features = np.ones((24, 6), np.float32)
    features[7] = [1, -1, 1, -1, 1, -1]
    order, num_greedy = many_masks(25, features, 0.5)
    assert np.all(num_greedy == 2)
    counts = np.bincount(np.ravel(order[:, :10]), minlength=24)
    assert counts[7] == 3000
    p = 9 / 23
    deviation = np.abs(np.delete(counts, 7) - 3000 * p)
    assert deviation.max() < 5 * np.sqrt(3000 * p * (1 - p)), counts


def test_images_and_keys_have_masks_of_their_own():
    features = np.tile(make_features(26, 1, 24, 6), (12, 1, 1))
    keys = jax.random.split(jax.random.key(26), 12)
    for tau, least in [(0.0, 4), (0.8, 5), (1.0, 12)]:
        same_image = jax.vmap(lambda k, x, t=tau: select(k, x, 10, t))(keys, features)[0]
        assert len({tuple(sorted(row)) for row in np.asarray(same_image)[:, :10]}) >= least
    other = make_features(27, 12, 24, 6)
    same_key = jax.vmap(lambda x: select(keys[0], x, 10, 0.0))(other)[0]
    assert len({tuple(sorted(row)) for row in np.asarray(same_key)[:, :10]}) == 12


def test_the_minority_of_a_two_cluster_image_stays_visible():
    rng = np.random.default_rng(28)
    centres = rng.normal(size=(2, 64))
    features = np.concatenate([np.tile(centres[0], (190, 1)), np.tile(centres[1], (6, 1))])
    features = np.stack([features + 0.3 * rng.normal(size=features.shape) for _ in range(16)])
    keys = jax.random.split(jax.random.key(28), 16)
    kept = {
        tau: np.mean(
            np.sum(
                np.asarray(jax.vmap(lambda k, x, t=tau: select(k, x, 49, t))(keys, features)[0])[
                    :, :49
                ]
                >= 190,
                axis=1,
            )
        )
        for tau in (0.0, 1.0)
    }
    assert kept[0.0] > 5.5
    assert kept[1.0] < 3


def test_greedy_beats_exact_sampling_which_beats_random_in_log_det():
    rng = np.random.default_rng(29)
    keys, features = make_batch(29, num_patches=60, width=30, common=3.0)
    log_dets = {"greedy": [], "k-dpp": [], "random": []}
    for key, image in zip(keys, features, strict=True):
        kernel = reference.kernel_matrix(image)
        decomposition = reference.eigendecompose(kernel)
        samples = [reference.sample_k_dpp(*decomposition, 20, rng) for _ in range(10)]
        assert all(len(set(sample)) == 20 for sample in samples)
        shuffles = [rng.permutation(60)[:20] for _ in range(10)]
        greedy = select(key, image, 20, 0.0)[0][:20]
        for name, sets in [("greedy", [greedy]), ("k-dpp", samples), ("random", shuffles)]:
            log_dets[name] += [reference.log_det(kernel, chosen) for chosen in sets]
    means = {name: np.mean(values) for name, values in log_dets.items()}
    assert means["greedy"] > means["k-dpp"] + 0.3 > means["random"] + 0.6, means


def test_exact_sampling_has_the_probabilities_of_the_definition():
    kernel = reference.kernel_matrix(make_features(30, 1, 5, 3, 0.5)[0])
    sets = list(itertools.combinations(range(5), 2))
    weights = np.array([np.exp(reference.log_det(kernel, list(pair))) for pair in sets])
    decomposition = reference.eigendecompose(kernel)
    rng = np.random.default_rng(30)
    draws = 6000
    counts = dict.fromkeys(sets, 0)
    for _ in range(draws):
        counts[tuple(sorted(reference.sample_k_dpp(*decomposition, 2, rng)))] += 1
    p = weights / weights.sum()
    deviation = np.abs(np.array(list(counts.values())) - draws * p)
    assert np.all(deviation < 5 * np.sqrt(draws * p * (1 - p)))


@pytest.mark.parametrize("stop", [True, False])
def test_the_reference_that_is_timed_agrees_with_the_definition(stop):
    keys, features = make_batch(31)
    for key, image in zip(keys, features, strict=True):
        noise = noise_of(key, 24)
        kernel = reference.fast_kernel(image.astype(np.float64))
        np.testing.assert_allclose(kernel, reference.kernel_matrix(image), atol=1e-12)
        for tau in (0.0, 0.6, 0.9):
            order, num_greedy = reference.incremental_order(kernel, noise, 10, tau, stop=stop)
            want, want_greedy = reference.brute_force_order(kernel, noise, 10, tau)
            assert num_greedy == want_greedy and np.array_equal(order, want)


# Under transformations.


@pytest.fixture(scope="module")
def known():
    keys, features = make_batch(32)
    return keys, features, one_by_one(keys, features, 10, 0.6)


def test_jit_vmap_equals_the_reference_and_the_form_for_accelerators(known):
    keys, features, (want_order, want_greedy) = known
    assert len(set(want_greedy)) > 1
    noise = jax.vmap(lambda key: jax.random.uniform(key, (24,), jnp.float32))(keys)
    limit, ones = jnp.full(len(keys), 0.6), jnp.ones(len(keys))
    for order, num_greedy in [
        jax.jit(jax.vmap(lambda k, x: dpp.select(k, x, 10, 0.6)))(keys, features),
        jax.vmap(lambda k, x: dpp.select(k, x, 10, 0.6))(keys, features),
        orders_from_features(10, "gaussian", noise, limit, features, ones),
        orders_from_kernels(10, jax.vmap(dpp.gaussian_kernel)(features), noise, limit),
    ]:
        assert np.array_equal(order, want_order) and np.array_equal(num_greedy, want_greedy)


def test_each_platform_gets_its_form():
    keys, features = make_batch(33, batch=3)
    choose = jax.jit(jax.vmap(lambda k, x: dpp.select(k, x, 10, 0.6)))
    for platform, batched in [("cpu", False), ("cuda", True), ("tpu", True)]:
        text = choose.trace(keys, features).lower(lowering_platforms=(platform,)).as_text()
        assert ("tensor<10x24x3xf32>" in text) == batched, platform


def test_of_many_patches_no_matrix_is_made_where_rows_suffice(monkeypatch):
    keys, features = make_batch(34, batch=2, num_patches=300)
    stages = []

    def loop(first, last, *args):
        jax.debug.callback(lambda last: stages.append(int(last)), last)
        return _loop(first, last, *args)

    _loop = picks._loop
    monkeypatch.setattr(picks, "_loop", loop)
    choose = jax.jit(jax.vmap(lambda k, x, tau: dpp.select(k, x, 60, tau), (0, 0, None)))
    texts = {
        platform: choose.trace(keys, features, 0.9).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    for platform in ("cuda", "tpu"):
        assert "x300xf32" in texts[platform] and "300x300" not in texts[platform], platform
    # On a CPU there is one, for the second stage alone, of the picks after the first 16.
    assert len(re.findall(r"dot_general.*-> tensor<300x300xf32>", texts["cpu"])) == 1
    for tau, expected in ((0.9, {picks._MAX_ROWS}), (0.0, {0, 60})):
        jax.block_until_ready(choose(keys, features, tau))
        jax.effects_barrier()
        assert set(stages) == expected
        stages.clear()


@pytest.mark.slow  # one level of it is the test below
def test_nested_vmap_with_any_argument_batched(known):
    keys, features, (want_order, _) = known
    taus = jnp.array([0.6, 1.0])
    noise_order = np.stack([np.argsort(noise_of(key, 24)) for key in keys])
    choose = lambda key, image, tau: dpp.select(key, image, 10, tau)  # noqa: E731

    outer_tau = jax.vmap(jax.vmap(choose, (0, 0, None)), (None, None, 0))
    order, num_greedy = jax.jit(outer_tau)(keys, features, taus)
    assert np.array_equal(order, np.stack([want_order, noise_order]))
    assert num_greedy.shape == (2, 12) and np.all(np.asarray(num_greedy[1]) == 0)

    two_axes = jax.vmap(jax.vmap(choose, (0, 0, None)), (0, 0, None))
    order, _ = two_axes(keys.reshape(3, 4), features.reshape(3, 4, 24, 6), 0.6)
    assert np.array_equal(order.reshape(12, 24), want_order)

    three_axes = jax.vmap(jax.vmap(jax.vmap(choose, (0, 0, None)), (0, 0, None)), (None, None, 0))
    order, _ = three_axes(keys.reshape(3, 4), features.reshape(3, 4, 24, 6), taus)
    assert np.array_equal(order.reshape(2, 12, 24), np.stack([want_order, noise_order]))

    shared_image = jax.vmap(choose, (0, None, None))(keys, features[0], 0.6)[0]
    shared_key = jax.vmap(choose, (None, 0, None))(keys[0], features, 0.6)[0]
    crossed = jax.vmap(jax.vmap(choose, (0, None, None)), (None, 0, None))(keys, features, 0.6)[0]
    assert np.array_equal(shared_image, crossed[0]) and np.array_equal(shared_key, crossed[:, 0])
    assert np.array_equal(crossed[np.arange(12), np.arange(12)], want_order)
    last_axis = jax.vmap(choose, (0, 2, None))(keys, np.moveaxis(features, 0, 2), 0.6)[0]
    assert np.array_equal(last_axis, want_order)


def test_greedy_order_under_vmap_with_any_argument_batched(known):
    keys, features, (want_order, want_greedy) = known
    kernels = jax.vmap(dpp.gaussian_kernel)(features)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (24,), jnp.float32))(keys)
    choose = lambda kernel, noise, tau: dpp.greedy_order(kernel, noise, 10, tau)  # noqa: E731
    order, num_greedy = jax.jit(jax.vmap(choose, (0, 0, None)))(kernels, noise, 0.6)
    assert np.array_equal(order, want_order) and np.array_equal(num_greedy, want_greedy)
    crossed = jax.vmap(jax.vmap(choose, (None, 0, None)), (0, None, None))(kernels, noise, 0.6)[0]
    assert np.array_equal(crossed[np.arange(12), np.arange(12)], want_order)
    swept = jax.vmap(choose, (None, None, 0))(kernels[0], noise[0], jnp.array([0.6, 2.0]))[0]
    assert np.array_equal(swept[0], want_order[0])
    assert np.array_equal(swept[1], np.argsort(noise[0]))


def test_gradients_stop_at_the_selector_and_flow_around_it(known):
    keys, features, (want_order, _) = known

    def loss(features, tau, bandwidth, remat):
        choose = lambda k, x: dpp.select(k, x, 10, tau, bandwidth=bandwidth)  # noqa: E731
        order, _ = jax.vmap(jax.checkpoint(choose) if remat else choose)(keys, features)
        visible = jnp.take_along_axis(features, order[:, :10, None], axis=1)
        return jnp.sum(visible**2)

    want = np.zeros_like(features)
    for i in range(12):
        want[i, want_order[i, :10]] = 2 * features[i, want_order[i, :10]]
    for remat in (False, True):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
        for_features, for_tau, for_bandwidth = gradient(features, 0.6, 1.0, remat)
        np.testing.assert_allclose(for_features, want, rtol=1e-6)
        assert for_tau == 0 and for_bandwidth == 0
    one_image = jax.grad(lambda x: jnp.sum(x[dpp.select(keys[0], x, 10, 0.6)[0][:10]] ** 2))
    np.testing.assert_allclose(one_image(features[0]), want[0], rtol=1e-6)
    assert not np.any(jax.grad(lambda x: dpp.gaussian_kernel(x).sum())(features[0]))
    # Forward mode and per-example gradients.
    tangent = jax.jvp(lambda x: loss(x, 0.6, 1.0, False), (features,), (np.ones_like(features),))[1]
    np.testing.assert_allclose(tangent, want.sum(), rtol=1e-5)
    each = jax.vmap(jax.grad(lambda x, k: jnp.sum(x[dpp.select(k, x, 10, 0.6)[0][:10]] ** 2)))
    np.testing.assert_allclose(each(features, keys), want, rtol=1e-6)


def several_devices():
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4")
    return jax.devices()[:4]


def test_pmap_with_broadcast_arguments(known):
    keys, features, (want_order, want_greedy) = known

    def step(tau, batch, bandwidth):
        order, num_greedy = jax.vmap(lambda k, x: dpp.select(k, x, 10, tau, bandwidth=bandwidth))(
            *batch
        )
        return order, num_greedy, jax.lax.pmean(num_greedy.astype(jnp.float32).mean(), "batch")

    mapped = jax.pmap(step, "batch", in_axes=(None, 0, None), devices=several_devices())
    order, num_greedy, mean = mapped(0.6, (keys.reshape(4, 3), features.reshape(4, 3, 24, 6)), 1.0)
    assert np.array_equal(order.reshape(12, 24), want_order)
    assert np.array_equal(num_greedy.reshape(12), want_greedy)
    np.testing.assert_allclose(mean, want_greedy.mean(), rtol=1e-6)


@pytest.mark.parametrize("platforms", [["cpu"], ["cuda"], ["cpu", "cuda"], ["tpu"]])
def test_export(known, platforms):
    keys, features, (want_order, want_greedy) = known
    choose = jax.jit(jax.vmap(lambda key, image: dpp.select(key, image, 10, 0.6)))
    layout = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")
    checks = {"disabled_checks": [layout]} if "tpu" in platforms else {}
    exported = jax.export.export(choose, platforms=platforms, **checks)(keys, features)
    assert exported.platforms == tuple(platforms)
    if "cpu" in platforms:
        order, num_greedy = exported.call(keys, features)
        assert np.array_equal(order, want_order) and np.array_equal(num_greedy, want_greedy)


@pytest.mark.parametrize("images", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_shard_map(known, images, monkeypatch):
    keys, features, (want_order, want_greedy) = known
    mesh = Mesh(np.array(several_devices()), ("batch",))
    noise = jax.vmap(lambda key: jax.random.uniform(key, (24,), jnp.float32))(keys)

    def for_accelerators(features, noise, tau):
        size = len(noise)
        return picks.batched_from_features(
            10, "gaussian", noise, jnp.full(size, tau), features, jnp.ones(size)
        )

    def one_at_a_time(features, keys, tau):
        return jax.tree.map(lambda leaf: leaf[None], dpp.select(keys[0], features[0], 10, tau))

    def many(features, keys, tau):
        return jax.vmap(lambda x, k: dpp.select(k, x, 10, tau))(features, keys)

    batch = 4 * images
    forms = [(many, keys), (for_accelerators, noise)]
    if images == 1:
        forms.append((one_at_a_time, keys))
    forms.append((for_accelerators, noise))  # again: see below
    for i, (form, random) in enumerate(forms, 1):
        if i == len(forms):  # as of many patches, with a factor that has to grow
            monkeypatch.setattr(picks, "_FEW_PATCHES", 16)
            monkeypatch.setattr(picks, "_MAX_ROWS", 4)
        sharded = jax.shard_map(
            form, mesh=mesh, in_specs=(P("batch"), P("batch"), P()), out_specs=P("batch")
        )
        order, num_greedy = jax.jit(sharded)(features[:batch], random[:batch], 0.6)
        assert np.array_equal(order, want_order[:batch]), form
        assert np.array_equal(num_greedy, want_greedy[:batch])


def test_work_follows_the_picks_that_are_made(monkeypatch):
    made = []

    def counted(*args):
        jax.debug.callback(lambda: made.append(1))
        return pick(*args)

    pick = picks._pick
    greedy.batchable.cache_clear()
    monkeypatch.setattr(picks, "_pick", counted)
    keys, features = make_batch(34, batch=6, num_patches=40, width=16)
    choose = jax.jit(jax.vmap(lambda k, x, t: dpp.select(k, x, 30, t), (0, 0, None)))
    for tau in (0.0, 0.9, 0.99, 1.0):
        made.clear()
        num_greedy = np.asarray(choose(keys, features, tau)[1])
        jax.effects_barrier()
        assert len(made) == num_greedy.sum()
    greedy.batchable.cache_clear()


# Arguments.


@pytest.mark.parametrize(
    "change,message",
    [
        ({"num_keep": 0}, "num_keep must be an int in 1..24"),
        ({"num_keep": 25}, "num_keep must be an int in 1..24"),
        ({"num_keep": 2.5}, "num_keep must be an int in 1..24"),
        ({"num_keep": "many"}, "num_keep must be an int in 1..24"),
        ({"features": np.ones((2, 24, 6))}, "use jax.vmap"),
        ({"features": np.ones(24)}, "features must be"),
        ({"features": np.ones((0, 6))}, "features must be"),
        ({"kernel": "laplace"}, "'gaussian' or 'cosine'"),
        ({"threshold_on": "d3"}, "'d2' or 'd'"),
        ({"tau": np.ones(3)}, "tau must be a scalar"),
        *[({"tau": t}, r"tau must be in \[0, 1\]") for t in (-1e-9, 1.1, 2, np.nan, np.array(1.5))],
        ({"features": np.ones((24, 6)) + 1j}, "features must be real"),
        ({"normalize": "l1"}, "'l2', 'center' or 'standardize'"),
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"bandwidth": -1.0}, "bandwidth must be positive"),
        ({"bandwidth": np.array(-1.0)}, "bandwidth must be positive"),
    ],
)
def test_select_rejects(change, message):
    arguments = {"features": np.ones((24, 6)), "num_keep": 5} | change
    with pytest.raises(ValueError, match=message) as error:
        dpp.select(jax.random.key(0), **arguments)
    assert "\n" not in str(error.value)


def test_greedy_order_rejects():
    eye, noise = np.eye(6, dtype=np.float32), np.zeros(6, np.float32)
    for arguments, message in [
        ((np.ones((6, 5)), noise, 3, 0.5), "kernel must be"),
        ((eye[None], noise, 3, 0.5), "use jax.vmap"),
        ((eye, noise[:5], 3, 0.5), "noise must be"),
        ((eye, noise, 7, 0.5), "num_keep must be"),
        ((eye, noise, 3, -0.5), "tau must be in"),
        ((eye + 0j, noise, 3, 0.5), "kernel must be real"),
    ]:
        with pytest.raises(ValueError, match=message):
            dpp.greedy_order(*arguments)
    with pytest.raises(ValueError, match="bind it with"):
        jax.jit(dpp.greedy_order)(eye, noise, 3, 0.5)
    bound = functools.partial(dpp.greedy_order, num_keep=3, tau=0.5)
    assert jax.jit(bound)(eye, noise)[0].shape == (6,)


def test_old_style_keys_work():
    features = make_features(35, 1, 24, 6)[0]
    typed = select(jax.random.key(7), features, 5, 0.5)[0]
    assert np.array_equal(select(jax.random.PRNGKey(7), features, 5, 0.5)[0], typed)


def test_the_import_needs_jax_alone():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in "
        "('chex', 'jaxtyping', 'flax', 'optax', 'PIL', 'tensorflow', 'grain'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import dppmask_jax.dpp, dppmask_jax.masking\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
