"""Mean and covariance of any number of rows that come in batches (Chan, Golub and LeVeque, 1979).

Batches are summed up on the device in float32, each around its own mean, and merged on the host in
float64, so that neither a large mean nor many batches cost precision.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
    """Attributes:
    count: number of rows.
    mean: (D,).
    scatter: (D, D), the sum of (row - mean)(row - mean)^T.
    """

    count: float
    mean: np.ndarray
    scatter: np.ndarray


@jax.jit
def of_batch(rows: jax.Array, valid: jax.Array) -> Moments:
    """The moments of the rows of valid images; float32.

    Args:
      rows: (B, N, D), N rows of each image.
      valid: (B,) bool.
    """
    rows = rows.astype(jnp.float32)
    count = jnp.sum(valid) * rows.shape[1]
    weights = valid.astype(jnp.float32)[:, None, None]
    mean = jnp.sum(weights * rows, axis=(0, 1)) / jnp.maximum(count, 1)
    centred = weights * (rows - mean)
    flat = centred.reshape(-1, rows.shape[-1])
    return Moments(count, mean, jnp.matmul(flat.T, flat, precision="highest"))


def merged(first: Moments | None, second: Moments) -> Moments:
    """The moments of the rows of both, float64; `first` None has no rows."""
    second = Moments(*(np.asarray(value, np.float64) for value in second))
    if first is None or first.count == 0:
        return second
    count = first.count + second.count
    delta, share = second.mean - first.mean, second.count / count
    return Moments(
        count,
        first.mean + delta * share,
        first.scatter + second.scatter + np.outer(delta, delta) * first.count * share,
    )


def covariance(moments: Moments) -> np.ndarray:
    """(D, D) float64, unbiased: the scatter over one less than the number of rows, at least 2."""
    return moments.scatter / (moments.count - 1)
