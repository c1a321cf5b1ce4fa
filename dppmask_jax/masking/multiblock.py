"""Masks of several target blocks within a context (I-JEPA, arXiv 2301.08243)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int

TARGETS = 4
TARGET_SCALE, TARGET_ASPECT = (0.15, 0.2), (0.75, 1.5)
CONTEXT_SCALE, CONTEXT_ASPECT = (0.85, 1.0), (1.0, 1.0)


def multiblock(key: Array, shape: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Masks four blocks of one size; first of all the rest shows a large square around them.

    Sizes and places are those of the authors' code (multiblock.py): one draw gives both the area,
    .15 to .2 of the grid, and the aspect, .75 to 1.5, of all four targets; the context has an area
    of .85 to 1. A side is shorter than the grid's, and a block never reaches the last row and the
    last column. The authors draw sizes once for a batch; here each image has its own.

    The exact count is ours. The union of the targets is masked; where it is too large, a part of it
    drawn at random. Where it is too small, patches outside of the context are masked too, which the
    authors neither show nor predict, and then patches of the context, drawn at random. On 14 x 14
    patches the context always ends before the last row and column, so that at a ratio of .75 those
    are nearly always masked.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    size_key, place_key, noise_key = jax.random.split(key, 3)
    size = jax.random.uniform(size_key, (2,), jnp.float32)
    place = jax.random.uniform(place_key, (TARGETS + 1, 2), jnp.float32)
    target = _sides(size[0], shape, TARGET_SCALE, TARGET_ASPECT)
    is_target = jnp.zeros(rows * columns, bool)
    for number in range(TARGETS):
        is_target |= _block(place[number], shape, target)
    context = _block(place[TARGETS], shape, _sides(size[1], shape, CONTEXT_SCALE, CONTEXT_ASPECT))
    # Context, then what is neither, then targets: masked from the end.
    tier = jnp.where(is_target, 2, jnp.where(context, 0, 1)).astype(jnp.int32)
    noise = jax.random.uniform(noise_key, (rows * columns,), jnp.float32)
    index = lax.iota(jnp.int32, rows * columns)
    return mask_from(lax.sort((tier, noise, index), num_keys=2)[2], count)


def _sides(draw, shape, scale, aspect):
    """(height, width) of a block, int32, by one draw of 0 to 1."""
    area = jnp.floor(np.float32(shape[0] * shape[1]) * _between(*scale, draw))
    ratio = _between(*aspect, draw)
    sides = jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)
    return [
        jnp.clip(jnp.round(side).astype(jnp.int32), 1, max(whole - 1, 1))
        for side, whole in zip(sides, shape, strict=True)
    ]


def _between(low: float, high: float, draw):
    return np.float32(low) + np.float32(high - low) * draw


def _block(draw, shape, sides):
    """(N,) bool of a block at a place drawn from two numbers of 0 to 1."""
    index = lax.iota(jnp.int32, shape[0] * shape[1])
    inside = jnp.ones(len(index), bool)
    for along, u, side, whole in zip(
        (index // shape[1], index % shape[1]), draw, sides, shape, strict=True
    ):
        places = jnp.maximum(whole - side, 1)  # one fewer than would fit
        start = jnp.floor(u * places.astype(jnp.float32)).astype(jnp.int32)
        inside &= (along >= start) & (along < start + side)
    return inside


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        return per_image(lambda key, count: multiblock(key, seen.grid, count), keys, count), {}

    return Masker(draw, frozenset(), "multi-block")


KIND = MaskerKind(_build)
