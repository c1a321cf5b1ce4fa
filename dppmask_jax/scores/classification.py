"""Accuracy of single-label classification, from the scores of all classes."""

from __future__ import annotations

import numpy as np

from dppmask_jax.errors import InputError


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of images whose class is among the k with the highest scores, 0 to 1.

    Of classes with equal scores the one with the lower number ranks first, so a model that gives
    all classes the same score is right only on the classes 0..k-1.

    Args:
      scores: (M, C), the higher the likelier; M at least 1; infinite ones are compared like any.
      labels: (M,) int in 0..C-1.
      k: at least 1; every image is right where k >= C.

    Raises:
      InputError: no image, a label outside 0..C-1, or a score that is not a number.
    """
    return float(np.mean(in_top_k(scores, labels, k)))


def in_top_k(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """(M,) bool: of which images the class is among the k; arguments and errors are those of
    `top_k_accuracy`."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    _check(scores, labels)
    # scikit-learn's top_k_accuracy_score ranks the higher number first.
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    rank = np.sum((scores > own) | ((scores == own) & earlier), axis=1)
    return rank < k


def _check(scores, labels):
    if not len(labels):
        raise InputError(
            "the accuracy of no image was asked for; give an evaluation set that has images"
        )
    num_classes = scores.shape[1]
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        raise InputError(
            f"image {outside[0]} has label {labels[outside[0]]}, but the classifier has the "
            f"classes 0 to {num_classes - 1}; evaluate on the classes it was trained on"
        )
    # A NaN is larger than nothing and nothing is larger than it: it would count as right.
    undefined = np.flatnonzero(np.isnan(scores).any(axis=1))
    if undefined.size:
        raise InputError(
            f"{undefined.size} of {len(scores)} images, the first of them image {undefined[0]}, "
            "have scores that are not numbers; the model has diverged: evaluate an earlier "
            "checkpoint"
        )
