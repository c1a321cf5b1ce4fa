"""Crops on the host: encoded bytes to uint8 arrays of one size.

Resampling is Pillow's antialiased bicubic (a = -0.5) throughout. Flipping and normalising happen on
the device, see augment.py.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from dppmask_jax.data import decode

RATIO = (3 / 4, 4 / 3)  # of width to height; arXiv 1409.4842, and torchvision's default
EVAL_ENLARGE = 256 / 224  # the usual resize before an evaluation's centre crop
_TRIES = 10


def random_box(
    rng: np.random.Generator,
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """Draws the box of a random resized crop by torchvision's procedure.

    Ten tries at an area uniform in `scale` (a share of the image's) and an aspect ratio
    log-uniform in `ratio`; if none fits into the image, the largest centred box whose ratio lies
    within `ratio`.

    Returns:
      (left, top, box width, box height) in whole pixels, inside the image.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(rng.integers(width - box_width + 1))
            top = int(rng.integers(height - box_height + 1))
            return left, top, box_width, box_height
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, min(height, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = max(1, min(width, round(height * ratio[1])))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def random_crop(
    data: bytes,
    rng: np.random.Generator,
    *,
    image_size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    """A random resized crop of an encoded image.

    Args:
      image_size: (H, W) of the result in pixels.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest ratio of the box's width to its height, relative to W / H.

    Returns:
      (H, W, 3) uint8.

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    height, width = image_size
    ratio = (ratio[0] * width / height, ratio[1] * width / height)
    image = decode.open_image(data)
    if image.format != "JPEG" or decode.orientation(image) != 1:
        image = decode.to_rgb(image)
    full_width, full_height = image.size
    left, top, box_width, box_height = random_box(
        rng, full_width, full_height, scale=scale, ratio=ratio
    )
    shrink = 1.0
    if image.format == "JPEG":
        # The JPEG decoder can halve an image on its way, much faster than resampling. Only down to
        # twice the size wanted: the rest is left to the bicubic filter, so that it still decides
        # what the result looks like.
        enlarge = 2 * max(width / box_width, height / box_height)
        least = (math.ceil(full_width * enlarge), math.ceil(full_height * enlarge))
        drafted = image.draft(None, least)
        if drafted is not None:
            shrink = drafted[1][2] / full_width  # exact; the new width is rounded up
        image = decode.to_rgb(image)
    left, top, right, lower = (
        shrink * edge for edge in (left, top, left + box_width, top + box_height)
    )
    box = (left, top, min(right, image.width), min(lower, image.height))  # rounding errors
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def center_crop(data: bytes, *, image_size: tuple[int, int]) -> np.ndarray:
    """The evaluation crop of an encoded image.

    Resizes so that the image just covers 256/224 of `image_size`, then cuts out the centre. An
    image that has the size already is returned as it is.

    Args:
      image_size: (H, W) of the result in pixels.

    Returns:
      (H, W, 3) uint8.

    Raises:
      decode.DecodeError: the bytes are no readable image.
    """
    height, width = image_size
    image = decode.to_rgb(decode.open_image(data))
    if image.size == (width, height):
        return np.asarray(image)
    cover_width, cover_height = width * EVAL_ENLARGE, height * EVAL_ENLARGE
    enlarge = max(cover_width / image.width, cover_height / image.height)
    resized_width = max(width, round(image.width * enlarge))
    resized_height = max(height, round(image.height * enlarge))
    image = image.resize((resized_width, resized_height), Image.Resampling.BICUBIC)
    left, top = (resized_width - width) // 2, (resized_height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))
