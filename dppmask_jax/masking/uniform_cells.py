"""Masks that leave something of every cell of 2 x 2 patches (UM-MAE, arXiv 2205.10063)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.errors import InputError
from dppmask_jax.masking.base import (
    Mask,
    Masker,
    MaskerKind,
    check_count,
    mask_from,
    per_image,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Int


def uniform(key: Array, shape: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Shows exactly one patch of each 2 x 2 cell, drawn uniformly: a quarter of the patches.

    At an odd edge cells are cut off, and show one of the patches that are left. UM-MAE's second
    mask, on the visible patches, is not drawn.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches, as many as there are cells; may be traced, then it is not
        checked: a smaller count shows none of some cells, a larger one patches more of some.

    Raises:
      ValueError: a static `count` other than the number of cells.
    """
    rows, columns = shape
    check_count(count, num_cells(shape), num_cells(shape))
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


def num_cells(shape: tuple[int, int]) -> int:
    """Number of cells of a grid, those that an odd edge cuts off included."""
    return math.ceil(shape[0] / 2) * math.ceil(shape[1] / 2)


def _check_counts(mask, shape, fewest: int, most: int) -> None:
    num_patches, shown = shape[0] * shape[1], num_cells(shape)
    if fewest == most == num_patches - shown:
        return
    hides = f"{most}" if fewest == most else f"{fewest} to {most}"
    raise InputError(
        "mask.strategy='uniform' shows one patch of each 2 x 2 and hides "
        f"{num_patches - shown} of {num_patches}; mask.ratio hides {hides}: a ratio of "
        f"{_fitting(num_patches, shown)} is wanted"
    )


def _fitting(num_patches: int, shown: int) -> str:
    """The ratio that leaves so many visible, in words. Of what is no whole number of patches, MAE
    rounds the visible ones down, iBOT the masked ones, so no ratio in a few digits fits both."""
    if 4 * shown == num_patches:
        return "0.75"
    hidden = num_patches - shown
    return f"{(hidden - 0.5) / num_patches:.4f} (iBOT: {(hidden + 0.5) / num_patches:.4f})"


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        return per_image(lambda key, count: uniform(key, seen.grid, count), keys, count), {}

    return Masker(draw, frozenset(), "uniform")


KIND = MaskerKind(_build, check_counts=_check_counts)
