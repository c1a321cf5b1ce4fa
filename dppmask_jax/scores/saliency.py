"""How well a predicted foreground agrees with the true one, an image at a time.

The definitions are those of the authors of SOAP. A truth counts as foreground where it is above
one half (of 255, where it is uint8), and so does a prediction, but where thresholds are said.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THRESHOLDS = np.arange(255) / 255
BETA_SQUARED = 0.3  # of F-beta, as usual for saliency: precision weighs more (Achanta et al. 2009)


def foreground(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8 from 0 to 255, or floats from 0 to 1, or bool -> (H, W) bool."""
    mask = np.asarray(mask)
    return mask > (127.5 if mask.dtype == np.uint8 else 0.5)


def iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of two (H, W) bool masks; 1 for two that are empty.

    The authors' code gives NaN there: nothing was found where nothing is.
    """
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The share of pixels on which two (H, W) bool masks agree."""
    return float(np.mean(predicted == truth))


def precision_recall(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Precision and recall of a prediction that is above each of `THRESHOLDS`.

    Args:
      predicted: (H, W) from 0 to 1, or bool.
      truth: (H, W) bool.

    Returns:
      (255, 2). The precision of an empty prediction and the recall of an empty truth are 1.
    """
    if predicted.dtype == bool:  # above all thresholds or none
        found, right = np.count_nonzero(predicted), np.count_nonzero(predicted & truth)
        found, right = (np.full(len(THRESHOLDS), number) for number in (found, right))
    else:
        above = np.searchsorted(THRESHOLDS, predicted)  # how many thresholds are below each pixel
        found, right = _reverse_sums(above), _reverse_sums(above[truth])
    true = np.count_nonzero(truth)
    precision = np.where(found > 0, right / np.maximum(found, 1), 1.0)
    recall = right / true if true else np.ones(len(THRESHOLDS))
    return np.stack([precision, recall], axis=-1)


def _reverse_sums(above: np.ndarray) -> np.ndarray:
    """(255,) how many pixels are above each threshold; `above` has how many each is above."""
    counts = np.bincount(above.ravel(), minlength=len(THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def f_beta(of_image: np.ndarray) -> np.ndarray:
    """(..., 2) precision and recall -> (...) F-beta; 0 where both are 0."""
    precision, recall = of_image[..., 0], of_image[..., 1]
    below = BETA_SQUARED * precision + recall
    above = (1 + BETA_SQUARED) * precision * recall
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), 0.0)


class Best(NamedTuple):
    """The threshold with the highest mean of F-beta, and F-beta of each image there."""

    threshold: float
    values: np.ndarray  # (M,)


def best_f_beta(of_images: np.ndarray) -> Best:
    """Max F-beta: the mean over the images at each threshold, then the largest.

    Args:
      of_images: (M, 255) F-beta of each image.
    """
    place = int(np.argmax(np.mean(of_images, axis=0)))
    return Best(float(THRESHOLDS[place]), of_images[:, place])
