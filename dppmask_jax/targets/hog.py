"""Histograms of oriented gradients (HOG), the target of MaskFeat (arXiv 2112.09133, section 3.2).

They are computed from pixel values 0 to 255, where differences of neighbours are exact. Those of
normalised pixels, as in the authors' code, are not: a difference of 0 lies on the border of two
orientations and rounding picks one, and in a flat cell the norm turns rounding of 1e-7 into a
vector of length 1. Here a flat cell is all zeros, and a shift of brightness changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from dppmask_jax import patches, pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.fields import FLAG, Field
from dppmask_jax.targets.base import Target, TargetKind, masked_square_error

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped

BINS = 9  # of orientation, over half a turn
CELL = 8  # side in pixels of what one histogram is of
_WINDOW = 16  # side in pixels of the Gaussian window, whose standard deviation is half of it

FIELDS = {
    "loss.hog_window": Field(
        False, FLAG, "HOG: pixels weighed by a Gaussian in each square of 16 (MMSelfSup's default)"
    ),
}


def build(config) -> Target:
    """HOG of each patch. A prediction of it shows no pixels."""
    patch_size, window = config.model.patch_size, config.loss.hog_window

    def of(images):
        if jnp.issubdtype(images.dtype, jnp.floating):
            images = images * 255.0
        return features(images, patch_size=patch_size, window=window)

    channels = pixel_format.of(config).channels
    return Target(channels * BINS * math.prod(_cells(patch_size)), of, masked_square_error)


def check(config) -> None:
    """Raises InputError unless patches are made of whole cells."""
    if any(side % CELL for side in patches.sides(config.model.patch_size)):
        raise InputError(
            f"config.loss.target='hog' needs patches made of cells of {CELL} pixels, "
            f"config.model.patch_size={config.model.patch_size} is no multiple of {CELL}; take "
            f"{CELL} or {2 * CELL}, or config.loss.target=pixels"
        )


KIND = TargetKind(build, FIELDS, check)


def features(
    images: Shaped[Array, "B H W C"], *, patch_size: patches.PatchSize = 16, window: bool = False
) -> Float[Array, "B N P"]:
    """HOG of each patch, of every channel by itself.

    Differences of neighbours are taken by 3 x 3 Sobel filters, with the border reflected. The
    magnitude of each pixel is added to one of 9 bins of orientation in its cell of 8 x 8 pixels;
    the 9 bins of a cell and a colour then have the L2 norm 1, or are all 0 where the cell is flat.

    Args:
      images: values from 0 to 255, uint8 or any other real dtype. Whole numbers give exact
        differences.
      patch_size: of a patch in pixels, or (height, width); multiples of 8 that divide H and W.
      window: weigh magnitudes by a Gaussian of standard deviation 8 in each square of 16 x 16
        pixels. MMSelfSup does, MaskFeat's authors do not.

    Returns:
      (B, N, P) float32 in [0, 1], P = 9 C for each cell of a patch (108 of 3 channels for 16), in
      the order (channel, bin, row of the cell, column of the cell).

    Raises:
      ValueError: the shape is another, or the patches do not fit.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, H, W, C), got {tuple(images.shape)}")
    (height, width), (high, wide) = images.shape[1:3], patches.sides(patch_size)
    if min(high, wide) < CELL or high % CELL or wide % CELL or height % high or width % wide:
        raise ValueError(
            f"patch_size must be a multiple of {CELL} that divides both sides of the images, got "
            f"{patches.size_name(patch_size)} for {height}x{width}"
        )
    return _by_patches(histograms(jnp.asarray(images), window=window), _cells(patch_size))


def _cells(patch_size: patches.PatchSize) -> tuple[int, int]:
    """The (rows, columns) of cells in a patch."""
    height, width = patches.sides(patch_size)
    return height // CELL, width // CELL


def histograms(
    images: Shaped[Array, "B H W C"], *, window: bool = False
) -> Float[Array, "B C 9 R S"]:
    """The normalised histogram of each colour and cell of 8 x 8 pixels; see `features`."""
    down, across = _sobel(images.astype(jnp.float32))
    magnitude = jnp.sqrt(jnp.square(across) + jnp.square(down))
    turns = jnp.floor(jnp.arctan2(across, down) / np.pi * BINS).astype(jnp.int32) % BINS
    # On the border of bins 0 and 8, where an arc tangent that is not exact could pick either.
    bins = jnp.where(across == 0.0, 0, turns)
    if window:
        magnitude = magnitude * _tiled_window(*images.shape[1:3])[:, :, None]
    batch, height, width, channels = images.shape
    cells = (batch, height // CELL, CELL, width // CELL, CELL, channels)
    magnitude, bins = magnitude.reshape(cells), bins.reshape(cells)
    sums = jnp.stack(
        [jnp.sum(jnp.where(bins == k, magnitude, 0.0), axis=(2, 4)) for k in range(BINS)], axis=-1
    )
    norm = jnp.sqrt(jnp.sum(jnp.square(sums), axis=-1, keepdims=True))
    return (sums / jnp.maximum(norm, 1e-12)).transpose(0, 3, 4, 1, 2)


def _sobel(images):
    """(down, across): differences of the neighbours above minus below, and left minus right, each
    summed over three with weights 1, 2, 1."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width = images.shape[1:3]

    def at(row, column):
        return padded[:, row : row + height, column : column + width]

    down = (at(0, 0) - at(2, 0)) + 2.0 * (at(0, 1) - at(2, 1)) + (at(0, 2) - at(2, 2))
    across = (at(0, 0) - at(0, 2)) + 2.0 * (at(1, 0) - at(1, 2)) + (at(2, 0) - at(2, 2))
    return down, across


def _tiled_window(height, width):
    """(H, W) float32: a Gaussian of sum 1 in each square of 16 x 16 pixels."""
    place = (np.arange(_WINDOW) - (_WINDOW - 1) / 2) / (_WINDOW / 2)
    line = np.exp(-0.5 * np.square(place))
    square = np.outer(line, line) / np.square(line.sum())
    repeats = (-(-height // _WINDOW), -(-width // _WINDOW))
    return jnp.asarray(np.tile(square, repeats)[:height, :width], jnp.float32)


def _by_patches(cells, of_patch: tuple[int, int]):
    """(B, C, 9, R, S) of cells -> (B, N, C * 9 * r * s), with (r, s) cells a patch."""
    batch, channels, bins, rows, columns = cells.shape
    down, across = of_patch
    shape = (batch, channels, bins, rows // down, down, columns // across, across)
    by_patch = cells.reshape(shape).transpose(0, 3, 5, 1, 2, 4, 6)
    return by_patch.reshape(batch, (rows // down) * (columns // across), -1)
