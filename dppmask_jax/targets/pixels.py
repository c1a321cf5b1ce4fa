"""The pixels of a patch, raw (SimMIM, arXiv 2111.09886) or standardised (MAE, arXiv 2111.06377)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import chex
import jax.numpy as jnp

from dppmask_jax import patches, pixel_format
from dppmask_jax.fields import FLAG, Field, one_of
from dppmask_jax.targets.base import (
    Target,
    TargetKind,
    masked_absolute_error,
    masked_square_error,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FIELDS = {
    "loss.norm_pix": Field(True, FLAG, "target patches standardised one by one (paper unclear)"),
    "loss.distance": Field(
        "squared", one_of("squared", "absolute"), "what is averaged over pixels (MAE; SimMIM)"
    ),
}
_LOSSES = {"squared": masked_square_error, "absolute": masked_absolute_error}


def build(config) -> Target:
    """Normalised pixels; with `loss.norm_pix` each patch standardised as well."""
    patch_size, norm_pix = config.model.patch_size, config.loss.norm_pix
    grid = patches.grid_shape(tuple(config.image_size), patch_size)
    kind = pixel_format.of(config)

    def of(images):
        return pixel_target(patches.patchify(kind.normalize(images), patch_size), norm_pix)

    def pixels(pred, images, known=None):
        if norm_pix:
            cut = patches.patchify(kind.normalize(images), patch_size)
            statistics = jnp.concatenate(patch_statistics(cut), axis=-1)
            if known is not None:
                statistics = patches.from_neighbours(statistics, known, known.shape[1], grid)
            pred = pred * statistics[..., 1:] + statistics[..., :1]
        of_channels = pred.reshape(*pred.shape[:2], -1, kind.channels)
        return kind.denormalize(of_channels).reshape(pred.shape)

    width = kind.channels * math.prod(patches.sides(patch_size))
    return Target(width, of, _LOSSES[config.loss.distance], pixels)


KIND = TargetKind(build, FIELDS)


def pixel_target(
    patches: Float[Array, "B N P"], norm_pix: bool, epsilon: float = 1e-6
) -> Float[Array, "B N P"]:
    """The pixels that are predicted for each patch.

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
