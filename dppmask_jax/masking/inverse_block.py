"""Masks of all but one block, which is rolled over the edges (CAPI, arXiv 2502.08769)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int

ASPECT = 2.0  # the longest side of the block to the shortest


def inverse(key: Array, shape: tuple[int, int], count: int | Int[Array, ""]) -> Mask:
    """Shows one rectangle at a random place of the grid, which it leaves at one edge to come in at
    the opposite one.

    As in CAPI's code the rectangle has an aspect, log-uniform from 1/2 to 2 as far as the grid has
    room, and sides rounded up, so that it holds at least `count` patches. Rolling is the authors':
    every patch is visible equally often. What is over is masked at random; their code cuts it off
    the rectangle's end.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.

    Raises:
      ValueError: a static `count` outside 0..rows * columns.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    aspect_key, place_key, noise_key = jax.random.split(key, 3)
    area = jnp.asarray(count, jnp.int32).astype(jnp.float32)
    # Of height to width: of what fits into the grid, and of what the authors want.
    lowest, highest = area / np.float32(columns**2), np.float32(rows**2) / jnp.maximum(area, 1.0)
    low = jnp.log(jnp.maximum(lowest, np.float32(1 / ASPECT)))
    high = jnp.log(jnp.minimum(highest, np.float32(ASPECT)))
    aspect = jnp.exp(low + (high - low) * jax.random.uniform(aspect_key, (), jnp.float32))
    # A grid that is longer than the aspect has another limit.
    aspect = jnp.clip(aspect, lowest, highest)
    height = jnp.minimum(jnp.ceil(jnp.sqrt(area * aspect)).astype(jnp.int32), rows)
    width = jnp.minimum(jnp.ceil(jnp.sqrt(area / aspect)).astype(jnp.int32), columns)

    top, left = jax.random.randint(place_key, (2,), 0, np.int32([rows, columns]), jnp.int32)
    index = lax.iota(jnp.int32, rows * columns)
    inside = (index // columns - top) % rows < height
    inside &= (index % columns - left) % columns < width
    noise = jax.random.uniform(noise_key, (rows * columns,), jnp.float32)
    order = lax.sort(((~inside).astype(jnp.int32), noise, index), num_keys=2)[2]
    return mask_from(order, count)


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        return per_image(lambda key, count: inverse(key, seen.grid, count), keys, count), {}

    return Masker(draw, frozenset(), "inverse block")


KIND = MaskerKind(_build)
