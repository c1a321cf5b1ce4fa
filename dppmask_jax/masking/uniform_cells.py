"""Masks that leave something of every cell of 2 x 2 patches (UM-MAE, arXiv 2205.10063)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int


def uniform(key: Array, shape: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Shows one patch of each 2 x 2 cell, drawn uniformly, where a quarter of the patches is shown.

    With a smaller count some cells show none, with a larger one some show a patch more. At an odd
    edge cells are cut off. UM-MAE's second mask, on the visible patches, is not drawn.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    row, column = np.divmod(np.arange(rows * columns), columns)
    cell = row // 2 * ((columns + 1) // 2) + column // 2
    same = jnp.asarray(cell[:, None] == cell)
    noise = jax.random.uniform(key, (2, rows * columns), jnp.float32)
    index = lax.iota(jnp.int32, rows * columns)
    # The number of patches of the cell that come before each; of equal draws the lower index does.
    own, other = noise[0][:, None], noise[0][None]
    before = (other < own) | ((other == own) & (index[None] < index[:, None]))
    turn = jnp.sum(same & before, axis=1, dtype=jnp.int32)
    return mask_from(lax.sort((turn, noise[1], index), num_keys=2)[2], count)


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        return per_image(lambda key, count: uniform(key, seen.grid, count), keys, count), {}

    return Masker(draw, frozenset(), "uniform")


KIND = MaskerKind(_build)
