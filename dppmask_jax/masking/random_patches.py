"""Masks at random (MAE, arXiv 2111.06377)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

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


def random(key: Array, num_patches: int, count: int | Int[Array, ""]) -> Mask:
    """Visible patches drawn uniformly (MAE, arXiv 2111.06377, section 3).

    Bit-identical to `dpp` with tau >= 1 and the same key.

    Args:
      key: a JAX key of this image alone.
      num_patches: static.
      count: number of visible patches; may be traced, then 0..num_patches is not checked.

    Raises:
      ValueError: a static `count` outside 0..num_patches.
    """
    check_count(count, 0, num_patches)
    noise = jax.random.uniform(key, (num_patches,), jnp.float32)
    return mask_from(jnp.argsort(noise).astype(jnp.int32), count)


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        num_patches = seen.grid[0] * seen.grid[1]
        return per_image(lambda key, count: random(key, num_patches, count), keys, count), {}

    return Masker(draw, frozenset(), "random")


KIND = MaskerKind(_build)
