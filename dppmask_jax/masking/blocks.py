"""Masks of rectangles (BEiT, arXiv 2106.08254; iBOT's code)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.masking.base import (
    Mask,
    Masker,
    MaskerKind,
    check_count,
    mask_from,
    per_image,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def block(
    key: Array,
    grid: tuple[int, int],
    count: int | Int[Array, ""],
    wanted: float | Float[Array, ""] | None = None,
) -> Mask:
    """Masks rectangles (BEiT, arXiv 2106.08254, Algorithm 1; iBOT's code) to an exact count.

    Rectangles of random area and of aspect 0.3 to 1 / 0.3 are added as long as one in 10 tries
    fits into what is still to be masked; the remainder is masked at random.

    Args:
      key: a JAX key of this image alone.
      grid: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.
      wanted: the real number of patches to mask, of which rows * columns - count is the floor; as
        in iBOT's code it bounds the area of rectangles. None: the whole number does.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = grid
    num_patches = rows * columns
    check_count(count, 0, num_patches)
    block_key, noise_key = jax.random.split(key)
    index = lax.iota(jnp.int32, num_patches)
    row, column = index // columns, index % columns
    hidden = num_patches - jnp.asarray(count, jnp.int32)
    # The real number of patches bounds the area alone: whole patches fit into it where they fit
    # into its floor.
    fraction = 0.0 if wanted is None else jnp.float32(wanted) - hidden.astype(jnp.float32)
    smallest_area = float((min(grid) // 3) ** 2)

    def unfinished(state):
        covered, _, tries = state
        return (jnp.sum(covered, dtype=jnp.int32) < hidden) & (tries < 10)

    def add_rectangle(state):
        covered, draw, tries = state
        left = hidden - jnp.sum(covered, dtype=jnp.int32)
        u = jax.random.uniform(jax.random.fold_in(block_key, draw), (4,), jnp.float32)
        largest_area = left.astype(jnp.float32) + fraction
        area = smallest_area + u[0] * (largest_area - smallest_area)
        root_aspect = jnp.exp((u[1] - 0.5) * np.float32(np.log(1 / 0.3)))  # sqrt of 0.3 to 1 / 0.3
        height = jnp.round(jnp.sqrt(area) * root_aspect).astype(jnp.int32)
        width = jnp.round(jnp.sqrt(area) / root_aspect).astype(jnp.int32)
        tops, lefts = rows - height + 1, columns - width + 1
        top = jnp.floor(u[2] * tops.astype(jnp.float32)).astype(jnp.int32)
        leftmost = jnp.floor(u[3] * lefts.astype(jnp.float32)).astype(jnp.int32)
        inside = (row >= top) & (row < top + height)
        inside &= (column >= leftmost) & (column < leftmost + width)
        new = jnp.sum(inside & ~covered, dtype=jnp.int32)
        accept = (height < rows) & (width < columns) & (new > 0) & (new <= left)
        return covered | (inside & accept), draw + 1, jnp.where(accept, 0, tries + 1)

    noise = jax.random.uniform(noise_key, (num_patches,), jnp.float32)
    # Under shard_map a carry must start as varying as it ends.
    inputs = noise + hidden.astype(jnp.float32) + fraction
    none, zero = jnp.zeros_like(inputs, bool), jnp.zeros_like(inputs[0], jnp.int32)
    covered, _, _ = lax.while_loop(unfinished, add_rectangle, (none, zero, zero))
    order = lax.sort((covered.astype(jnp.int32), noise, index), num_keys=2)[2]
    return mask_from(order, count)


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        wanted = () if seen.wanted is None else (jnp.broadcast_to(seen.wanted, len(keys)),)
        return per_image(
            lambda key, count, *real: block(key, seen.grid, count, *real), keys, count, *wanted
        ), {}

    return Masker(draw, frozenset(), "block")


KIND = MaskerKind(_build)
