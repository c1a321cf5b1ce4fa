"""The masker under JAX settings that its user has changed."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax import dpp, masking
from dppmask_jax.masking import (
    exact_dpp,
    filtered_noise,
    inverse_block,
    multiblock,
    regular_grid,
    uniform_cells,
    whole_cells,
)

PROMOTION = (lambda: jax.numpy_rank_promotion("raise"), lambda: jax.numpy_dtype_promotion("strict"))
CHANGED = (
    *PROMOTION,
    lambda: jax.enable_x64(True),
    lambda: jax.default_prng_impl("unsafe_rbg"),
    lambda: jax.threefry_partitionable(False),
    lambda: jax.default_matmul_precision("bfloat16"),
)
# Of images 0 and 1 of 4 x 4 patches, as drawn under JAX's default settings.
ORDERS = {
    ("dpp", 2**31 - 1): [
        [3, 14, 7, 9, 11, 6, 15, 5, 4, 12, 8, 2, 1, 0, 13, 10],
        [4, 11, 14, 1, 6, 15, 9, 7, 2, 5, 3, 0, 13, 12, 10, 8],
    ],
    ("random", 3): [
        [10, 0, 7, 1, 9, 3, 2, 12, 14, 13, 4, 11, 15, 6, 5, 8],
        [0, 14, 5, 6, 7, 10, 4, 2, 15, 1, 3, 9, 11, 13, 12, 8],
    ],
    ("random", 2**32 - 1): [
        [10, 1, 3, 4, 6, 13, 5, 15, 9, 2, 8, 7, 14, 12, 11, 0],
        [8, 12, 5, 15, 2, 9, 11, 10, 14, 0, 1, 7, 13, 4, 6, 3],
    ],
    ("block", 1): [
        [14, 7, 3, 13, 9, 12, 6, 1, 2, 4, 10, 8, 15, 0, 5, 11],
        [11, 10, 2, 6, 1, 15, 3, 0, 8, 14, 4, 13, 5, 7, 9, 12],
    ],
}


@contextlib.contextmanager
def under(settings):
    with contextlib.ExitStack() as stack:
        for setting in settings:
            stack.enter_context(setting())
        yield


def make_images():
    colours = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3))
    return np.uint8(np.kron(colours, np.ones((1, 8, 8, 1))))


@pytest.mark.parametrize("settings", [(), CHANGED], ids=["usual", "changed"])
def test_exported_masks_are_the_same_under_any_settings(settings):
    with under(settings):
        for (strategy, seed), orders in ORDERS.items():
            mask = masking.export_masks(
                make_images(), patch_size=8, ratio=0.6, tau=0.6, strategy=strategy, seed=seed
            )
            assert mask.order.tolist() == orders, (strategy, seed)
            assert [leaf.dtype for leaf in jax.tree.leaves(mask)] == [
                np.int32,
                np.bool_,
                np.int32,
                np.int32,
            ]


def test_exact_draws_are_the_same_under_any_settings():
    # Of one process: eigenvectors are the processor's.
    usual, changed = [], []
    for settings, drawn in ((), usual), (CHANGED, changed):
        with under(settings):
            drawn += masking.export_masks(make_images(), patch_size=8, strategy="exact")
    np.testing.assert_array_equal(usual[0], changed[0])


def everything(key, features, tau, count):
    """All that the masker offers for one image, with each of its options."""
    weights = jnp.abs(features[:, 0])
    noise = jax.random.uniform(jax.random.fold_in(key, 1), (16,), jnp.float32)
    yield masking.random(key, 16, count)
    yield masking.block(key, (4, 4), count)
    for variant in ("high", "low", "hint"):
        yield masking.attention(key, weights, 16 - count, variant=variant, num_shown=1, num_top=3)
    yield masking.attention(key, weights, np.int64(9), variant="hint", num_shown=np.int64(1))
    yield masking.num_masked(16, masking.draw_ratio(key, (0.1, 0.5), (0.0, 0.2)))
    yield masking.dpp(key, features, count, tau, num_keep=8)
    yield dpp.greedy_order(dpp.cosine_kernel(features), noise, 6, tau)
    yield dpp.greedy_order(dpp.gaussian_kernel(features), noise, 6, 0.3, threshold_on="d")
    for options in ({"kernel": "cosine"}, {"normalize": "center"}, {"normalize": "standardize"}):
        yield dpp.select(key, features, 6, tau, bandwidth=tau, **options)
    yield dpp.select(key, features, 6, tau, quality=weights)
    yield exact_dpp.exact(key, features, count, num_keep=8, bandwidth=tau)
    for draw in (
        regular_grid.grid,
        uniform_cells.uniform,
        whole_cells.cells,
        filtered_noise.noise,
        inverse_block.inverse,
        multiblock.multiblock,
    ):
        yield draw(key, (4, 4), count)


def test_the_masker_is_traced_under_strict_settings_and_computes_in_32_bits():
    with under((*PROMOTION, lambda: jax.enable_x64(True))):
        for impl in ("threefry2x32", "rbg"):
            keys = jax.random.split(jax.random.key(0, impl=impl), 2)
            inputs = (keys, np.ones((2, 16, 6), np.float32), np.float32([0, 1]), np.int32([5, 6]))
            draw = jax.jit(jax.vmap(lambda *args: list(everything(*args))))
            text = str(draw.trace(*inputs).jaxpr)
            # Numbers written in Python are 64 bits wide until they meet an array.
            assert "f32[2,16" in text and not re.findall(r"f64\[\d.*", text)
