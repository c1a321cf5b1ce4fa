"""Ridge regression onto classes, in closed form.

Features are read in chunks: they may be a memory map of more than fits into memory, all of which
scikit-learn's Ridge would load.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_CHUNK = 65536
_HELD_OUT = 10  # every tenth image chooses the strength


class Ridge(NamedTuple):
    """A linear classifier. Call it with features (M, D) for scores (M, C); `how` says in words how
    the strength was come by, "" where there was one alone."""

    weights: np.ndarray
    bias: np.ndarray
    strength: float
    how: str

    @property
    def words(self) -> str:
        """The strength, and how it was come by."""
        return f"strength {self.strength:g} {self.how}".rstrip()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return np.asarray(features, np.float64) @ self.weights + self.bias


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strengths: tuple[float, ...],
    held_out: np.ndarray | None = None,
) -> Ridge:
    """Least squares onto one-hot classes, with a penalty on the squared weights.

    Features are standardised first, so that a strength means the same for every encoder: it is
    the penalty relative to the variance of one feature. The strength with the highest accuracy on
    the images that are held out, when the others are fitted, is taken; then all images are fitted.
    Where none is held out, as of fewer than ten, it is the first strength, and `how` says so.

    Args:
      features: (M, D), may be a memory map.
      labels: (M,) int in 0..num_classes-1.
      held_out: (M,) bool; None is every tenth.
    """
    mean, deviation = _moments(features)
    if held_out is None:
        held_out = np.arange(len(features)) % _HELD_OUT == _HELD_OUT - 1
    strength, how = strengths[0], ""
    if len(strengths) > 1 and not held_out.any():
        how = "(the first, of too few training images to choose on)"
    elif len(strengths) > 1:
        how = "chosen on a tenth of the training images"
        sums = _sums(features, labels, num_classes, ~held_out, mean, deviation)
        test, test_labels = features[held_out], labels[held_out]
        found = [_solve(*sums, mean, deviation, each) for each in strengths]
        scores = (np.asarray(test, np.float64) @ weights + bias for weights, bias in found)
        accuracy = [np.mean(np.argmax(each, axis=1) == test_labels) for each in scores]
        strength = strengths[int(np.argmax(accuracy))]
    everything = _sums(features, labels, num_classes, np.ones_like(held_out), mean, deviation)
    weights, bias = _solve(*everything, mean, deviation, strength)
    return Ridge(weights, bias, strength, how)


def _moments(features):
    total = sum(np.sum(chunk, axis=0) for chunk in _chunks(features))
    mean = total / len(features)
    squares = sum(np.sum(np.square(chunk - mean), axis=0) for chunk in _chunks(features))
    return mean, np.maximum(np.sqrt(squares / len(features)), 1e-8)


def _chunks(features):
    for start in range(0, len(features), _CHUNK):
        yield np.asarray(features[start : start + _CHUNK], np.float64)


def _sums(features, labels, num_classes, chosen, mean, deviation):
    """Mean outer products of the chosen rows: (D, D) of features, (D, C) with centred classes."""
    width, count = features.shape[1], chosen.sum()
    share = np.bincount(labels[chosen], minlength=num_classes) / count
    gram, moment = np.zeros((width, width)), np.zeros((width, num_classes))
    for start in range(0, len(features), _CHUNK):
        rows = chosen[start : start + _CHUNK]
        x = (np.asarray(features[start : start + _CHUNK], np.float64)[rows] - mean) / deviation
        y = np.eye(num_classes)[labels[start : start + _CHUNK][rows]] - share
        gram += x.T @ x / count
        moment += x.T @ y / count
    return gram, moment, share


def _solve(gram, moment, share, mean, deviation, strength: float):
    """(weights (D, C), bias (C,)). Without a penalty, the smallest weights of equally good ones:
    features that are constant or depend on one another leave them open."""
    if strength:
        weights = np.linalg.solve(gram + strength * np.eye(len(gram)), moment)
    else:
        weights = np.linalg.pinv(gram, hermitian=True) @ moment
    weights = weights / deviation[:, None]
    return weights, share - mean @ weights
