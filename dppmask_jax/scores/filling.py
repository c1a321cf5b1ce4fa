"""How well hidden patches are guessed from visible ones without any learning."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import QhullError
from threadpoolctl import threadpool_limits

from dppmask_jax.scores import mask_shape


def copied(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The error of copying the nearest visible patch, the first of equally near ones.

    Args:
      pixels: (B, N, P), the values of each patch.
      hidden: (B, R, C) bool with R * C = N, at least one patch of either kind in each.

    Returns:
      (B,) float64: the root of the mean squared error over the values of hidden patches.
    """
    pixels = np.asarray(pixels, np.float32)
    nearest, _ = mask_shape.nearest_visible(hidden)
    return _error(np.take_along_axis(pixels, nearest[..., None], axis=1), pixels, hidden)


def interpolated(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The error of linear interpolation between visible patches.

    Each value of a patch is interpolated over the Delaunay triangles of the centres of the visible
    patches; a hidden patch outside of all triangles copies the nearest visible one.

    Args, Returns: as for `copied`.
    """
    pixels = np.asarray(pixels, np.float32)
    nearest, _ = mask_shape.nearest_visible(hidden)
    guessed = np.take_along_axis(pixels, nearest[..., None], axis=1)
    place = np.argwhere(np.ones(hidden.shape[1:], bool))
    # The search solves a tiny system for each triangle, whose threads would wait for each other.
    with threadpool_limits(1, user_api="blas"):
        for image, flat in enumerate(hidden.reshape(len(hidden), -1)):
            try:
                between = LinearNDInterpolator(place[~flat], pixels[image, ~flat])
            except QhullError:  # there is no triangle: they are too few, or on a line
                continue
            found = between(place[flat])
            inside = ~np.isnan(found[:, 0])
            guessed[image, np.flatnonzero(flat)[inside]] = found[inside]
    return _error(guessed, pixels, hidden)


def _error(guessed: np.ndarray, pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    flat = hidden.reshape(len(hidden), -1)
    square = np.mean(np.square(guessed - pixels), axis=2, dtype=np.float64)
    return np.sqrt(np.sum(square * flat, axis=1) / flat.sum(axis=1))
