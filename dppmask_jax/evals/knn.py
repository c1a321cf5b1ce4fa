"""Weighted k-nearest-neighbour classification of frozen features.

The protocol is that of DINO and iBOT (arXiv 2111.07832, section 4.1): cosine similarity, the k
nearest training images vote with weight exp(similarity / temperature).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> float:
    """Share of test images whose predicted class is right, 0 to 1.

    Args:
      train_features: (M, D); at least one row.
      train_labels: (M,) int in 0..num_classes-1.
      test_features: (T, D).
      test_labels: (T,).
      k: neighbours; all of them where M < k.
      temperature: above 0.
      chunk: test images compared at a time.
    """
    k = min(k, len(train_features))
    train = _unit_rows(train_features)
    votes_of = functools.partial(_votes, k=k, num_classes=num_classes)
    right = 0
    for start in range(0, len(test_features), chunk):
        test = _unit_rows(test_features[start : start + chunk])
        votes = votes_of(train, train_labels, test, temperature)
        right += int((np.argmax(votes, axis=1) == test_labels[start : start + chunk]).sum())
    return right / len(test_features)


def _unit_rows(features):
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("k", "num_classes"))
def _votes(train, train_labels, test, temperature, *, k, num_classes):
    similarity = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = jax.lax.top_k(similarity, k)
    weight = jnp.exp(nearest / temperature)
    one_hot = jax.nn.one_hot(train_labels[index], num_classes, dtype=jnp.float32)
    return jnp.einsum("tk,tkc->tc", weight, one_hot)
