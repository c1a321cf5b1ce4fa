"""Similarity of the patches of an image, as the kernel of a DPP.

Source: DPPMask, arXiv 2303.12736, section 3.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.dpp.arguments import constants, real

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped

# Float32 and full precision whatever the model computes in: in bfloat16 a kernel entry of 0.9997
# rounds to 1, and the matrix stops being positive semi-definite.
PRECISION = lax.Precision.HIGHEST


def gaussian_kernel(
    features: Shaped[Array, "N D"],
    bandwidth: float | Float[Array, ""] = 1.0,
    *,
    normalize: str = "l2",
) -> Float[Array, "N N"]:
    """L_ij = exp(-|s_i - s_j|^2 / bandwidth) of the normalised rows s of `features`.

    Args:
      features: any real dtype, computed in float32. A row of zeros stays zero, at squared distance
        1 from any other. The row and the column of a patch that holds NaN or infinity (or whose
        squared norm overflows) are NaN, its diagonal entry too; the others are untouched.
      bandwidth: positive; may be traced.
      normalize: what is done to the rows.
        "l2": they are divided by their norm. What all patches have in common stays: an offset of
          ten standard deviations makes every entry nearly 1, and only one pick is greedy.
        "center": the mean over the patches (without those that are NaN in the kernel) is
          subtracted first, which takes away any such offset.
        "standardize": each row to mean 0 and variance 1 over its channels. Squared distances are
          then D times larger, so that `bandwidth` wants to be about D; an offset is only taken
          away where it is the same for all channels.

    Returns:
      (N, N) float32, symmetric, diagonal exactly 1, entries in [exp(-4 / bandwidth), 1], for
      "standardize" in [exp(-4 D / bandwidth), 1].

    Raises:
      ValueError: `features` is not (N, D) or complex, `bandwidth` is not positive, or an unknown
        `normalize`.
    """
    return _kernel_matrix(features, bandwidth, "gaussian", normalize)


def cosine_kernel(features: Shaped[Array, "N D"], *, normalize: str = "l2") -> Float[Array, "N N"]:
    """L_ij = cosine of the normalised rows i and j of `features`; see `gaussian_kernel`.

    Returns:
      (N, N) float32 of rank at most D, symmetric, entries in [-1, 1], diagonal exactly 1.

    Raises:
      ValueError: `features` is not (N, D) or complex, or an unknown `normalize`.
    """
    return _kernel_matrix(features, 1.0, "cosine", normalize)


def _kernel_matrix(features, bandwidth, kernel, normalize):
    features, bandwidth = checked_features(features), checked_bandwidth(bandwidth)
    features, bandwidth = constants(*normalized(features, bandwidth, normalize))
    dots = jnp.matmul(features, features.T, precision=PRECISION)
    inverse, square = norms(jnp.sum(jnp.square(features), axis=-1))
    dots = 0.5 * (dots + dots.T)
    scale, squares = inverse[:, None] * inverse[None], square[:, None] + square[None]
    similarity = kernel_entries(dots, scale, squares, bandwidth, kernel)
    index = lax.iota(jnp.int32, features.shape[0])
    diagonal = (index[:, None] == index[None]) & ~jnp.isnan(inverse)[None]
    return jnp.where(diagonal, 1.0, similarity)


def norms(squared):
    """(1 / norm, squared norm of the unit row): they turn dot products of rows into similarities.

    Scaling the Gram matrix of the raw rows is several times faster than normalising them first.
    """
    norm = jnp.sqrt(squared)
    inverse = jnp.where(jnp.isfinite(squared), 1.0 / jnp.maximum(norm, 1e-12), jnp.nan)
    return inverse, jnp.where(norm >= 1e-12, 1.0, jnp.square(norm * inverse))


def kernel_entries(dots, scale, squares, bandwidth, kernel):
    """Kernel entries from dot products; `scale` = 1 / (norm norm'), `squares` = |s|^2 + |s'|^2."""
    cosine = dots * scale
    if kernel == "cosine":
        return jnp.clip(cosine, -1.0, 1.0)
    if kernel == "gaussian":
        return jnp.exp(-jnp.maximum(squares - 2.0 * cosine, 0.0) / bandwidth)
    raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")


def normalized(features, bandwidth, normalize):
    """(features, bandwidth) whose L2-normalised rows have the kernel that `normalize` asks for."""
    if normalize == "l2":
        return features, bandwidth
    features = features.astype(jnp.float32)
    if normalize == "center":
        squared = jnp.sum(jnp.square(features), axis=1, keepdims=True)
        counts = jnp.isfinite(squared)
        total = jnp.sum(jnp.where(counts, features, 0.0), axis=0, keepdims=True)
        return features - total / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1.0), bandwidth
    if normalize == "standardize":
        # Rows of variance 1 are sqrt(D) times the L2-normalised centred ones: their squared
        # distances are D times larger, which a bandwidth D times smaller gives as well.
        mean = jnp.mean(features, axis=1, keepdims=True)
        return features - mean, bandwidth / features.shape[1]
    raise ValueError(f"normalize must be 'l2', 'center' or 'standardize', got {normalize!r}")


def checked_features(features):
    features = real(features, "features")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (N, D), got {features.shape}; use jax.vmap for a batch")
    return features


def checked_bandwidth(bandwidth):
    known = isinstance(bandwidth, (numbers.Real, np.ndarray)) and np.ndim(bandwidth) == 0
    if known and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    return bandwidth
