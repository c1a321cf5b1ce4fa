"""What the device does to images before the model sees them."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, pixels from 0 to 1
STD = (0.229, 0.224, 0.225)


def normalize(images: jax.Array, mean=MEAN, std=STD) -> jax.Array:
    """Standardises the channels.

    Args:
      images: (..., H, W, 3), uint8 from 0 to 255 or floating point from 0 to 1.

    Returns:
      (..., H, W, 3) float32.
    """
    chex.assert_axis_dimension(images, -1, 3)
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(jnp.float32)
    elif images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255.0
    else:
        raise TypeError(f"images are {images.dtype}; they must be uint8, or float from 0 to 1")
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def denormalize(images: jax.Array, mean=MEAN, std=STD) -> jax.Array:
    """The inverse of `normalize`: (..., H, W, 3) float32 pixels, 0 to 1, not clipped."""
    return images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)


def flip_and_normalize(
    images: jax.Array, keys: jax.Array, mean=MEAN, std=STD, *, flip: bool = True
) -> jax.Array:
    """Mirrors each image left to right with probability one half, then normalises.

    Args:
      images: (B, H, W, 3), uint8 or floating point from 0 to 1.
      keys: (B,) typed PRNG keys, one an image: whether an image is mirrored depends on its own
        key alone.
      flip: False mirrors none.

    Returns:
      (B, H, W, 3) float32.
    """
    chex.assert_rank(images, 4)
    if flip:
        mirrored = jax.vmap(jax.random.bernoulli)(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return normalize(images, mean, std)
