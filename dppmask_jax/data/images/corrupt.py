"""Corruptions of an image whose original is to be painted."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MOST = 100.0  # percent


def zeroed_count(num_pixels: int, percent: float) -> int:
    """How many of an image's pixels `zero_pixels` sets to 0: the nearest whole number.

    Raises:
      ValueError: percent is not 0 to 100.
    """
    if not 0 <= percent <= MOST:
        raise ValueError(f"percent={percent} of the pixels must be from 0 to 100")
    return round(num_pixels * percent / MOST)


def zero_pixels(images: jax.Array, keys: jax.Array, percent: float) -> jax.Array:
    """Sets a share of each image's pixels to black, all channels of a pixel together.

    The same number in each image, drawn without replacement: one of the corruptions that paired
    overlay is compared with, at 1 to 4 percent. Its paper says neither whether channels fall
    together nor whether the number is exact; both are ours.

    Args:
      images: (B, H, W, C), uint8 or floating point with 0 for black, so not normalised.
      keys: (B,) typed PRNG keys, one an image: what happens to an image depends on its own key
        alone.
      percent: 0 to 100, static.

    Returns:
      (B, H, W, C) of the same type.

    Raises:
      ValueError: see `zeroed_count`.
    """
    height, width = images.shape[1:3]
    count = zeroed_count(height * width, percent)

    def kept(key):
        places = jax.random.permutation(key, height * width)
        return (places >= count).reshape(height, width, 1)

    if not count:
        return images
    return jnp.where(jax.vmap(kept)(keys), images, jnp.zeros((), images.dtype))
