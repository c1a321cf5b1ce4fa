"""Which images to hold out for validation where a data set does not say."""

from __future__ import annotations

import hashlib

import numpy as np


def held_out(keys: list[bytes], labels: np.ndarray, fraction: float) -> np.ndarray:
    """Chooses a share of each label by hashes, so that the choice depends on the keys alone.

    Args:
      keys: n names of images.
      labels: (n,) int.
      fraction: 0 to below 1; of each label it is rounded up, but never all.

    Returns:
      (n,) bool: the `fraction` of each label whose keys have the smallest hashes.
    """
    count = np.unique(labels, return_counts=True)[1]
    return _smallest(keys, labels, np.minimum(np.ceil(count * fraction - 1e-9), count - 1))


def held_out_of_all(keys: list[bytes], labels: np.ndarray, fraction: float) -> np.ndarray:
    """As `held_out`, but the share of all images is exact, unless a label would lose its last one.

    Of each label the share is rounded down, and those that lost most by that have one more, until
    the sum is the nearest whole number to `fraction` of n.
    """
    count = np.unique(labels, return_counts=True)[1]
    quota = np.floor(count * fraction + 1e-9)
    lost = count * fraction - quota
    missing = round(len(keys) * fraction) - int(quota.sum())
    quota[np.argsort(-lost, kind="stable")[:missing]] += 1
    return _smallest(keys, labels, np.minimum(quota, count - 1))


def _smallest(keys: list[bytes], labels: np.ndarray, quota: np.ndarray) -> np.ndarray:
    """(n,) bool: so many of each label, in ascending order of labels, with the smallest hashes."""
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    order = np.lexsort((np.frombuffer(digests, "<u8"), labels))
    _, first, count = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    out = np.empty(len(order), bool)
    out[order] = rank < np.repeat(quota, count)
    return out
