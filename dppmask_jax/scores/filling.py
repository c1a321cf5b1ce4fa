"""How well hidden patches are guessed from visible ones without any learning."""

from __future__ import annotations

import numpy as np
from scipy.spatial import Delaunay

from dppmask_jax.scores import mask_shape

_FLAT = 1e-9  # of areas and weights, in units of a patch


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
    place = np.argwhere(np.ones(hidden.shape[1:], bool)).astype(np.float64)
    for image, flat in enumerate(hidden.reshape(len(hidden), -1)):
        inside, corners, weights = _triangles(place[~flat], place[flat])
        known = pixels[image, ~flat][corners]  # (Q, 3, P)
        guessed[image, np.flatnonzero(flat)[inside]] = np.einsum("qc,qcp->qp", weights, known)
    return _error(guessed, pixels, hidden)


def _triangles(points: np.ndarray, wanted: np.ndarray):
    """The triangles of points that places lie in, and their barycentric coordinates.

    Args:
      points: (K, 2).
      wanted: (M, 2).

    Returns:
      ((M,) bool, the Q places within a triangle; (Q, 3) int, its corners; (Q, 3) weights).
    """
    nothing = np.zeros(len(wanted), bool), np.zeros((0, 3), int), np.zeros((0, 3))
    away = points - points.mean(axis=0)
    (down, both), (_, across) = away.T @ away
    if down * across - both * both < _FLAT:  # on a line: there is no triangle
        return nothing
    # By hand: the mesh's own search solves a system for each triangle, which is a hundred times
    # slower where cores are shared.
    corners = Delaunay(points).simplices
    a, b, c = (points[corners[:, i]] for i in range(3))
    area = _cross(b - a, c - a)
    corners, a, b, c, area = (each[np.abs(area) > _FLAT] for each in (corners, a, b, c, area))
    place = wanted[:, None]
    weights = np.stack(
        [_cross(b - place, c - place), _cross(c - place, a - place), _cross(a - place, b - place)],
        axis=2,
    )
    weights /= area[:, None]  # (M, T, 3)
    within = (weights > -_FLAT).all(axis=2)
    inside, first = within.any(axis=1), within.argmax(axis=1)
    chosen = weights[np.arange(len(wanted)), first]
    return inside, corners[first[inside]], chosen[inside].astype(np.float32)


def _cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def _error(guessed: np.ndarray, pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    flat = hidden.reshape(len(hidden), -1)
    square = np.mean(np.square(guessed - pixels), axis=2, dtype=np.float64)
    return np.sqrt(np.sum(square * flat, axis=1) / flat.sum(axis=1))
