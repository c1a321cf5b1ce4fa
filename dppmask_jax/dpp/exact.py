"""Exact draws of a DPP of fixed size (k-DPP): sets of k items, with probability in proportion to
the determinant of their kernel.

    keys = jax.random.split(jax.random.key(0), batch)
    kernels = jax.vmap(dpp.gaussian_kernel)(features)
    items = jax.jit(jax.vmap(lambda key, kernel: dpp.sample_exact(key, kernel, 49)))(keys, kernels)

Sources: Kulesza and Taskar, arXiv 1207.6083, sections 2.4.4 (a draw in two phases) and 5.2.2 (which
eigenvectors of a k-DPP). Only jax and numpy are imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from dppmask_jax.dpp.arguments import batchable, checked_num_keep, constants, real
from dppmask_jax.dpp.kernels import PRECISION

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def sample_exact(
    key: Array,
    kernel: Float[Array, "N N"],
    k: int,
    *,
    size: Int[Array, ""] | None = None,
) -> Int[Array, " k"]:
    """One draw of the k-DPP of one image: P(Y) = det L_Y / sum of det L_Y' over all k-sets Y'.

    An eigendecomposition takes O(N^3), the draw O(N k^2). All is float32; with N = 196 the relative
    error of probabilities is about 1e-4.

    Args:
      key: a JAX key of this image alone.
      kernel: symmetric positive semi-definite, of any diagonal and scale: the kernels of `dpp`, or
        weighted by a quality, q_i K_ij q_j. An item that has NaN or infinity on the diagonal has
        probability 0. Gradients stop here.
      k: 1..N, a Python int.
      size: at most k, may be traced: the first `size` of the k items are a draw of the size-DPP,
        and the others follow uniformly at random. None: k.

    Returns:
      (k,) int32, k different items, in the order they were drawn. All orders of a set are equally
      likely, where neither `size` nor the rank is below k.
      Where the numerical rank r of the kernel is below k, all k-sets have determinant 0: the first
      r items are then a draw of the r-DPP, and the others are drawn from the rest uniformly. r is
      the number of eigenvalues above N * 1.2e-7 of the largest, as `numpy.linalg.matrix_rank`
      counts them in float32. A kernel of zeros thus gives a uniformly random set, and of a
      quality that spans more than three decades the items at the low end may never be drawn.

    Raises:
      ValueError: `kernel` is not (N, N) or complex, or `k` not an int in 1..N.
    """
    kernel = real(kernel, "kernel")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel must be (N, N), got {kernel.shape}; use jax.vmap for a batch")
    num_items = kernel.shape[0]
    k = checked_num_keep(k, num_items, "k")
    vector_key, item_key = jax.random.split(key)
    for_vectors = jax.random.uniform(vector_key, (num_items,), jnp.float32)
    for_items = jax.random.uniform(item_key, (k,), jnp.float32)
    run = batchable(_one_by_one, _at_once, k)
    return run(*constants(kernel), for_vectors, for_items, jnp.asarray(k if size is None else size))


def _one_by_one(k, kernels, for_vectors, for_items, sizes):
    """A batch, one image after another once all are decomposed."""
    values, vectors = _eigen(kernels)
    one = lambda args: _sample(k, *args)  # noqa: E731
    return lax.map(one, (values, vectors, for_vectors, for_items, sizes))


def _at_once(k, kernels, for_vectors, for_items, sizes):
    values, vectors = _eigen(kernels)
    one = lambda *args: _sample(k, *args)  # noqa: E731
    return jax.vmap(one)(values, vectors, for_vectors, for_items, sizes)


def _eigen(kernels):
    """Eigenvalues (B, N), relative to the largest and 0 below the rank, and eigenvectors."""
    num_items = kernels.shape[-1]
    known = jnp.isfinite(jnp.diagonal(kernels, axis1=1, axis2=2))
    kernels = jnp.where(known[:, :, None] & known[:, None], kernels, 0.0)
    largest = jnp.max(jnp.abs(kernels), axis=(1, 2), keepdims=True)
    kernels = kernels / jnp.where(largest > 0.0, largest, 1.0)
    values, vectors = jnp.linalg.eigh(0.5 * (kernels + kernels.mT), symmetrize_input=False)
    top = values[:, -1:]
    counts = values > top * (num_items * jnp.finfo(jnp.float32).eps)
    return jnp.where(counts & (top > 0.0), values / top, 0.0), vectors


def _sample(k, values, vectors, for_vectors, for_items, size):
    rank = jnp.minimum(jnp.sum(values > 0.0, dtype=jnp.int32), size)
    kept = _keep_vectors(k, values, for_vectors, rank)
    # The kept columns first; what follows them is 0, as is all of a column past the rank.
    columns = jnp.argsort(~kept)[:k]
    basis = jnp.where(kept[columns], vectors[:, columns], 0.0)
    return _draw_items(k, basis, for_items, rank)


def _keep_vectors(k, values, uniform, rank):
    """(N,) bool: which `rank` eigenvectors span the draw.

    With E[l, n] the elementary symmetric polynomial of degree l of the first n eigenvalues, vector
    n is kept with probability value E[l-1, n-1] / E[l, n], where l are still to be kept among the
    first n. Polynomials of 196 values leave float32; their ratios R[l, n] = E[l, n] / E[l-1, n] do
    not, and have a recursion of positive terms alone: R[l, n] = (R[l, n-1] + value) /
    (1 + value / R[l-1, n-1]), and the probability is value / (value + R[l, n-1]).
    """

    def extend(ratios, value):
        below = value / jnp.concatenate([jnp.full_like(ratios, jnp.inf, shape=1), ratios[:-1]])
        longer = jnp.where(value > 0.0, (ratios + value) / (1.0 + below), ratios)
        return longer, ratios

    def choose(left, step):
        value, ratios, uniform = step
        # Where E[l, n-1] is 0 the chance is 1. A vector of value 0 is never kept.
        chance = value / (value + ratios[jnp.maximum(left - 1, 0)])
        keep = (left > 0) & (value > 0.0) & (uniform < chance)
        return left - keep.astype(jnp.int32), keep

    _, ratios = lax.scan(extend, jnp.zeros_like(values, shape=k), values)
    return lax.scan(choose, rank, (values, ratios, uniform), reverse=True)[1]


def _draw_items(k, basis, uniform, rank):
    """(k,) items: `rank` of the projection DPP of the columns of `basis`, the rest at random.

    The chance of an item is what remains of its squared row once the rows drawn so far are
    projected out, by an incremental Cholesky factor as in `greedy`.
    """
    num_items = basis.shape[0]
    index = lax.iota(jnp.int32, num_items)

    def body(m, state):
        items, remaining, factor, taken = state
        total = jnp.sum(jnp.where(taken, 0.0, remaining))
        chances = jnp.where((m < rank) & (total > 0.0), remaining, 1.0)
        chances = jnp.where(taken, 0.0, chances)
        item = _draw(chances, uniform[m])
        along = jnp.matmul(basis, basis[item], precision=PRECISION)
        known = jnp.matmul(factor[:, item], factor, precision=PRECISION)
        update = (along - known) / jnp.sqrt(jnp.maximum(remaining[item], 1e-10))
        # |update| is at most the root of what remains, by Cauchy-Schwarz; rounding breaks that.
        bound = jnp.sqrt(remaining)
        update = jnp.clip(update, -bound, bound)
        remaining = jnp.maximum(remaining - jnp.square(update), 0.0)
        factor = lax.dynamic_update_index_in_dim(factor, update, m, 0)
        return items.at[m].set(item), remaining, factor, taken | (index == item)

    remaining = jnp.sum(jnp.square(basis), axis=1)
    factor = jnp.zeros_like(basis, shape=(k, num_items))
    # `_like`, because under shard_map a carry must start as varying as it ends.
    items = jnp.zeros_like(basis, shape=k, dtype=jnp.int32)
    taken = jnp.zeros_like(basis, shape=num_items, dtype=bool)
    return lax.fori_loop(0, k, body, (items, remaining, factor, taken))[0]


def _draw(chances, uniform):
    """An item in proportion to its chance; never one of chance 0 unless all are."""
    sums = jnp.cumsum(chances)
    # Items of chance 0 leave the sum as it is: the first of equal sums is where a chance was added.
    reached = (sums > uniform * sums[-1]) & (chances > 0.0)
    return jnp.where(jnp.any(reached), jnp.argmax(reached), jnp.argmax(chances)).astype(jnp.int32)
