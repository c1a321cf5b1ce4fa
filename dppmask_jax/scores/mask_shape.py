"""What shape masks have: clumps or single patches, where in the image, how far from what is seen.

Everywhere `hidden` is (B, R, C) bool, True = not visible, with at least one patch of either kind in
each mask.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_LOW = 0.25  # cycles a patch, half of the highest frequency along an axis
_IN_PLANE = np.zeros((3, 3, 3), bool)  # of neighbours: side by side, in the same mask
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


def equal_neighbours(hidden: np.ndarray) -> np.ndarray:
    """(B,): of the pairs of patches side by side, the share with both hidden or both visible.

    Masks that hide a share r of patches at random have about r² + (1 - r)².
    """
    down = hidden[:, 1:] == hidden[:, :-1]
    across = hidden[:, :, 1:] == hidden[:, :, :-1]
    pairs = down[0].size + across[0].size
    return (down.sum(axis=(1, 2)) + across.sum(axis=(1, 2))) / pairs


def largest_piece(hidden: np.ndarray) -> np.ndarray:
    """(B,): the share of the hidden patches that lie in the largest connected piece of them.

    Patches are connected that touch at a side.
    """
    labels, count = ndimage.label(hidden, _IN_PLANE)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0  # what is visible
    return sizes[labels].max(axis=(1, 2)) / hidden.sum(axis=(1, 2))


def low_frequencies(hidden: np.ndarray) -> np.ndarray:
    """(B,): the mean power of a mask below 0.25 cycles a patch over that of all its frequencies.

    The constant is left out. 1 is white, as random masks are on average; below 1 hidden patches are
    spaced, above they are in clumps.

    Raises:
      ValueError: the grid is too small to have any such frequency.
    """
    _, rows, columns = hidden.shape
    down, across = np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns)
    frequency = np.hypot(down, across)
    low = (frequency > 0) & (frequency <= _LOW)
    if not low.any():
        raise ValueError(f"a grid of {rows}x{columns} has no frequency up to {_LOW} a patch")
    power = np.abs(np.fft.fft2(hidden.astype(np.float64))) ** 2
    return power[:, low].mean(axis=1) / power[:, frequency > 0].mean(axis=1)


def distances(grid: tuple[int, int]) -> np.ndarray:
    """(N, N) float64: how far the centres of patches are apart, in patches."""
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    return np.hypot(row[:, None] - row, column[:, None] - column)


def nearest_visible(hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The visible patch nearest to each patch, the first of equally near ones.

    Returns:
      ((B, N) int, its number; (B, N) float64, how far away it is in patches).
    """
    apart = distances(hidden.shape[1:])
    near = apart.argsort(axis=1, kind="stable")  # the patches by their distance from each
    visible = ~hidden.reshape(len(hidden), -1)
    first = visible[:, near].argmax(axis=2)
    index = np.arange(len(apart))
    nearest = near[index, first]
    return nearest, apart[index, nearest]


def distance_to_visible(hidden: np.ndarray) -> np.ndarray:
    """(B,): how far the hidden patches are from the nearest visible one on average, in patches."""
    away = nearest_visible(hidden)[1]  # 0 of visible ones
    return away.sum(axis=1) / hidden.sum(axis=(1, 2))


def inner_gap(hidden: np.ndarray) -> np.ndarray:
    """(B,): the visible share of the inner patches minus that of the outer ones.

    Inner patches have their centre in the middle half of both sides of the image. Above 0 the
    middle of images is seen more often than their border.

    Raises:
      ValueError: all patches are inner ones.
    """
    _, rows, columns = hidden.shape
    inner = _in_middle(rows)[:, None] & _in_middle(columns)
    if inner.all():
        raise ValueError(f"a grid of {rows}x{columns} has no outer patch")
    return (~hidden)[:, inner].mean(axis=1) - (~hidden)[:, ~inner].mean(axis=1)


def _in_middle(count: int) -> np.ndarray:
    return np.abs(np.arange(count) + 0.5 - count / 2) <= count / 4
