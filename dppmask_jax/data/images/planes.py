"""Images of any number of channels and 8 bits or floats, with as much of Pillow's interface as
crops need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Planes(NamedTuple):
    """Upright pixels (h, w, C), uint8 or float32.

    Pillow resamples one channel after the other, with its antialiased filters: "L" for uint8, which
    gives what it makes of RGB, bit for bit, and "F" for floats.
    """

    pixels: np.ndarray

    format: None = None
    """As of a Pillow image that comes from no file."""

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height

    def resize(self, size: tuple[int, int], resample, box: Box | None = None) -> Planes:
        """As Pillow's, of (width, height). Floats stay within 0 to 1, which a bicubic filter
        overshoots."""
        channels = np.moveaxis(self.pixels, -1, 0)
        resized = [
            np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, resample, box=box))
            for plane in channels
        ]
        pixels = np.stack(resized, axis=-1)
        return Planes(pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0.0, 1.0))

    def crop(self, box: tuple[int, int, int, int]) -> Planes:
        """As Pillow's, of a box inside the image."""
        left, top, right, bottom = box
        return Planes(self.pixels[top:bottom, left:right])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.pixels, dtype, copy=copy)
