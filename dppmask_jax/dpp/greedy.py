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

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Shaped

# Float32 and full precision whatever the model computes in: in bfloat16 a kernel entry of 0.9997
# rounds to 1, and the matrix stops being positive semi-definite.
_PRECISION = lax.Precision.HIGHEST

# With a threshold above this on d^2, kernel rows are computed one by one, at most so many of them,
# before the whole Gram matrix is (a row costs about a twentieth of it on a CPU). Where tau stops
# the loop after a few picks that is a bargain; where it does not, rows are lost time.
_ROWS_ABOVE = 0.7
_MAX_ROWS = 16


def gaussian_kernel(
    features: Shaped[Array, "N D"],
    bandwidth: float | Float[Array, ""] = 1.0,
    *,
    normalize: str = "l2",
) -> Float[Array, "N N"]:
    """L_ij = exp(-|s_i - s_j|^2 / bandwidth) of the normalised rows s of `features`.

    Args:
      features: any real dtype, computed in float32. A row of zeros stays zero, at squared distance
        1 from any other. The row and the column of a patch that holds NaN or infinity (or whose
        squared norm overflows) are NaN, its diagonal entry too; the others are untouched.
      bandwidth: positive; may be traced.
      normalize: what is done to the rows.
        "l2": they are divided by their norm. What all patches have in common stays: an offset of
          ten standard deviations makes every entry nearly 1, and only one pick is greedy.
        "center": the mean over the patches (without those that are NaN in the kernel) is
          subtracted first, which takes away any such offset.
        "standardize": each row to mean 0 and variance 1 over its channels. Squared distances are
          then D times larger, so that `bandwidth` wants to be about D; an offset is only taken
          away where it is the same for all channels.

    Returns:
      (N, N) float32, symmetric, diagonal exactly 1, entries in [exp(-4 / bandwidth), 1], for
      "standardize" in [exp(-4 D / bandwidth), 1].

    Raises:
      ValueError: `features` is not (N, D) or complex, `bandwidth` is not positive, or an unknown
        `normalize`.
    """
    return _kernel_matrix(features, bandwidth, "gaussian", normalize)


def cosine_kernel(features: Shaped[Array, "N D"], *, normalize: str = "l2") -> Float[Array, "N N"]:
    """L_ij = cosine of the normalised rows i and j of `features`; see `gaussian_kernel`.

    Returns:
      (N, N) float32 of rank at most D, symmetric, entries in [-1, 1], diagonal exactly 1.

    Raises:
      ValueError: `features` is not (N, D) or complex, or an unknown `normalize`.
    """
    return _kernel_matrix(features, 1.0, "cosine", normalize)


