"""Images of any pixels as figures show them: three channels in colour, or one in grey.

Those of 8 bits are shown as they are. Of others each channel that is shown goes from black to white
between two percentiles of its values in all images of the figure, as a range that holds all of a
data set often leaves its images dark.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dppmask_jax.pixel_format import RGB_CHANNELS, Pixels

_PERCENTILES = (1.0, 99.0)


def look(pixels: Pixels, images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """How images of a figure are shown.

    Args:
      images: (R, H, W, C) as they are loaded, which decide what is black and white.

    Returns:
      A function of images (..., H, W, C), uint8 or floats from 0 to 1, such as reconstructions of
      these -> (..., H, W, 3) uint8.
    """
    channels = list(pixels.in_figures)
    of_all = channels == list(range(pixels.channels)) == list(range(RGB_CHANNELS))
    low, high = 0.0, 1.0
    if pixels.dtype != np.uint8:
        values = np.asarray(images, np.float32)[..., channels].reshape(-1, len(channels))
        low, high = np.percentile(values, _PERCENTILES, axis=0)
        high = np.maximum(high, low + 1e-6)

    def show(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        images = images if of_all else images[..., channels]
        if images.dtype != np.uint8:
            images = (np.nan_to_num(images.astype(np.float32)) - low) / (high - low)
            images = np.round(np.clip(images, 0.0, 1.0) * 255).astype(np.uint8)
        return images if len(channels) > 1 else np.repeat(images, RGB_CHANNELS, axis=-1)

    return show


def shown(pixels: Pixels, images: np.ndarray) -> np.ndarray:
    """(R, H, W, C) as they are loaded -> (R, H, W, 3) uint8, see `look`."""
    return look(pixels, images)(images)
