"""The two losses of ADIOS (arXiv 2201.13100, section 3, and its code, github.com/YugeTen/adios):
an encoder minimises an error of images that soft masks occlude, and what draws the masks maximises
it, less a penalty of masks that cover nothing or everything.

Shapes: B images, N masks of an image, which add up to 1 at each pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_EPSILON = 1e-10


def summed_error(
    error: Callable, images: Float[Array, "B H W C"], masks: Float[Array, "B N H W"]
) -> tuple[Float[Array, ""], dict]:
    """What the encoder minimises: the sum over the masks of the error of images without what a mask
    covers.

    Args:
      error: (images (B, H, W, C) * (1 - mask), mask (B, H, W)) -> (() error, a dict of arrays). It
        is mapped over the masks.
      images: normalised, so what is covered becomes the mean colour.

    Returns:
      The sum, and the dict with a leading axis of N.
    """
    chex.assert_rank(masks, 4)

    def of_mask(mask):
        return error(images * (1.0 - mask[..., None]).astype(images.dtype), mask)

    errors, found = jax.vmap(of_mask, in_axes=1)(masks)
    return jnp.sum(errors), found


def shares(masks: Float[Array, "B N H W"]) -> Float[Array, "B N"]:
    """The share of an image that each mask covers, from 0 to 1."""
    return jnp.mean(masks, axis=(2, 3))


def sparsity(shares: Float[Array, "B N"]) -> Float[Array, " N"]:
    """The penalty of each mask, the mean over the images of 1 / sin(pi * share): 1 for half of the
    image, up to 1e10 for none and for all of it."""
    smaller = jnp.minimum(shares, 1.0 - shares)  # the sine of pi is below 0 in float32
    return jnp.mean(1.0 / (jnp.sin(jnp.pi * smaller) + _EPSILON), axis=0)


def negative_entropy(shares: Float[Array, "B N"]) -> Float[Array, " B"]:
    """sum p log p of each image, from -log(N), where all masks cover the same share, to below 0.
    p is the softmax of the shares, as in the authors' code, although they add up to 1."""
    log_p = jax.nn.log_softmax(shares, axis=-1)
    return jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def mask_objective(
    errors: Float[Array, ""],
    shares: Float[Array, "B N"],
    *,
    sparsity_weight: float,
    entropy_weight: float,
    batch_size: int,
) -> Float[Array, ""]:
    """What the mask network maximises.

    Args:
      errors: the sum of `summed_error`.
      shares: of all masks of the images.
      batch_size: of an optimiser step. The authors add the entropy term up over the batch; this
        many times its mean is the same, however a batch is spread over devices and micro-batches.
    """
    entropy = batch_size * jnp.mean(negative_entropy(shares))
    return errors - sparsity_weight * jnp.sum(sparsity(shares)) + entropy_weight * entropy
