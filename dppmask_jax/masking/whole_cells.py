"""Masks of whole square cells of patches (SimMIM, arXiv 2111.09886)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.fields import Field, whole
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int

FIELDS = {"mask.cell": Field(2, whole(1), "cells: patches on a side; 2 of 16 px are SimMIM's 32")}


def cells(key: Array, shape: tuple[int, int], count: int | Int[Array, ""], cell: int = 2) -> Mask:
    """Masks cells drawn uniformly; where the count fills no whole cell, a part of one more.

    SimMIM masks ceil(0.6 * 49) = 30 cells, 120 of 196 patches: mask.ratio=0.6122.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.
      cell: patches on a side of a cell; static. At an edge that it does not divide cells are cut
        off.

    Raises:
      ValueError: a static `count` outside 0..rows * columns, or a `cell` below 1.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    if cell < 1:
        raise ValueError(f"cell must be at least 1, got {cell}")
    row, column = np.divmod(np.arange(rows * columns), columns)
    across = math.ceil(columns / cell)
    number = jnp.asarray(row // cell * across + column // cell, jnp.int32)
    cell_key, patch_key = jax.random.split(key)
    place = jax.random.permutation(cell_key, math.ceil(rows / cell) * across)
    noise = jax.random.uniform(patch_key, (rows * columns,), jnp.float32)
    index = lax.iota(jnp.int32, rows * columns)
    order = lax.sort((place.astype(jnp.int32)[number], noise, index), num_keys=2)[2]
    return mask_from(order, count)


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        def one(key, count):
            return cells(key, seen.grid, count, mask.cell)

        return per_image(one, keys, count), {}

    return Masker(draw, frozenset(), f"cells ({mask.cell} x {mask.cell} patches)")


KIND = MaskerKind(_build, FIELDS)
