"""Standard errors of means over images.

Each says how far another sample of images would move it, not how far another training would.
"""

from __future__ import annotations

import math

import numpy as np


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` independent images that are right: sqrt(p (1 - p) / n).

    Args:
      share: 0 to 1.
      count: at least 1.
    """
    return math.sqrt(share * (1 - share) / count)


def error_of_mean(values: np.ndarray) -> float:
    """Of the mean of a value an image, (M,); for values of 0 and 1 it is `standard_error`."""
    return float(np.std(values) / math.sqrt(len(values)))


def jackknife(without: np.ndarray) -> np.ndarray:
    """Of a quantity of all images that is no mean over them, such as a ratio of sums.

    Args:
      without: (M, ...), the quantity without each of the M images in turn.

    Returns:
      (...) sqrt((M - 1) / M * sum of squared deviations from the mean); of the mean of a value an
      image it is its standard error with M - 1 in the place of M. nan where one of them is.
    """
    count = len(without)
    squares = np.square(without - np.mean(without, axis=0)).sum(axis=0)
    return np.sqrt(squares * (count - 1) / count)
