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
    """Of the mean of a value an image, (M,), see `errors_of_means`."""
    return float(errors_of_means(values))


def errors_of_means(values: np.ndarray) -> np.ndarray:
    """Of the means of values of each image.

    Args:
      values: (M, ...).

    Returns:
      (...) sample deviation, of M - 1 degrees of freedom, / sqrt(M); nan for a single image, which
      knows no deviation.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / math.sqrt(len(values))


def jackknife(without: np.ndarray) -> np.ndarray:
    """Of a quantity of all images that is no mean over them, such as a ratio of sums.

    Args:
      without: (M, ...), the quantity without each of the M images, or groups of as many images, in
        turn; M at least 2.

    Returns:
      (...) sqrt((M - 1) / M * sum of squared deviations from the mean); of the mean of a value an
      image it is `error_of_mean`. nan where one of them is.
    """
    without = np.asarray(without, np.float64)
    count = len(without)
    squares = np.square(without - np.mean(without, axis=0)).sum(axis=0)
    return np.sqrt(squares * (count - 1) / count)