def greedy_order(
    kernel: Float[Array, "N N"],
    noise: Float[Array, " N"],
    num_keep: int,
    tau: float | Float[Array, ""],
    *,
    threshold_on: str = "d2",
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Greedily maximises log det of the kept patches' kernel, then fills at random.

    Each pick takes the patch with the largest gain d^2 = det L[Y + i] / det L[Y]; ties go to the
    smallest `noise`. Once the largest gain is below `tau` the remaining places are filled with
    unselected patches by ascending `noise`. Gains never grow, so the first failure is final.

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
        `tau` outside [0, 1], or an unknown `threshold_on`.
    """
    kernel, noise = _real(kernel, "kernel"), _real(noise, "noise")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel must be (N, N), got {kernel.shape}; use jax.vmap for a batch")
    if noise.shape != kernel.shape[:1]:
        raise ValueError(f"noise must be ({kernel.shape[0]},), got {noise.shape}")
    num_keep = _checked_num_keep(num_keep, kernel.shape[0])
    run = _batchable(_serial_from_kernels, _batched_from_kernels, num_keep)
    return run(*_constants(kernel, noise, _limit(tau, threshold_on)))


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
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Chooses `num_keep` patches of one image; the noise is `jax.random.uniform(key, (N,))`.

    The same as the kernel followed by `greedy_order`, up to float32 rounding, but kernel rows are
    computed only where a pick needs them.

    Args:
      key: a JAX key of this image alone; images that share a key share their random picks.
      features: (N, D) of any real dtype; gradients stop here. A patch that holds NaN or infinity is
        never a greedy pick. Where no patch is finite the choice is random; outside jit and vmap
        that is warned about.
      num_keep, tau, threshold_on: see `greedy_order`.
      kernel: "gaussian" or "cosine".
      bandwidth: of the gaussian kernel.
      normalize: "l2", "center" or "standardize", see `gaussian_kernel`.

    Returns:
      (order, num_greedy) of `greedy_order`.

    Raises:
      ValueError: as `greedy_order`, `gaussian_kernel`, or an unknown `kernel`.
    """
    features = _checked_features(features)
    bandwidth = _checked_bandwidth(bandwidth)
    if kernel not in ("gaussian", "cosine"):
        raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")
    num_keep = _checked_num_keep(num_keep, features.shape[0])
    if not isinstance(features, jax.core.Tracer) and not has_finite_patch(features):
        warnings.warn("features: no patch is finite, the choice is random", stacklevel=2)
    features, bandwidth = _normalized(features, bandwidth, normalize)
    noise = jax.random.uniform(key, features.shape[:1], jnp.float32)
    run = _batchable(_serial_from_features, _batched_from_features, num_keep, kernel)
    return run(*_constants(noise, _limit(tau, threshold_on), features, bandwidth))


def has_finite_patch(features) -> np.ndarray:
    """(...) bool of (..., N, D): whether any patch of an image can be a greedy pick. In NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.sum(np.square(np.asarray(features).astype(np.float32)), axis=-1)
    return np.isfinite(squared).any(axis=-1)


# The greedy loop, of one image or of a batch: patches are the first axis, images the last, if any.


class _State(NamedTuple):
    best: Float[Array, " *B"]  # largest entry of gains
    gains: Float[Array, " N *B"]  # d^2 of each patch, -inf for those that cannot be picked
    factor: Float[Array, "k N *B"]  # row m holds the Cholesky row written by pick m, 0 before
    place: Int[Array, " N *B"]  # m for pick m, k for patches not picked


def _start(diagonal, num_keep):
    gains = jnp.where(jnp.isnan(diagonal), -jnp.inf, diagonal)
    # `_like`, because under shard_map a carry must start as varying as it ends.
    factor = jnp.zeros_like(gains, shape=(num_keep, *gains.shape))
    place = jnp.full_like(gains, num_keep, jnp.int32)
    return _State(jnp.max(gains, axis=0), gains, factor, place)


def _pick(m, state: _State, noise, limit, row_of, known_of) -> _State:
    """Pick m of each image; where no gain reaches `limit` it takes no place and lets none reach it.

    `row_of(j, is_j)` is row j of the kernel. `known_of(factor, j, is_j)` is column j of the factor
    times the factor. `is_j` (N, *B) is True at patch j.
    """
    best, gains, factor, place = state
    # Ties (all patches at first, duplicates later) go to the smallest noise, not the first index:
    # this is the shuffle of Algorithm 1. Minima because XLA's arg-min is slow on a CPU.
    index = lax.broadcasted_iota(jnp.int32, gains.shape, 0)
    tied = gains == best[None]
    lowest = jnp.min(jnp.where(tied, noise, jnp.inf), axis=0)
    pick = jnp.min(jnp.where(tied & (noise == lowest[None]), index, gains.shape[0] - 1), axis=0)
    is_pick = index == pick[None]
    picked = (best >= limit)[None] & is_pick
    # Rows m.. of the factor are still zero, so the product over all k rows is the one over m.
    known = known_of(factor, pick, is_pick)
    update = (row_of(pick, is_pick) - known) / jnp.sqrt(jnp.maximum(best, 1e-10))[None]
    # |update| <= d by Cauchy-Schwarz. Rounding breaks that once a singular kernel is used up (best
    # is near 0), and without the bound each further pick would multiply the error.
    bound = jnp.sqrt(jnp.maximum(gains, 0.0))
    update = jnp.clip(update, -bound, bound)
    lower = gains - jnp.square(update)
    gone = picked | jnp.isneginf(gains) | jnp.isnan(lower)
    gains = jnp.where(gone, -jnp.inf, jnp.maximum(lower, 0.0))
    factor = lax.dynamic_update_index_in_dim(factor, jnp.where(gone, 0.0, update), m, 0)
    return _State(jnp.max(gains, axis=0), gains, factor, jnp.where(picked, m, place))


def _loop(first, last, state, noise, limit, row_of):
    """Picks first..last-1 of one image."""

    def known_of(factor, pick, _):
        column = lax.dynamic_index_in_dim(factor, pick, 1, keepdims=False)
        return jnp.matmul(column, factor, precision=_PRECISION)

    def body(m, state):
        return lax.cond(
            state.best >= limit,
            lambda state: _pick(m, state, noise, limit, row_of, known_of),
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


def _serial_from_kernels(num_keep, kernels, noise, limits):
    def one(args):
        kernel, noise, limit = args
        state = _start(jnp.diagonal(kernel), num_keep)
        state = _loop(0, num_keep, state, noise, limit, lambda pick, _: kernel[pick])
        return _finish(state, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (kernels, noise, limits))


def _batched_loop(num_keep, diagonals, noise, limits, row_of):
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
        return m + 1, _pick(m, state, noise, limits, row_of, known_of)

    state = _start(diagonals, num_keep)
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


def _batched_from_kernels(num_keep, kernels, noise, limits):
    diagonals = jnp.diagonal(kernels, axis1=1, axis2=2).T
    return _batched_loop(num_keep, diagonals, noise.T, limits, lambda pick, _: _rows(kernels, pick))


# The kernel.


def _norms(squared):
    """What turns dot products of raw rows into similarities: (1 / norm, squared unit norm).

    Scaling the Gram matrix of the raw rows is several times faster than normalising them first.
    """
    norm = jnp.sqrt(squared)
    inverse = jnp.where(jnp.isfinite(squared), 1.0 / jnp.maximum(norm, 1e-12), jnp.nan)
    return inverse, jnp.where(norm >= 1e-12, 1.0, jnp.square(norm * inverse))


def _similarity(dots, scale, squares, bandwidth, kernel):
    """Kernel entries from dot products; `scale` = 1 / (norm norm'), `squares` = |s|^2 + |s'|^2."""
    cosine = dots * scale
    if kernel == "cosine":
        return jnp.clip(cosine, -1.0, 1.0)
    if kernel == "gaussian":
        return jnp.exp(-jnp.maximum(squares - 2.0 * cosine, 0.0) / bandwidth)
    raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")


def _normalized(features, bandwidth, normalize):
    """(features, bandwidth): those whose rows, L2-normalised, have the kernel that is asked for."""
    if normalize == "l2":
        return features, bandwidth
    features = features.astype(jnp.float32)
    if normalize == "center":
        squared = jnp.sum(jnp.square(features), axis=1, keepdims=True)
        counts = jnp.isfinite(squared)
        total = jnp.sum(jnp.where(counts, features, 0.0), axis=0, keepdims=True)
        return features - total / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0), bandwidth
    if normalize == "standardize":
        # Of variance 1 they are sqrt(D) times the L2-normalised centred ones, and so their squared
        # distances those of the latter under a bandwidth D times smaller.
        mean = jnp.mean(features, axis=1, keepdims=True)
        return features - mean, bandwidth / features.shape[1]
    raise ValueError(f"normalize must be 'l2', 'center' or 'standardize', got {normalize!r}")


def _kernel_matrix(features, bandwidth, kernel, normalize):
    features, bandwidth = _checked_features(features), _checked_bandwidth(bandwidth)
    features, bandwidth = _constants(*_normalized(features, bandwidth, normalize))
    dots = jnp.matmul(features, features.T, precision=_PRECISION)
    inverse, square = _norms(jnp.sum(jnp.square(features), axis=-1))
    dots = 0.5 * (dots + dots.T)
    scale, squares = inverse[:, None] * inverse[None], square[:, None] + square[None]
    similarity = _similarity(dots, scale, squares, bandwidth, kernel)
    index = lax.iota(jnp.int32, features.shape[0])
    diagonal = (index[:, None] == index[None]) & ~jnp.isnan(inverse)[None]
    return jnp.where(diagonal, 1.0, similarity)


def _serial_from_features(num_keep, kernel, noise, limits, batch, bandwidths):
    """Kernel rows where picks need them, read from the batch itself.

    A vector times the transpose of a slice of the batch is one fused loop over memory; in any
    other form XLA copies the features of every image before it multiplies them.
    """
    num_patches, width = batch.shape[1:]

    def one(args):
        image, noise, limit, bandwidth = args

        def features():
            return lax.dynamic_index_in_dim(batch, image, keepdims=False)

        def similarity(dots, pick):
            scale, squares = inverse[pick] * inverse, square[pick] + square
            return _similarity(dots, scale, squares, bandwidth, kernel)

        def row_of(pick, _):
            dots = jnp.matmul(features()[pick], features().T, precision=_PRECISION)
            return similarity(dots, pick)

        ones = jnp.ones_like(batch, shape=width)
        inverse, square = _norms(jnp.matmul(ones, jnp.square(features()).T, precision=_PRECISION))
        few = jnp.where(limit > _ROWS_ABOVE, np.int32(min(_MAX_ROWS, num_keep)), np.int32(0))
        state = _start(jnp.where(jnp.isnan(inverse), inverse, 1.0), num_keep)
        state = _loop(0, few, state, noise, limit, row_of)
        dots = lax.cond(
            (state.best >= limit) & (few < num_keep),
            lambda: jnp.matmul(features(), features().T, precision=_PRECISION),
            lambda: jnp.zeros_like(batch, shape=(num_patches, num_patches)),
        )
        state = _loop(
            few, num_keep, state, noise, limit, lambda pick, _: similarity(dots[pick], pick)
        )
        return _finish(state, noise, num_keep, _ordered_on_cpu)

    return lax.map(one, (lax.iota(jnp.int32, len(batch)), noise, limits, bandwidths))


def _batched_from_features(num_keep, kernel, noise, limits, batch, bandwidths):
    """The Gram matrices at once, the kernel of a row when it is picked."""
    dots = jnp.matmul(batch, batch.mT, precision=_PRECISION)
    diagonal = jnp.eye(batch.shape[1], dtype=bool)
    inverse, square = _norms(jnp.sum(jnp.where(diagonal[None], dots, 0.0), axis=2).T)

    def row_of(pick, is_pick):
        def at_pick(values):
            return jnp.sum(jnp.where(is_pick, values, 0.0), axis=0, keepdims=True)

        scale, squares = at_pick(inverse) * inverse, at_pick(square) + square
        return _similarity(_rows(dots, pick), scale, squares, bandwidths[None], kernel)

    diagonals = jnp.where(jnp.isnan(inverse), inverse, 1.0)
    return _batched_loop(num_keep, diagonals, noise.T, limits, row_of)


# Batching and arguments.


@functools.cache
def _batchable(serial, batched, *static):
    """`serial(*static, ...)` of one image, which under vmap takes the form its platform runs best.

    Both functions take a batch. On a CPU that is `serial`, one image after another (in one loop
    every factor would stream through the cache at each pick, until the last image stops).
    """
    serial, batched = functools.partial(serial, *static), functools.partial(batched, *static)

    def over_images(*args):
        return lax.platform_dependent(*args, cpu=serial, default=batched)

    def one_image(*args):
        return jax.tree.map(lambda out: out[0], serial(*(arg[None] for arg in args)))

    def broadcast(axis_size, in_batched, args):
        return [
            arg if is_batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
            for arg, is_batched in zip(args, in_batched, strict=True)
        ]

    # The jit is for callers without one: it keeps what was compiled from call to call.
    run_one = jax.custom_batching.custom_vmap(jax.jit(one_image))
    run_many = jax.custom_batching.custom_vmap(jax.jit(over_images))

    @run_one.def_vmap
    def _(axis_size, in_batched, *args):
        return run_many(*broadcast(axis_size, in_batched, args)), (True, True)

    @run_many.def_vmap
    def _(axis_size, in_batched, *args):  # vmap of vmap: one longer batch
        args = broadcast(axis_size, in_batched, args)
        images = axis_size * args[0].shape[1]
        out = run_many(*(arg.reshape(images, *arg.shape[2:]) for arg in args))
        unflatten = lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:])  # noqa: E731
        return jax.tree.map(unflatten, out), (True, True)

    return run_one


def _constants(*arrays):
    """Float32, and constant to autodiff."""
    return [lax.stop_gradient(jnp.asarray(array).astype(jnp.float32)) for array in arrays]


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


def _real(array, name):
    array = jnp.asarray(array)
    if jnp.iscomplexobj(array):
        raise ValueError(f"{name} must be real, got {array.dtype}; take its modulus, say")
    return array


def _checked_features(features):
    features = _real(features, "features")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (N, D), got {features.shape}; use jax.vmap for a batch")
    return features


def _checked_bandwidth(bandwidth):
    known = isinstance(bandwidth, (numbers.Real, np.ndarray)) and np.ndim(bandwidth) == 0
    if known and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    return bandwidth


def _checked_num_keep(num_keep, num_patches):
    if isinstance(num_keep, jax.core.Tracer):
        raise ValueError("num_keep is static: bind it with functools.partial before jit or vmap")
    is_int = isinstance(num_keep, (int, np.integer))
    if not is_int or not 1 <= num_keep <= num_patches:
        raise ValueError(f"num_keep must be an int in 1..{num_patches}, got {num_keep}")
    return int(num_keep)
