"""Masks of the patches whose loss is predicted to be high (HPM, arXiv 2304.05919).

A share of the masked patches are the hardest of the whole image, the others are drawn uniformly
from the rest; the share rises linearly over the run, from easy to hard. Ours: it rises with every
step, where the authors' code has one share an epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from dppmask_jax.fields import Field, number, optional
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

FIELDS = {
    "mask.hard": Field(
        0.0, number(0, 1), "hard: share of the masked patches that are the hardest, at the start"
    ),
    "mask.hard_end": Field(
        0.5, optional(number(0, 1)), "that share at the end, reached linearly; None: it stays"
    ),
}


def hard(
    key: Array,
    hardness: Float[Array, " N"],
    count: int | Int[Array, ""],
    share: float | Float[Array, ""],
) -> Mask:
    """Masks the hardest patches, and others uniformly.

    With a share of 0 the mask is that of `random` with the same key.

    Args:
      key: a JAX key of this image alone.
      hardness: any numbers, larger for patches that are harder to predict. Gradients stop here.
      count: number of visible patches, 0..N; may be traced.
      share: of the masked patches, how many are the hardest: int(share * (N - count)), in float32;
        may be traced.
    """
    num_patches = len(hardness)
    masked = num_patches - jnp.asarray(count, jnp.int32)
    num_hard = jnp.floor(jnp.float32(share) * masked.astype(jnp.float32)).astype(jnp.int32)
    place = jnp.argsort(jnp.argsort(-lax.stop_gradient(hardness))).astype(jnp.int32)
    noise = jax.random.uniform(key, (num_patches,), jnp.float32)
    index = lax.iota(jnp.int32, num_patches)
    is_hard = (place < num_hard).astype(jnp.int32)
    return mask_from(lax.sort((is_hard, noise, index), num_keys=2)[2], count)


def share_at(mask, progress):
    """The share: linear from `mask.hard` to `mask.hard_end`, where there is one."""
    if mask.hard_end is None:
        return mask.hard
    return mask.hard + (mask.hard_end - mask.hard) * progress


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        share = share_at(mask, seen.progress)

        def one(key, count, hardness):
            return hard(key, hardness, count, share)

        return per_image(one, keys, count, seen.hardness()), {}

    end = "" if mask.hard_end is None else f" to {mask.hard_end:.0%}"
    return Masker(
        draw,
        frozenset({"hardness"}),
        f"hard ({mask.hard:.0%}{end} hardest)",
        schedules={"mask.hard": lambda progress: share_at(mask, progress)},
    )


KIND = MaskerKind(_build, FIELDS)
