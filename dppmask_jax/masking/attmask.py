"""Masks by a teacher's attention (AttMask, arXiv 2203.12719)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.fields import Field, one_of
from dppmask_jax.masking.base import (
    Mask,
    Masker,
    MaskerKind,
    draw_num_masked,
    per_image,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

SHOWN_SHARE = 0.1  # of the patches, those with most attention: hints are drawn from them
FIELDS = {
    "mask.attention": Field(
        "high",
        one_of("high", "low", "hint"),
        "which patches AttMask hides: with most attention, with least, or high but for a few "
        "(paper unclear)",
    ),
}


def attention(
    key: Array,
    weights: Float[Array, " N"],
    num_masked: int | Int[Array, ""],
    *,
    variant: str = "high",
    num_shown: int | Int[Array, ""] = 0,
    num_top: int = 0,
) -> Mask:
    """Masks by how much the class token attends to each patch (AttMask, arXiv 2203.12719).

    Args:
      key: a JAX key of this image alone, for the order and for what "hint" shows.
      weights: attention of a teacher's class token to each patch.
      num_masked: how many patches are masked, 0..N; may be traced.
      variant: "high" masks the patches with the largest weights, "low" those with the smallest,
        "hint" is "high" but shows `num_shown` of the `num_top` patches with the largest weights,
        drawn at random.
      num_shown: 0..num_top, may be traced; only for "hint".
      num_top: static; only for "hint".

    Raises:
      ValueError: an unknown `variant`, or complex weights.
    """
    if variant not in ("high", "low", "hint"):
        raise ValueError(f"variant must be 'high', 'low' or 'hint', got {variant!r}")
    if jnp.iscomplexobj(weights):
        raise ValueError(f"weights must be real, got {weights.dtype}")
    weights = lax.stop_gradient(weights)
    noise = jax.random.uniform(key, weights.shape, jnp.float32)
    rank = _rank(weights if variant == "low" else -weights)
    mask = rank < jnp.asarray(num_masked, jnp.int32)
    if variant == "hint":
        among_top = _rank(jnp.where(rank < num_top, noise, jnp.inf))
        mask &= among_top >= jnp.asarray(num_shown, jnp.int32)
    index = lax.iota(jnp.int32, weights.shape[0])
    order = lax.sort((mask.astype(jnp.int32), noise, index), num_keys=2)[2]
    return Mask(order, mask, jnp.sum(~mask, dtype=jnp.int32))


def _rank(values):
    """(N,) int32: the place of each entry in ascending order, from 0."""
    return jnp.argsort(jnp.argsort(values)).astype(jnp.int32)


def _build(mask) -> Masker:
    variant = mask.attention

    def draw(keys, count, seen, most):
        num_patches = seen.grid[0] * seen.grid[1]
        num_top = int(num_patches * SHOWN_SHARE)

        def hide(key, count, weights):
            num_masked = num_patches - count
            if seen.step_key is None:  # no step draws the number of hints: half of them
                num_shown = (jnp.minimum(num_top, num_masked) + 1) // 2
            else:
                num_shown = _num_shown(mask, seen.step_key, num_patches)
            return attention(
                key, weights, num_masked, variant=variant, num_shown=num_shown, num_top=num_top
            )

        weights = jnp.mean(seen.attention(), axis=1)  # over the heads
        return per_image(hide, keys, count, weights), {}

    return Masker(draw, frozenset({"attention"}), f"AttMask ({variant})", shared_ratio=True)


def _num_shown(mask, key, num_patches: int):
    """How many hints all images of a step show: a share of another draw of the ratio."""
    ratios = tuple(np.atleast_1d(mask.ratio).tolist())
    variations = getattr(mask, "ratio_var", (0.0,) * len(ratios))
    return draw_num_masked(key, num_patches, ratios, tuple(variations), SHOWN_SHARE)[0]


KIND = MaskerKind(
    _build,
    FIELDS,
    variants=({"attention": "high"}, {"attention": "low"}, {"attention": "hint"}),
)
