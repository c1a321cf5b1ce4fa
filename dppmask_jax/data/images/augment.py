"""What the device does to images before the model sees them."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dppmask_jax.fields import FLAG, Field
from dppmask_jax.pixel_format import RGB

_ERASED_AREA = (0.02, 1 / 3)  # share of the image's
_ERASED_ASPECT = (0.3, 1 / 0.3)  # height to width
_ERASING_TRIES = 10
normalize = RGB.normalize
denormalize = RGB.denormalize
FIELDS = {"data.flip": Field(True, FLAG, "whether half of the images are flipped, left to right")}


def flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half.

    Args:
      images: (B, H, W, ...) of any dtype; maps of images are mirrored where these are, by the same
        keys.
      keys: (B,) typed PRNG keys, one an image: whether an image is mirrored depends on its own
        key alone.

    Returns:
      (B, H, W, ...) of the same dtype.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    mirrored = jnp.expand_dims(mirrored, tuple(range(1, images.ndim)))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def random_erasing(images: jax.Array, keys: jax.Array, *, prob: float = 0.25) -> jax.Array:
    """Replaces a box of some images by noise (arXiv 1708.04896, with timm's numbers).

    The box takes 0.02 to 1/3 of the area, uniformly, and its ratio of height to width is
    log-uniform in 0.3 to 1/0.3. The first of at most ten that is smaller than the image in both
    directions is placed anywhere; if there is none, nothing is erased. Each value in the box
    becomes one of a standard normal distribution.

    Args:
      images: (B, H, W, 3) float, normalised.
      keys: (B,) typed PRNG keys, one an image: what happens to an image depends on its own key
        alone.
      prob: of erasing, for each image.

    Returns:
      (B, H, W, 3) of the same type.
    """
    chex.assert_rank([images, keys], [4, 1])
    chex.assert_type(images, float)
    return jax.vmap(lambda image, key: _erase(image, key, prob))(images, keys)


def _erase(image, key, prob):
    whether_key, area_key, aspect_key, row_key, column_key, noise_key = jax.random.split(key, 6)
    height, width, _ = image.shape
    tries = (_ERASING_TRIES,)
    area = (
        height
        * width
        * jax.random.uniform(area_key, tries, minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1])
    )
    low, high = jnp.log(jnp.asarray(_ERASED_ASPECT))
    aspect = jnp.exp(jax.random.uniform(aspect_key, tries, minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    rows = _stretch(row_key, heights[first], height)
    columns = _stretch(column_key, widths[first], width)
    erased = fits.any() & jax.random.bernoulli(whether_key, prob)
    inside = erased & rows[:, None] & columns
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(inside[..., None], noise, image)


def _stretch(key, size, length: int):
    """(length,) bool: `size` places in a row, True, anywhere; `size` may be traced."""
    start = jax.random.randint(key, (), 0, jnp.maximum(length - size, 0) + 1)
    place = jnp.arange(length)
    return (place >= start) & (place < start + size)
