"""Losses of masked image modelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def pixel_target(
    patches: Float[Array, "B N P"], norm_pix: bool, epsilon: float = 1e-6
) -> Float[Array, "B N P"]:
    """What the decoder has to predict for each patch (MAE, arXiv 2111.06377, section 3).

    Args:
      patches: normalised pixels of the patches.
      norm_pix: standardise each patch by its own mean and unbiased (n - 1) variance.
      epsilon: added to the variance.

    Returns:
      (B, N, P) float32.
    """
    chex.assert_rank(patches, 3)
    patches = patches.astype(jnp.float32)
    if not norm_pix:
        return patches
    mean, deviation = patch_statistics(patches, epsilon)
    return (patches - mean) / deviation


def patch_statistics(patches: Float[Array, "B N P"], epsilon: float = 1e-6):
    """Mean and standard deviation (n - 1) of each patch, both (B, N, 1) float32."""
    patches = patches.astype(jnp.float32)
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + epsilon)


def masked_pixel_loss(
    pred: Float[Array, "B N P"], target: Float[Array, "B N P"], mask: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """Mean squared error over the masked patches of the whole batch, in float32.

    The error of a patch is averaged over its P values, summed over the masked patches and divided
    by their number (1 where no patch is masked, so the loss is then 0).
    """
    chex.assert_equal_shape([pred, target])
    chex.assert_equal_shape_prefix([pred, mask], 2)
    error = jnp.mean(jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)), axis=-1)
    masked = mask.astype(jnp.float32)
    return jnp.sum(error * masked) / jnp.maximum(jnp.sum(masked), 1.0)
