"""Choose k patches of one image that differ from each other: greedy MAP of a DPP.

    keys = jax.random.split(jax.random.key(0), batch)
    choose = jax.jit(jax.vmap(lambda key, features: dpp.select(key, features, 49, tau=0.9)))
    order, num_greedy = choose(keys, features)  # features (B, N, D): visible = order[:, :49]

Everything here takes one image; put `jax.vmap` outside. A plain `jit(vmap(...))` is the fast form
on every platform. Nothing is differentiated: gradients stop at the inputs. `jax.export` for a TPU
wants `disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")]`.

Sources: DPPMask, arXiv 2303.12736, Algorithm 1 (the selector) and section 3 (the kernel);
Chen, Zhang and Zhou, NeurIPS 2018, arXiv 1709.05135 (the incremental Cholesky factor).
Only jax and numpy are imported.
"""

from __future__ import annotations

import numbers
import warnings
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax.dpp import picks
from dppmask_jax.dpp.arguments import batchable, checked_num_keep, constants, real
from dppmask_jax.dpp.kernels import checked_bandwidth, checked_features, normalized

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Shaped


def greedy_order(
    kernel: Float[Array, "N N"],
    noise: Float[Array, " N"],
    num_keep: int,
    tau: float | Float[Array, ""],
    *,
    threshold_on: str = "d2",
    quality: Float[Array, " N"] | None = None,
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Maximises log det of the kept patches' kernel greedily, then fills at random.

    Each pick takes the patch with the largest gain d^2 = det L[Y + i] / det L[Y]; ties go to the
    smallest `noise`. Once the largest gain is below `tau` the remaining places are filled with
    unselected patches by ascending `noise`. Gains never grow, so the first failure is final.

    With `quality` q the kernel is L_ij = q_i K_ij q_j of the `kernel` K that is given: the first
    pick has the largest q^2. The gain of patch i is then q_i^2 times its gain under K, and `tau` is
    compared with d_i^2 / q_i^2, which is its gain under K: how much the patch differs from those
    picked, whatever its quality. Patches below `tau` are passed over, and the largest d^2 of the
    others is picked; once all are below, the rest is filled. So a relevant twin of a picked patch
    is not picked, and does not end the selection either.

    Args:
      kernel: symmetric positive semi-definite with unit diagonal. NaN is allowed: a patch whose
        gain is NaN counts as below any tau and is only ever a random pick.
      noise: finite and independent of the kernel, uniform draws say.
      num_keep: 1..N, a Python int: bind it (`functools.partial`, a lambda) before jit or vmap.
      tau: 0 (always greedy) to 1 (no pick is greedy, and `order` equals `argsort(noise)` bit for
        bit). May be a JAX array, traced or not; those are not checked: below 0 acts like 0, above 1
        and NaN like 1.
      threshold_on: "d2" compares tau with the gain, "d" with its square root. The paper's symbol
        allows both readings.
      quality: relevance of each patch, finite and 0 or more; only ratios count. None weighs none
        and is the same as a constant. Patches of quality 0 are picked after all others.

    Returns:
      order: (N,) int32, a permutation. The first `num_keep` are kept: greedy picks in the order
        they were made, then random ones by ascending `noise`. The rest by ascending `noise`. The
        kept set for a smaller `num_keep` is a prefix of the kept set for a larger one.
      num_greedy: () int32 in 0..num_keep. 1 means that after the first patch no other was different
        enough: tau is high, the image is of one colour, or the features have so much in common that
        all are alike to the kernel (`normalize="center"` of `select` takes that away). 0 means that
        `tau` is 1 or that no patch is finite.

    Raises:
      ValueError: wrong shapes, a complex kernel or noise, `num_keep` not an int in 1..N, a number
        `tau` outside [0, 1], an unknown `threshold_on`, or a quality that is negative, NaN or
        infinite; under jit and vmap, where values are not known, such a patch is only ever a random
        pick, as one that holds NaN.
    """
    kernel, noise = real(kernel, "kernel"), real(noise, "noise")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel must be (N, N), got {kernel.shape}; use jax.vmap for a batch")
    if noise.shape != kernel.shape[:1]:
        raise ValueError(f"noise must be ({kernel.shape[0]},), got {noise.shape}")
    num_keep = checked_num_keep(num_keep, kernel.shape[0])
    weights = _weights(quality, kernel.shape[0])
    run = batchable(picks.serial_from_kernels, picks.batched_from_kernels, num_keep)
    return run(*constants(kernel, noise, _limit(tau, threshold_on), *weights))


def select(
    key: Array,
    features: Shaped[Array, "N D"],
    num_keep: int,
    tau: float | Float[Array, ""] = 0.9,
    *,
    kernel: str = "gaussian",
    bandwidth: float | Float[Array, ""] = 1.0,
    normalize: str = "l2",
    threshold_on: str = "d2",
    quality: Float[Array, " N"] | None = None,
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Chooses `num_keep` patches of one image; the noise is `jax.random.uniform(key, (N,))`.

    The same as the kernel followed by `greedy_order`, up to float32 rounding, but kernel rows are
    computed only where a pick needs them.

    Args:
      key: a JAX key of this image alone; images that share a key share their random picks.
      features: (N, D) of any real dtype; gradients stop here. A patch that holds NaN or infinity is
        never a greedy pick. Where no patch is finite the choice is random; outside jit and vmap
        that is warned about.
      num_keep, tau, threshold_on, quality: see `greedy_order`.
      kernel: "gaussian" or "cosine".
      bandwidth: of the gaussian kernel.
      normalize: "l2", "center" or "standardize", see `gaussian_kernel`.

    Returns:
      (order, num_greedy) of `greedy_order`.

    Raises:
      ValueError: as `greedy_order`, `gaussian_kernel`, or an unknown `kernel`.
    """
    features = checked_features(features)
    bandwidth = checked_bandwidth(bandwidth)
    if kernel not in ("gaussian", "cosine"):
        raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")
    num_keep = checked_num_keep(num_keep, features.shape[0])
    if not isinstance(features, jax.core.Tracer) and not has_finite_patch(features):
        warnings.warn("features: no patch is finite, the choice is random", stacklevel=2)
    features, bandwidth = normalized(features, bandwidth, normalize)
    noise = jax.random.uniform(key, features.shape[:1], jnp.float32)
    weights = _weights(quality, features.shape[0])
    run = batchable(picks.serial_from_features, picks.batched_from_features, num_keep, kernel)
    return run(*constants(noise, _limit(tau, threshold_on), features, bandwidth, *weights))


def has_finite_patch(features) -> np.ndarray:
    """(...) bool of (..., N, D): whether any patch of an image can be a greedy pick. In NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.sum(np.square(np.asarray(features).astype(np.float32)), axis=-1)
    return np.isfinite(squared).any(axis=-1)


def _weights(quality, num_patches):
    """() without quality, else (its squares,), relative to the largest; NaN where it is none."""
    if quality is None:
        return ()
    quality = real(quality, "quality").astype(jnp.float32)
    if quality.shape != (num_patches,):
        raise ValueError(f"quality must be ({num_patches},), got {quality.shape}")
    usable = (quality >= 0.0) & (quality < jnp.inf)
    if not isinstance(quality, jax.core.Tracer) and not np.all(usable):
        raise ValueError("quality must be finite and 0 or more for every patch")
    largest = jnp.max(jnp.where(usable, quality, 0.0))
    return (jnp.where(usable, jnp.square(quality / jnp.where(largest > 0, largest, 1)), jnp.nan),)


def _limit(tau, threshold_on):
    """The smallest d^2 that is still picked greedily."""
    if threshold_on not in ("d2", "d"):
        raise ValueError(f"threshold_on must be 'd2' or 'd', got {threshold_on!r}")
    if isinstance(tau, (numbers.Real, np.ndarray)) and np.ndim(tau) == 0 and not 0 <= tau <= 1:
        raise ValueError(f"tau must be in [0, 1], got {tau}")
    tau = jnp.asarray(tau, jnp.float32)
    if tau.ndim:
        raise ValueError(f"tau must be a scalar for each image, got {tau.shape}; vmap over it")
    limit = jnp.maximum(tau, 0.0)
    # Explicit, because gains of exactly 1 after the first pick occur with orthogonal patches.
    return jnp.where(tau < 1.0, limit if threshold_on == "d2" else jnp.square(limit), jnp.inf)
