"""Weighted k-nearest-neighbour classification of frozen features.

The protocol is that of DINO and iBOT (arXiv 2111.07832, section 4.1): cosine similarity, the k
nearest training images vote with weight exp(similarity / temperature).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_TEST_CHUNK = 1024
_TRAIN_CHUNK = 65536  # training images compared at a time: their features may be in a file


def accuracy(train, train_labels, test, test_labels, *, k: int = 20, **settings) -> float:
    """`accuracies` for a single k."""
    (found,) = accuracies(train, train_labels, test, test_labels, ks=(k,), **settings).values()
    return found


def accuracies(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = 0.07,
    mean: np.ndarray | float = 0.0,
) -> dict[int, float]:
    """For each k the share of test images whose predicted class is right, 0 to 1.

    Args:
      train: (M, D); at least one row; may be a memory map.
      train_labels: (M,) int in 0..num_classes-1.
      test: (T, D).
      test_labels: (T,).
      ks: numbers of neighbours; all M of them where M < k.
      temperature: above 0.
      mean: subtracted from all features first, such as the training mean (D,).
    """
    found = predictions(
        train,
        train_labels,
        test,
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
        mean=mean,
    )
    return {k: float(np.mean(classes == test_labels)) for k, classes in found.items()}


def predictions(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = 0.07,
    mean: np.ndarray | float = 0.0,
) -> dict[int, np.ndarray]:
    """For each k the predicted classes (T,) of the test images; args as for `accuracies`."""
    nearest, labels = _nearest(train, train_labels, test, min(max(ks), len(train)), mean)
    found = {k: np.empty(len(test), np.int32) for k in ks}
    for rows in _chunks(len(test), _TEST_CHUNK):
        for k in ks:
            votes = _votes(nearest[rows, :k], labels[rows, :k], temperature, num_classes)
            found[k][rows] = np.argmax(votes, axis=1)
    return found


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _nearest(train, train_labels, test, k: int, mean):
    """Similarities (T, k) and labels (T, k) of the nearest training images, nearest first."""
    nearest = [np.empty((0, 0))] * len(_chunks(len(test), _TEST_CHUNK))
    labels = list(nearest)
    for rows in _chunks(len(train), _TRAIN_CHUNK):  # outermost, so that a file is read once
        chunk = _unit_rows(train[rows] - mean)
        for part, test_rows in enumerate(_chunks(len(test), _TEST_CHUNK)):
            found, index = _top(chunk, _unit_rows(test[test_rows] - mean), k=min(k, len(chunk)))
            found, of_index = np.asarray(found), train_labels[rows][np.asarray(index)]
            if nearest[part].size:
                found = np.concatenate([nearest[part], found], axis=1)
                of_index = np.concatenate([labels[part], of_index], axis=1)
                # Stable, so that of equally near images the first counts, as without chunks.
                order = np.argsort(-found, axis=1, kind="stable")[:, :k]
                found = np.take_along_axis(found, order, axis=1)
                of_index = np.take_along_axis(of_index, order, axis=1)
            nearest[part], labels[part] = found, of_index
    return np.concatenate(nearest), np.concatenate(labels)


def _unit_rows(features):
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="k")
def _top(train, test, *, k):
    similarity = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(similarity, k)


def _votes(nearest, labels, temperature, num_classes):
    # The nearest one's weight is 1: no temperature makes them overflow.
    weights = np.exp((nearest - nearest[:, :1]) / temperature)
    votes = np.zeros((len(nearest), num_classes), np.float64)
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    np.add.at(votes, (rows, labels.ravel()), weights.ravel())
    return votes
