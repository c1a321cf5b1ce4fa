"""RandAugment (arXiv 1909.13719) in the variant that MAE fine-tunes with.

Two changes are drawn for each image, each out of fifteen and made with probability one half. How
strong a change is follows from a magnitude, 0 to 10, drawn anew for each; all grow with it (timm
calls this rand-m9-mstd0.5-inc1). What a geometric change uncovers gets the mean colour of ImageNet.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)  # imagenet.MEAN in grey levels
MAX_MAGNITUDE = 10.0
_PROB = 0.5
_BICUBIC = Image.Resampling.BICUBIC


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    *,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
    num_ops: int = 2,
) -> Image.Image:
    """Changes an image at random.

    Args:
      image: of mode RGB.
      magnitude, magnitude_std: of the normal distribution of magnitudes, which are clipped to 0
        to 10.
      num_ops: how many changes are drawn, with replacement.

    Returns:
      An image of the same size and mode.
    """
    for _ in range(num_ops):
        op = OPS[rng.integers(len(OPS))]
        done = rng.random() < _PROB
        strength = min(max(rng.normal(magnitude, magnitude_std), 0.0), MAX_MAGNITUDE)
        sign = 1 if rng.random() < 0.5 else -1
        if done:
            image = op(image, sign * strength if op in SIGNED else strength)
    return image


# The changes. Each takes a magnitude from 0 to 10; those in SIGNED also its negative.


def auto_contrast(image: Image.Image, magnitude: float) -> Image.Image:
    """Stretches each channel to 0 to 255, at any magnitude."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, magnitude: float) -> Image.Image:
    """Makes each channel's histogram flat, at any magnitude."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, magnitude: float) -> Image.Image:
    """The negative, at any magnitude."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, magnitude: float) -> Image.Image:
    """Turns counter-clockwise about the centre by 3 degrees a unit of magnitude."""
    return image.rotate(3 * magnitude, resample=_BICUBIC, fillcolor=FILL)


def posterize(image: Image.Image, magnitude: float) -> Image.Image:
    """Keeps the highest 4 - int(0.4 magnitude) bits of each value."""
    dropped = 2 ** (4 + int(0.4 * magnitude))  # Pillow's posterize refuses to drop all
    return image.point([value - value % dropped for value in range(256)] * 3)


def solarize(image: Image.Image, magnitude: float) -> Image.Image:
    """Inverts the values from 256 - int(25.6 magnitude) on."""
    return ImageOps.solarize(image, 256 - int(25.6 * magnitude))


def solarize_add(image: Image.Image, magnitude: float) -> Image.Image:
    """Adds int(11 magnitude) to the values below 128."""
    added = int(11 * magnitude)
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def color(image: Image.Image, magnitude: float) -> Image.Image:
    """Blends with its grey image: the colour's share is 1 + 0.09 magnitude."""
    return ImageEnhance.Color(image).enhance(_share(magnitude))


def contrast(image: Image.Image, magnitude: float) -> Image.Image:
    """Blends with its mean grey: the image's share is 1 + 0.09 magnitude."""
    return ImageEnhance.Contrast(image).enhance(_share(magnitude))


def brightness(image: Image.Image, magnitude: float) -> Image.Image:
    """Multiplies by 1 + 0.09 magnitude."""
    return ImageEnhance.Brightness(image).enhance(_share(magnitude))


def sharpness(image: Image.Image, magnitude: float) -> Image.Image:
    """Blends with its smoothed image: the image's share is 1 + 0.09 magnitude."""
    return ImageEnhance.Sharpness(image).enhance(_share(magnitude))


def shear_x(image: Image.Image, magnitude: float) -> Image.Image:
    """Moves row y to the left by 0.03 magnitude * y, where y is measured from the upper edge."""
    return _affine(image, (1, 0.03 * magnitude, 0, 0, 1, 0))


def shear_y(image: Image.Image, magnitude: float) -> Image.Image:
    """Moves column x upwards by 0.03 magnitude * x, where x is measured from the left edge."""
    return _affine(image, (1, 0, 0, 0.03 * magnitude, 1, 0))


def translate_x(image: Image.Image, magnitude: float) -> Image.Image:
    """Moves to the left by 0.045 magnitude of the width."""
    return _affine(image, (1, 0, 0.045 * magnitude * image.width, 0, 1, 0))


def translate_y(image: Image.Image, magnitude: float) -> Image.Image:
    """Moves upwards by 0.045 magnitude of the height."""
    return _affine(image, (1, 0, 0, 0, 1, 0.045 * magnitude * image.height))


def _share(magnitude: float) -> float:
    return 1 + 0.09 * magnitude


def _affine(image: Image.Image, coefficients) -> Image.Image:
    # (a, b, c, d, e, f): the value at (x, y) comes from (a x + b y + c, d x + e y + f).
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, resample=_BICUBIC, fillcolor=FILL
    )


SIGNED = (
    rotate,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
OPS = (auto_contrast, equalize, invert, posterize, solarize, solarize_add, *SIGNED)
