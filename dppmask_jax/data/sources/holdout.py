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
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    order = np.lexsort((np.frombuffer(digests, "<u8"), labels))
    ordered = labels[order]
    _, first, count = np.unique(ordered, return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    quota = np.minimum(np.ceil(count * fraction - 1e-9), count - 1)
    out = np.empty(len(order), bool)
    out[order] = rank < np.repeat(quota, count)
    return out
