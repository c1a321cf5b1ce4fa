"""Masks and thrown patches by attention (AMT, arXiv 2211.15362, and its code).

The draw, its weights and the shares are the authors'. Ours: the attention is computed in the step
from the crop that is masked, where their stored maps are read back; as many patches are masked and
thrown before the attention guides, where their code masks .75 and throws none; `mask.cell` of more
patches than one adds up the attention of a cell.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.fields import Field, fraction_below_1, number, whole
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

FIELDS = {
    "mask.thrown": Field(
        0.4, fraction_below_1, "amt: share of the patches that is hidden and not predicted; paper"
    ),
    "mask.guided_from": Field(
        0.1, number(0, 1), "amt: share of the run before which masks are uniform; 40 of 400 epochs"
    ),
    "mask.amt_cell": Field(
        1, whole(1), "amt: patches on a side of what is drawn; 2 in the authors' SimMIM"
    ),
}
_LEAST = 1e-8  # of a weight, so that its logarithm is finite


def attention_weights(attention: Float[Array, "H N"]) -> Float[Array, " N"]:
    """A class token's attention, scaled from 0 to 1 in each head; the mean over heads.

    A head that attends to all patches alike counts as 0 everywhere.
    """
    low = jnp.min(attention, axis=1, keepdims=True)
    spread = jnp.max(attention, axis=1, keepdims=True) - low
    scaled = (attention - low) / jnp.where(spread > 0, spread, 1.0)
    return jnp.mean(scaled, axis=0)


def amt(
    key: Array,
    weights: Float[Array, " N"],
    grid: tuple[int, int],
    count: int | Int[Array, ""],
    num_thrown: int = 0,
    cell: int = 1,
) -> Mask:
    """Masks and throws patches that are drawn without replacement, in proportion to weights.

    All patches are drawn one after the other: the first are masked, the next are thrown, the last
    stay visible. Such a draw is the order of log(weight) plus Gumbel noise.

    Args:
      key: a JAX key of this image alone.
      weights: at least 0; what has none comes last. Gradients stop here.
      grid: (rows, columns) of patches; static.
      count: number of visible patches, 0..N; may be traced.
      num_thrown: static; fewer where that would leave no hidden patch to predict.
      cell: patches on a side of the squares that are drawn in place of single patches, each by the
        sum of its weights; static. Where a number of patches fills no whole cell, a part of one
        more, at random, makes it up.
    """
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    across = math.ceil(columns / cell)
    number = jnp.asarray(row // cell * across + column // cell, jnp.int32)
    num_cells = math.ceil(rows / cell) * across
    of_cells = jax.ops.segment_sum(
        lax.stop_gradient(weights).astype(jnp.float32), number, num_segments=num_cells
    )
    cell_key, patch_key = jax.random.split(key)
    score = jnp.log(of_cells + _LEAST) + jax.random.gumbel(cell_key, (num_cells,), jnp.float32)
    place = jnp.argsort(jnp.argsort(-score)).astype(jnp.int32)
    noise = jax.random.uniform(patch_key, (rows * columns,), jnp.float32)
    index = lax.iota(jnp.int32, rows * columns)
    drawn = lax.sort((place[number], noise, index), num_keys=2)[2]
    return _in_order(drawn, count, num_thrown)


def _in_order(drawn, count, num_thrown: int) -> Mask:
    """The Mask of patches in the order of the draw: masked, thrown, visible."""
    num_patches = len(drawn)
    hidden = num_patches - jnp.asarray(count, jnp.int32)
    masked = hidden - jnp.minimum(num_thrown, jnp.maximum(hidden - 1, 0))
    index = lax.iota(jnp.int32, num_patches)
    group = jnp.where(index < masked, 1, jnp.where(index < hidden, 2, 0))
    return mask_from(lax.sort((group, index, drawn), num_keys=2)[2], count, num_thrown)


def _build(mask) -> Masker:
    thrown, start = mask.thrown, mask.guided_from

    def num_thrown(num_patches: int) -> int:
        return int(num_patches * thrown)

    def guidance(progress):
        """1 where attention guides, 0 before."""
        return jnp.asarray(progress >= start, jnp.float32)

    def draw(keys, count, seen, most):
        number = num_thrown(seen.grid[0] * seen.grid[1])

        def one(key, count, attention):
            weights = attention_weights(attention)
            weights = jnp.where(guidance(seen.progress) > 0, weights, jnp.ones_like(weights))
            return amt(key, weights, seen.grid, count, number, mask.amt_cell)

        return per_image(one, keys, count, seen.attention()), {}

    return Masker(
        draw,
        frozenset({"attention"}),
        f"AMT ({thrown:.0%} thrown)",
        num_thrown=num_thrown,
        schedules={"mask.guided_from": guidance},
    )


KIND = MaskerKind(_build, FIELDS)
