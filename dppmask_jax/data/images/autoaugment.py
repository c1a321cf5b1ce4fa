"""AutoAugment (arXiv 1805.09501) with the policy that its authors found on ImageNet.

One of 25 pairs of changes is drawn for each image; each change of the pair has a probability of its
own and a level, 0 to 9 (table 9; what a level means as in torchvision). Half of the levels that
have a sign are negative. Changes are made as torchvision makes them if nothing else is asked for: a
turn or a shear takes the nearest pixel, and what it uncovers is black.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from dppmask_jax.data.images.randaugment import (
    MAX_MAGNITUDE,
    auto_contrast,
    color,
    contrast,
    equalize,
    invert,
    sharpness,
)

MAX_LEVEL = 9
_NEAREST = Image.Resampling.NEAREST


class Change(NamedTuple):
    """A change that is made with probability `prob`. `level` is 0 to 9; None where there are
    none."""

    op: Callable[[Image.Image, float], Image.Image]
    prob: float
    level: int | None = None


def auto_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Changes an image at random.

    Args:
      image: of mode RGB.

    Returns:
      An image of the same size and mode.
    """
    pair = POLICY[rng.integers(len(POLICY))]
    # All are drawn, whether they are needed or not: what an image gets decides nothing about
    # others of the same generator.
    draws, signs = rng.random(2), rng.random(2)
    for change, draw, sign in zip(pair, draws, signs, strict=True):
        if draw < change.prob:
            is_negative = change.op in SIGNED and sign < 0.5
            image = change.op(image, (change.level or 0) * (-1 if is_negative else 1))
    return image


# The changes. Each takes a level from 0 to 9; those in SIGNED also its negative.


def rotate(image: Image.Image, level: float) -> Image.Image:
    """Turns counter-clockwise about the centre by 30 / 9 degrees a level."""
    return image.rotate(30 * level / MAX_LEVEL, resample=_NEAREST)


def shear_x(image: Image.Image, level: float) -> Image.Image:
    """Moves row y to the left by 0.3 / 9 level * y, where y is measured from the upper edge."""
    # (a, b, c, d, e, f): the value at (x, y) comes from (a x + b y + c, d x + e y + f).
    coefficients = (1, 0.3 * level / MAX_LEVEL, 0, 0, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=_NEAREST)


def posterize(image: Image.Image, level: float) -> Image.Image:
    """Keeps the highest 8 - round(4 / 9 level) bits of each value."""
    return ImageOps.posterize(image, 8 - round(4 * level / MAX_LEVEL))


def solarize(image: Image.Image, level: float) -> Image.Image:
    """Inverts the values from 255 (1 - level / 9) on."""
    return ImageOps.solarize(image, 255 - 255 * level / MAX_LEVEL)


def color_by(image: Image.Image, level: float) -> Image.Image:
    """Blends with its grey image: the colour's share is 1 + 0.1 level."""
    return color(image, _magnitude(level))


def contrast_by(image: Image.Image, level: float) -> Image.Image:
    """Blends with its mean grey: the image's share is 1 + 0.1 level."""
    return contrast(image, _magnitude(level))


def sharpness_by(image: Image.Image, level: float) -> Image.Image:
    """Blends with its smoothed image: the image's share is 1 + 0.1 level."""
    return sharpness(image, _magnitude(level))


def _magnitude(level: float) -> float:
    """RandAugment's magnitude of a level."""
    return MAX_MAGNITUDE * level / MAX_LEVEL


SIGNED = (rotate, shear_x, color_by, contrast_by, sharpness_by)
POLICY: tuple[tuple[Change, Change], ...] = (
    (Change(posterize, 0.4, 8), Change(rotate, 0.6, 9)),
    (Change(solarize, 0.6, 5), Change(auto_contrast, 0.6)),
    (Change(equalize, 0.8), Change(equalize, 0.6)),
    (Change(posterize, 0.6, 7), Change(posterize, 0.6, 6)),
    (Change(equalize, 0.4), Change(solarize, 0.2, 4)),
    (Change(equalize, 0.4), Change(rotate, 0.8, 8)),
    (Change(solarize, 0.6, 3), Change(equalize, 0.6)),
    (Change(posterize, 0.8, 5), Change(equalize, 1.0)),
    (Change(rotate, 0.2, 3), Change(solarize, 0.6, 8)),
    (Change(equalize, 0.6), Change(posterize, 0.4, 6)),
    (Change(rotate, 0.8, 8), Change(color_by, 0.4, 0)),
    (Change(rotate, 0.4, 9), Change(equalize, 0.6)),
    (Change(equalize, 0.0), Change(equalize, 0.8)),
    (Change(invert, 0.6), Change(equalize, 1.0)),
    (Change(color_by, 0.6, 4), Change(contrast_by, 1.0, 8)),
    (Change(rotate, 0.8, 8), Change(color_by, 1.0, 2)),
    (Change(color_by, 0.8, 8), Change(solarize, 0.8, 7)),
    (Change(sharpness_by, 0.4, 7), Change(invert, 0.6)),
    (Change(shear_x, 0.6, 5), Change(equalize, 1.0)),
    (Change(color_by, 0.4, 0), Change(equalize, 0.6)),
    (Change(equalize, 0.4), Change(solarize, 0.2, 4)),
    (Change(solarize, 0.6, 5), Change(auto_contrast, 0.6)),
    (Change(invert, 0.6), Change(equalize, 1.0)),
    (Change(color_by, 0.6, 4), Change(contrast_by, 1.0, 8)),
    (Change(equalize, 0.8), Change(equalize, 0.6)),
)
