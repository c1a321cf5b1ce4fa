"""Regular grids of visible patches (MAE, arXiv 2111.06377, section 4: grid-wise sampling)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int

_BITS = 3  # of a place: the order repeats every 8 patches


def grid(key: Array, shape: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Shows a regular grid: of a quarter of the patches one in each 2 x 2, the same in all images.

    Grids are nested: a larger count shows what a smaller one does. Where the count fills no whole
    grid, those of its last one are drawn.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    level = jnp.asarray(_levels(rows, columns))
    noise = jax.random.uniform(key, level.shape, jnp.float32)
    index = lax.iota(jnp.int32, rows * columns)
    return mask_from(lax.sort((level, noise, index), num_keys=2)[2], count)


def _levels(rows: int, columns: int) -> np.ndarray:
    """(N,) int32: the place of each patch in Bayer's order, in which grids become finer."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    level = np.zeros(rows * columns, np.int32)
    for bit in range(_BITS):
        pair = 2 * ((row ^ column) >> bit & 1) + (row >> bit & 1)
        level += (pair << 2 * (_BITS - 1 - bit)).astype(np.int32)
    return level


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        return per_image(lambda key, count: grid(key, seen.grid, count), keys, count), {}

    return Masker(draw, frozenset(), "grid")


KIND = MaskerKind(_build)
