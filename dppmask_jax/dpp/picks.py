"""The picks of greedy selection, of one image after another or of a batch in one loop.

Patches are the first axis, images the last, if any. `greedy` says what is picked; here are the
forms that each platform runs best, from kernels or from features. Functions whose names begin with
"serial" or "batched" take a batch and return (order (B, N), num_greedy (B,)), both int32.

Source: Chen, Zhang and Zhou, NeurIPS 2018, arXiv 1709.05135 (the incremental Cholesky factor).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from dppmask_jax.dpp.kernels import PRECISION, kernel_entries, norms

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# With a threshold on d^2 above _ROWS_ABOVE, kernel rows are computed one by one on a CPU before the
# whole Gram matrix is: _MAX_ROWS of them, or one for _ROWS_OF patches where that is more (of 196
# patches, a row costs about a twentieth of the matrix). That saves time where tau stops the loop
# after a few picks, and loses some where it does not.
_ROWS_ABOVE = 0.7
_MAX_ROWS = 16
_ROWS_OF = 32
# Of more patches, other devices compute no Gram matrix either, and have patches in their lanes:
# images of many patches are few, and their lanes would stay idle.
_FEW_PATCHES = 256


class _State(NamedTuple):
    best: Float[Array, " *B"]  # largest entry of gains
    gains: Float[Array, " N *B"]  # d^2 of each patch, quality aside; -inf where it cannot be picked
    factor: Float[Array, "m N *B"]  # row m holds the Cholesky row written by pick m, 0 before
    place: Int[Array, " N *B"]  # m for pick m, k for patches not picked


def _start(diagonal, num_keep, weights=None, rows=None):
    """Nothing picked yet; `rows` of the factor, for as many picks, None for all `num_keep`."""
    gains = jnp.where(jnp.isnan(diagonal), -jnp.inf, diagonal)
    if weights is not None:
        gains = jnp.where(jnp.isnan(weights), -jnp.inf, gains)
    # `_like`, because under shard_map a carry must start as varying as it ends.
    factor = jnp.zeros_like(gains, shape=(rows or num_keep, *gains.shape))
    place = jnp.full_like(gains, num_keep, jnp.int32)
    return _State(jnp.max(gains, axis=0), gains, factor, place)


def _pick(m, state: _State, noise, limit, row_of, known_of, weights=None) -> _State:
    """Pick m of each image. Where no gain reaches `limit`, nothing is picked, then or later.

    `weights` are squared qualities, None for equal ones. `row_of(j, is_j)` is row j of the kernel.
    `known_of(factor, j, is_j)` is column j of the factor times the factor. `is_j` (N, *B) is True
    at patch j.
    """
    best, gains, factor, place = state
    # Ties (all patches at first, duplicates later) go to the smallest noise, not the first index:
    # this is the shuffle of Algorithm 1. Minima because XLA's arg-min is slow on a CPU.
    index = lax.broadcasted_iota(jnp.int32, gains.shape, 0)
    tied = gains == best[None]
    if weights is not None:
        # The weighted kernel's d^2 is weights * gains; its factor is this one, scaled by columns.
        scores = jnp.where(gains >= limit[None], weights * gains, -jnp.inf)
        tied = scores == jnp.max(scores, axis=0)[None]
    lowest = jnp.min(jnp.where(tied, noise, jnp.inf), axis=0)
    pick = jnp.min(jnp.where(tied & (noise == lowest[None]), index, gains.shape[0] - 1), axis=0)
    is_pick = index == pick[None]
    picked = (best >= limit)[None] & is_pick
    # Rows m.. of the factor are still zero, so the product over all k rows is the one over m.
    known = known_of(factor, pick, is_pick)
    gain = best if weights is None else jnp.max(jnp.where(is_pick, gains, -jnp.inf), axis=0)
    update = (row_of(pick, is_pick) - known) / jnp.sqrt(jnp.maximum(gain, 1e-10))[None]
    # |update| <= d by Cauchy-Schwarz. Rounding breaks that once a singular kernel is used up (best
    # is near 0), and without the bound each further pick would multiply the error.
    bound = jnp.sqrt(jnp.maximum(gains, 0.0))
    update = jnp.clip(update, -bound, bound)
    lower = gains - jnp.square(update)
    gone = picked | jnp.isneginf(gains) | jnp.isnan(lower)
    gains = jnp.where(gone, -jnp.inf, jnp.maximum(lower, 0.0))
    factor = lax.dynamic_update_index_in_dim(factor, jnp.where(gone, 0.0, update), m, 0)
    return _State(jnp.max(gains, axis=0), gains, factor, jnp.where(picked, m, place))


def _rows_first(num_keep, num_patches) -> int:
    """For how many picks the factor has rows at first."""
    return min(max(_MAX_ROWS, num_patches // _ROWS_OF), num_keep)


def _loop(first, last, state, noise, limit, row_of, weights=None):
    """Picks first..last-1 of one image."""

    def known_of(factor, pick, _):
        column = lax.dynamic_index_in_dim(factor, pick, 1, keepdims=False)
        return jnp.matmul(column, factor, precision=PRECISION)

    def body(m, state):
        return lax.cond(
            state.best >= limit,
            lambda state: _pick(m, state, noise, limit, row_of, known_of, weights),
            lambda state: state,
            state,
        )

    return lax.fori_loop(first, last, body, state)


def _finish(place, noise, num_keep, ordered):
    return ordered(place, noise), jnp.sum(place < num_keep, dtype=jnp.int32)


def _ordered(place, noise):
    """Indices by ascending place, then ascending noise, then index."""
    index = lax.iota(jnp.int32, noise.shape[0])
    return lax.sort((place, noise, index), num_keys=2)[2]


def _ordered_on_cpu(place, noise):
    """`_ordered`, several times faster for noise of multiples of 2^-23, as `jax.random.uniform`
    draws it; other noise takes the slow way.

    XLA sorts a single array of integers with native comparisons, and several arrays with a call
    for each one. So place or noise, 24 bits, and the index are one integer. Where they do not fit,
    they are sorted by the lower 12 bits first and then, with those ranks for index, by the upper.
    """
    num_patches = noise.shape[0]
    bits = (num_patches - 1).bit_length()
    if bits > 32 - 12:
        return _ordered(place, noise)
    steps = noise * 2.0**23
    whole = steps.astype(jnp.uint32)
    fits = jnp.all((steps >= 0) & (steps < 2**23) & (whole.astype(jnp.float32) == steps))

    def sorted_by(digits):
        """Indices by ascending digits, then index."""
        index = lax.iota(jnp.uint32, num_patches)
        return (lax.sort(digits << bits | index) & (2**bits - 1)).astype(jnp.int32)

    def in_integers(place, noise):
        unplaced = jnp.max(place)
        first = jnp.where(place < unplaced, place.astype(jnp.uint32), whole + 2**23)
        if bits <= 32 - 24:
            return sorted_by(first)
        by_lower = sorted_by(first & (2**12 - 1))
        return by_lower[sorted_by(first[by_lower] >> 12)]

    return lax.cond(fits, in_integers, _ordered, place, noise)


def serial_from_kernels(num_keep, kernels, noise, limits, *weights):
    def one(args):
        kernel, noise, limit, *weights = args
        state = _start(jnp.diagonal(kernel), num_keep, *weights)
        state = _loop(0, num_keep, state, noise, limit, lambda pick, _: kernel[pick], *weights)
        return _finish(state.place, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (kernels, noise, limits, *weights))


def _batched_loop(num_keep, diagonals, noise, limits, row_of, weights=None):
    """All picks of all images (N, B), in one loop that goes on while any of them picks.

    The loop's condition ends it, with no branch in its body, so that XLA keeps the factor in a
    TPU's fast memory. There, images as the last axis leave few lanes idle, and a sum over a one-hot
    column is faster than a gather of it.
    """

    def known_of(factor, _, is_pick):
        column = jnp.sum(jnp.where(is_pick[None], factor, 0.0), axis=1)
        return jnp.sum(column[:, None] * factor, axis=0)

    def goes_on(carry):
        m, state = carry
        return (m < num_keep) & jnp.any(state.best >= limits)

    def pick_next(carry):
        m, state = carry
        return m + 1, _pick(m, state, noise, limits, row_of, known_of, weights)

    state = _start(diagonals, num_keep, weights)
    first = jnp.zeros_like(state.place[0, 0])
    _, state = lax.while_loop(goes_on, pick_next, (first, state))
    finish = functools.partial(_finish, num_keep=num_keep, ordered=_ordered)
    return jax.vmap(finish, in_axes=-1)(state.place, noise)


def _patches_in_lanes(num_keep, diagonals, noise, limits, row_of, sources, weights=None):
    """As `_batched_loop`, of images (B, N); `row_of(source, pick)` is a row of one image's kernel.

    The factor has few rows until more are wanted: a pick reads all of it.
    """
    rows = _rows_first(num_keep, noise.shape[1])

    def pick_of_one(m, state, noise, limit, source, *weights):
        def known_of(factor, _, is_pick):
            column = jnp.sum(jnp.where(is_pick[None], factor, 0.0), axis=1)
            return jnp.sum(column[:, None] * factor, axis=0)

        row = lambda pick, _: row_of(source, pick)  # noqa: E731
        return _pick(m, state, noise, limit, row, known_of, *weights)

    each = (noise, limits, sources, *(() if weights is None else (weights,)))
    picks = jax.vmap(pick_of_one, (None, *[0] * (1 + len(each))))

    def until(last, m, state):
        return lax.while_loop(
            lambda carry: (carry[0] < last) & jnp.any(carry[1].best >= limits),
            lambda carry: (carry[0] + 1, picks(*carry, *each)),
            (m, state),
        )

    def with_whole_factor(m, state):
        more = [(0, 0), (0, num_keep - rows), (0, 0)]
        return until(num_keep, m, state._replace(factor=jnp.pad(state.factor, more)))[1].place

    start = functools.partial(_start, num_keep=num_keep, rows=rows)
    state = jax.vmap(start)(diagonals, weights=weights)
    m, state = until(rows, jnp.zeros_like(state.place[0, 0]), state)
    goes_on = (rows < num_keep) & jnp.any(state.best >= limits)
    place = lax.cond(goes_on, with_whole_factor, lambda _, state: state.place, m, state)
    return jax.vmap(functools.partial(_finish, num_keep=num_keep, ordered=_ordered))(place, noise)


def _rows(matrices, pick):
    """Row pick[b] of each matrix: (B, N, N) and (B,) -> (N, B)."""
    images = lax.iota(jnp.int32, len(matrices))
    rows = matrices.at[images, pick].get(mode="promise_in_bounds").T
    return lax.platform_dependent(rows, tpu=_images_in_lanes, default=lambda rows: rows)


def _images_in_lanes(rows):
    """(N, B) with images in a TPU's lanes. Without a constraint the compiler gives these rows, and
    all of the loop, the layout of the gather."""
    return with_layout_constraint(rows, Layout((0, 1)))


def batched_from_kernels(num_keep, kernels, noise, limits, *weights):
    diagonals = jnp.diagonal(kernels, axis1=1, axis2=2)
    if noise.shape[1] > _FEW_PATCHES:
        row_of = lambda kernel, pick: kernel[pick]  # noqa: E731
        return _patches_in_lanes(num_keep, diagonals, noise, limits, row_of, kernels, *weights)
    weights = [one.T for one in weights]
    row_of = lambda pick, _: _rows(kernels, pick)  # noqa: E731
    return _batched_loop(num_keep, diagonals.T, noise.T, limits, row_of, *weights)


def serial_from_features(num_keep, kernel, noise, limits, batch, bandwidths, *weights):
    """Kernel rows are computed where picks need them, and read from the batch itself.

    A vector times the transpose of a slice of the batch is one fused loop over memory; in any
    other form XLA copies the features of every image before it multiplies them.
    """
    num_patches, width = batch.shape[1:]
    rows = _rows_first(num_keep, num_patches)

    def one(args):
        image, noise, limit, bandwidth, *weights = args

        def features():
            return lax.dynamic_index_in_dim(batch, image, keepdims=False)

        def similarity(dots, pick):
            scale, squares = inverse[pick] * inverse, square[pick] + square
            return kernel_entries(dots, scale, squares, bandwidth, kernel)

        def row_of(pick, _):
            dots = jnp.matmul(features()[pick], features().T, precision=PRECISION)
            return similarity(dots, pick)

        ones = jnp.ones_like(batch, shape=width)
        inverse, square = norms(jnp.matmul(ones, jnp.square(features()).T, precision=PRECISION))
        few = jnp.where(limit > _ROWS_ABOVE, np.int32(rows), np.int32(0))
        diagonal = jnp.where(jnp.isnan(inverse), inverse, 1.0)
        # A short factor: a pick reads all of it, and many patches' would not fit a cache.
        state = _start(diagonal, num_keep, weights[0] if weights else None, rows)
        state = _loop(0, few, state, noise, limit, row_of, *weights)

        def with_gram_matrix(state):
            dots = jnp.matmul(features(), features().T, precision=PRECISION)
            row_of_all = lambda pick, _: similarity(dots[pick], pick)  # noqa: E731
            more = jnp.zeros_like(state.factor, shape=(num_keep - rows, num_patches))
            state = state._replace(factor=jnp.concatenate([state.factor, more]))
            return _loop(few, num_keep, state, noise, limit, row_of_all, *weights).place

        goes_on = (state.best >= limit) & (few < num_keep)
        place = lax.cond(goes_on, with_gram_matrix, lambda state: state.place, state)
        return _finish(place, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (lax.iota(jnp.int32, len(batch)), noise, limits, bandwidths, *weights))


def batched_from_features(num_keep, kernel, noise, limits, batch, bandwidths, *weights):
    """The Gram matrices are computed at once, a kernel row when it is picked; of many patches, its
    dot products then too."""
    if noise.shape[1] > _FEW_PATCHES:
        return _batched_row_by_row(num_keep, kernel, noise, limits, batch, bandwidths, *weights)
    dots = jnp.matmul(batch, batch.mT, precision=PRECISION)
    diagonal = jnp.eye(batch.shape[1], dtype=bool)
    inverse, square = norms(jnp.sum(jnp.where(diagonal[None], dots, 0.0), axis=2).T)

    def row_of(pick, is_pick):
        def at_pick(values):
            return jnp.sum(jnp.where(is_pick, values, 0.0), axis=0, keepdims=True)

        scale, squares = at_pick(inverse) * inverse, at_pick(square) + square
        return kernel_entries(_rows(dots, pick), scale, squares, bandwidths[None], kernel)

    diagonals = jnp.where(jnp.isnan(inverse), inverse, 1.0)
    weights = [one.T for one in weights]
    return _batched_loop(num_keep, diagonals, noise.T, limits, row_of, *weights)


def _batched_row_by_row(num_keep, kernel, noise, limits, batch, bandwidths, *weights):
    inverse, square = norms(jnp.sum(jnp.square(batch), axis=2))

    def row_of(source, pick):
        features, inverse, square, bandwidth = source
        dots = jnp.matmul(features, features[pick], precision=PRECISION)
        scale, squares = inverse[pick] * inverse, square[pick] + square
        return kernel_entries(dots, scale, squares, bandwidth, kernel)

    diagonals = jnp.where(jnp.isnan(inverse), inverse, 1.0)
    sources = (batch, inverse, square, bandwidths)
    return _patches_in_lanes(num_keep, diagonals, noise, limits, row_of, sources, *weights)
