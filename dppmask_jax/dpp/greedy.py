"""Choose k patches of one image that differ from each other: greedy MAP of a DPP.

    keys = jax.random.split(jax.random.key(0), batch)
    choose = jax.jit(jax.vmap(lambda key, features: dpp.select(key, features, 49, tau=0.9)))
    order, num_greedy = choose(keys, features)  # features (B, N, D): visible = order[:, :49]

Everything here takes one image; put `jax.vmap` outside. A plain `jit(vmap(...))` is the fast form
on every platform. Nothing is differentiated: gradients stop at the inputs. `jax.export` for a TPU
wants `disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")]`.

Sources: DPPMask, arXiv 2303.12736, Algorithm 1 (the selector) and section 3 (the kernel);
Chen, Zhang and Zhou, NeurIPS 2018, arXiv 1709.05135 (the incremental Cholesky factor).
Only jax and numpy are imported.
"""

from __future__ import annotations

import functools
import numbers
import warnings
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from dppmask_jax.dpp.arguments import batchable, checked_num_keep, constants, real
from dppmask_jax.dpp.kernels import (
    PRECISION,
    checked_bandwidth,
    checked_features,
    kernel_entries,
    normalized,
    norms,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Shaped

# With a threshold above this on d^2, kernel rows are computed one by one, at most so many of them,
# before the whole Gram matrix is (a row costs about a twentieth of it on a CPU). Where tau stops
# the loop after a few picks that is a bargain; where it does not, rows are lost time.
_ROWS_ABOVE = 0.7
_MAX_ROWS = 16


def greedy_order(
    kernel: Float[Array, "N N"],
    noise: Float[Array, " N"],
    num_keep: int,
    tau: float | Float[Array, ""],
    *,
    threshold_on: str = "d2",
    quality: Float[Array, " N"] | None = None,
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Greedily maximises log det of the kept patches' kernel, then fills at random.

    Each pick takes the patch with the largest gain d^2 = det L[Y + i] / det L[Y]; ties go to the
    smallest `noise`. Once the largest gain is below `tau` the remaining places are filled with
    unselected patches by ascending `noise`. Gains never grow, so the first failure is final.

    With `quality` q the kernel is L_ij = q_i K_ij q_j of the `kernel` K that is given: the first
    pick has the largest q^2. The gain of patch i is then q_i^2 times its gain under K, and `tau` is
    compared with d_i^2 / q_i^2, which is its gain under K: how much the patch differs from those
    picked, whatever its quality. Patches below `tau` are passed over, and the largest d^2 of the
    others is picked; once all are below, the rest is filled. So a relevant twin of a picked patch
    is not picked, and does not end the selection either.

    Args:
      kernel: symmetric positive semi-definite with unit diagonal. NaN is allowed: a patch whose
        gain is NaN counts as below any tau and is only ever a random pick.
      noise: finite and independent of the kernel, uniform draws say.
      num_keep: 1..N, a Python int: bind it (`functools.partial`, a lambda) before jit or vmap.
      tau: 0 (always greedy) to 1 (no pick is greedy, and `order` equals `argsort(noise)` bit for
        bit). May be a JAX array, traced or not; those are not checked: below 0 acts like 0, above 1
        and NaN like 1.
      threshold_on: "d2" compares tau with the gain, "d" with its square root. The paper's symbol
        allows both readings.
      quality: relevance of each patch, finite and 0 or more; only ratios count. None weighs none
        and is the same as a constant. Patches of quality 0 are picked after all others.

    Returns:
      order: (N,) int32, a permutation. The first `num_keep` are kept: greedy picks in the order
        they were made, then random ones by ascending `noise`. The rest by ascending `noise`. The
        kept set for a smaller `num_keep` is a prefix of the kept set for a larger one.
      num_greedy: () int32 in 0..num_keep. 1 means that after the first patch no other was different
        enough: tau is high, the image is of one colour, or the features have so much in common that
        all are alike to the kernel (`normalize="center"` of `select` takes that away). 0 means that
        `tau` is 1 or that no patch is finite.

    Raises:
      ValueError: wrong shapes, a complex kernel or noise, `num_keep` not an int in 1..N, a number
        `tau` outside [0, 1], an unknown `threshold_on`, or a quality that is negative, NaN or
        infinite; under jit and vmap, where values are not known, such a patch is only ever a random
        pick, as one that holds NaN.
    """
    kernel, noise = real(kernel, "kernel"), real(noise, "noise")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel must be (N, N), got {kernel.shape}; use jax.vmap for a batch")
    if noise.shape != kernel.shape[:1]:
        raise ValueError(f"noise must be ({kernel.shape[0]},), got {noise.shape}")
    num_keep = checked_num_keep(num_keep, kernel.shape[0])
    weights = _weights(quality, kernel.shape[0])
    run = batchable(_serial_from_kernels, _batched_from_kernels, num_keep)
    return run(*constants(kernel, noise, _limit(tau, threshold_on), *weights))


def select(
    key: Array,
    features: Shaped[Array, "N D"],
    num_keep: int,
    tau: float | Float[Array, ""] = 0.9,
    *,
    kernel: str = "gaussian",
    bandwidth: float | Float[Array, ""] = 1.0,
    normalize: str = "l2",
    threshold_on: str = "d2",
    quality: Float[Array, " N"] | None = None,
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Chooses `num_keep` patches of one image; the noise is `jax.random.uniform(key, (N,))`.

    The same as the kernel followed by `greedy_order`, up to float32 rounding, but kernel rows are
    computed only where a pick needs them.

    Args:
      key: a JAX key of this image alone; images that share a key share their random picks.
      features: (N, D) of any real dtype; gradients stop here. A patch that holds NaN or infinity is
        never a greedy pick. Where no patch is finite the choice is random; outside jit and vmap
        that is warned about.
      num_keep, tau, threshold_on, quality: see `greedy_order`.
      kernel: "gaussian" or "cosine".
      bandwidth: of the gaussian kernel.
      normalize: "l2", "center" or "standardize", see `gaussian_kernel`.

    Returns:
      (order, num_greedy) of `greedy_order`.

    Raises:
      ValueError: as `greedy_order`, `gaussian_kernel`, or an unknown `kernel`.
    """
    features = checked_features(features)
    bandwidth = checked_bandwidth(bandwidth)
    if kernel not in ("gaussian", "cosine"):
        raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")
    num_keep = checked_num_keep(num_keep, features.shape[0])
    if not isinstance(features, jax.core.Tracer) and not has_finite_patch(features):
        warnings.warn("features: no patch is finite, the choice is random", stacklevel=2)
    features, bandwidth = normalized(features, bandwidth, normalize)
    noise = jax.random.uniform(key, features.shape[:1], jnp.float32)
    weights = _weights(quality, features.shape[0])
    run = batchable(_serial_from_features, _batched_from_features, num_keep, kernel)
    return run(*constants(noise, _limit(tau, threshold_on), features, bandwidth, *weights))


def has_finite_patch(features) -> np.ndarray:
    """(...) bool of (..., N, D): whether any patch of an image can be a greedy pick. In NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.sum(np.square(np.asarray(features).astype(np.float32)), axis=-1)
    return np.isfinite(squared).any(axis=-1)


# The greedy loop, of one image or of a batch: patches are the first axis, images the last, if any.


class _State(NamedTuple):
    best: Float[Array, " *B"]  # largest entry of gains
    gains: Float[Array, " N *B"]  # d^2 of each patch, quality aside; -inf where it cannot be picked
    factor: Float[Array, "k N *B"]  # row m holds the Cholesky row written by pick m, 0 before
    place: Int[Array, " N *B"]  # m for pick m, k for patches not picked


def _start(diagonal, num_keep, weights=None):
    gains = jnp.where(jnp.isnan(diagonal), -jnp.inf, diagonal)
    if weights is not None:
        gains = jnp.where(jnp.isnan(weights), -jnp.inf, gains)
    # `_like`, because under shard_map a carry must start as varying as it ends.
    factor = jnp.zeros_like(gains, shape=(num_keep, *gains.shape))
    place = jnp.full_like(gains, num_keep, jnp.int32)
    return _State(jnp.max(gains, axis=0), gains, factor, place)


def _pick(m, state: _State, noise, limit, row_of, known_of, weights=None) -> _State:
    """Pick m of each image; where no gain reaches `limit` it takes no place and lets none reach it.

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
        # Of the weighted kernel d^2 is weights * gains: its factor is this one's, scaled by column.
        scores = jnp.where(gains >= limit, weights * gains, -jnp.inf)
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


def _finish(state, noise, num_keep, ordered):
    num_greedy = jnp.sum(state.place < num_keep, dtype=jnp.int32)
    return ordered(state.place, noise), num_greedy


def _ordered(place, noise):
    """Indices by ascending place, then ascending noise, then index."""
    index = lax.iota(jnp.int32, noise.shape[0])
    return lax.sort((place, noise, index), num_keys=2)[2]


def _ordered_on_cpu(place, noise):
    """`_ordered`, several times faster where the three keys of a patch fit into one integer.

    XLA sorts a single array of integers with native comparisons, and several arrays with a call
    for each one. `jax.random.uniform` draws multiples of 2^-23; other noise takes the slow way.
    """
    num_patches = noise.shape[0]
    if num_patches > 256:
        return _ordered(place, noise)
    steps = noise * 2.0**23
    whole = steps.astype(jnp.uint32)
    fits = jnp.all((steps >= 0) & (steps < 2**23) & (whole.astype(jnp.float32) == steps))

    def in_one_integer(place, noise):
        unplaced = jnp.max(place)
        first = jnp.where(place < unplaced, place.astype(jnp.uint32), whole + 2**23)
        index = lax.iota(jnp.uint32, num_patches)
        return (lax.sort(first << 8 | index) & 255).astype(jnp.int32)

    return lax.cond(fits, in_one_integer, _ordered, place, noise)


def _serial_from_kernels(num_keep, kernels, noise, limits, *weights):
    def one(args):
        kernel, noise, limit, *weights = args
        state = _start(jnp.diagonal(kernel), num_keep, *weights)
        state = _loop(0, num_keep, state, noise, limit, lambda pick, _: kernel[pick], *weights)
        return _finish(state, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (kernels, noise, limits, *weights))


def _batched_loop(num_keep, diagonals, noise, limits, row_of, weights=None):
    """All picks of all images (N, B), in one loop that goes on while any of them does.

    The condition is the loop's own, with no branch in its body: so XLA keeps the factor in a TPU's
    fast memory. There, images as the last axis leave few lanes idle, and a sum over a one-hot
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
    return jax.vmap(finish, in_axes=-1)(state, noise)


def _rows(matrices, pick):
    """Row pick[b] of each matrix: (B, N, N) and (B,) -> (N, B)."""
    images = lax.iota(jnp.int32, len(matrices))
    rows = matrices.at[images, pick].get(mode="promise_in_bounds").T
    return lax.platform_dependent(rows, tpu=_images_in_lanes, default=lambda rows: rows)


def _images_in_lanes(rows):
    """(N, B), to which the compiler else gives the order of the gather, and with it to the loop."""
    return with_layout_constraint(rows, Layout((0, 1)))


def _batched_from_kernels(num_keep, kernels, noise, limits, *weights):
    diagonals = jnp.diagonal(kernels, axis1=1, axis2=2).T
    weights = [one.T for one in weights]
    row_of = lambda pick, _: _rows(kernels, pick)  # noqa: E731
    return _batched_loop(num_keep, diagonals, noise.T, limits, row_of, *weights)


def _serial_from_features(num_keep, kernel, noise, limits, batch, bandwidths, *weights):
    """Kernel rows where picks need them, read from the batch itself.

    A vector times the transpose of a slice of the batch is one fused loop over memory; in any
    other form XLA copies the features of every image before it multiplies them.
    """
    num_patches, width = batch.shape[1:]

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
        few = jnp.where(limit > _ROWS_ABOVE, np.int32(min(_MAX_ROWS, num_keep)), np.int32(0))
        state = _start(jnp.where(jnp.isnan(inverse), inverse, 1.0), num_keep, *weights)
        state = _loop(0, few, state, noise, limit, row_of, *weights)
        dots = lax.cond(
            (state.best >= limit) & (few < num_keep),
            lambda: jnp.matmul(features(), features().T, precision=PRECISION),
            lambda: jnp.zeros_like(batch, shape=(num_patches, num_patches)),
        )
        row_of_all = lambda pick, _: similarity(dots[pick], pick)  # noqa: E731
        state = _loop(few, num_keep, state, noise, limit, row_of_all, *weights)
        return _finish(state, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (lax.iota(jnp.int32, len(batch)), noise, limits, bandwidths, *weights))


def _batched_from_features(num_keep, kernel, noise, limits, batch, bandwidths, *weights):
    """The Gram matrices at once, the kernel of a row when it is picked."""
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


# Arguments.


def _weights(quality, num_patches):
    """() without quality, else (its squares,), relative to the largest; NaN where it is none."""
    if quality is None:
        return ()
    quality = real(quality, "quality").astype(jnp.float32)
    if quality.shape != (num_patches,):
        raise ValueError(f"quality must be ({num_patches},), got {quality.shape}")
    usable = (quality >= 0.0) & (quality < jnp.inf)
    if not isinstance(quality, jax.core.Tracer) and not np.all(usable):
        raise ValueError("quality must be finite and 0 or more for every patch")
    largest = jnp.max(jnp.where(usable, quality, 0.0))
    return (jnp.where(usable, jnp.square(quality / jnp.where(largest > 0, largest, 1)), jnp.nan),)


def _limit(tau, threshold_on):
    """The smallest d^2 that is still picked greedily."""
    if threshold_on not in ("d2", "d"):
        raise ValueError(f"threshold_on must be 'd2' or 'd', got {threshold_on!r}")
    if isinstance(tau, (numbers.Real, np.ndarray)) and np.ndim(tau) == 0 and not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], got {tau}")
    tau = jnp.asarray(tau, jnp.float32)
    if tau.ndim:
        raise ValueError(f"tau must be a scalar for each image, got {tau.shape}; vmap over it")
    limit = jnp.maximum(tau, 0.0)
    # Explicit, because gains of exactly 1 after the first pick occur with orthogonal patches.
    return jnp.where(tau < 1.0, limit if threshold_on == "d2" else jnp.square(limit), jnp.inf)
