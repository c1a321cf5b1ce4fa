"""What the selection kernel sees of a run's patches, and with which settings. For all methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def prepare(features, mask):
    """Features for `dpp.select` under `mask.normalize`: float32, no gradient.

    Args:
      features: (B, N, D) embeddings, tokens, head outputs or pixels.
      mask: `config.mask`.

    Returns:
      (B, N, D) float32; centred for "standardize", see `settings`.
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    if mask.normalize == "standardize":
        features = features - jnp.mean(features, axis=-1, keepdims=True)
    return features


def settings(mask, width: int) -> dict:
    """The kernel, bandwidth and threshold of `dpp.select` for features of `width` channels.

    Patches standardised to mean 0 and variance 1 are sqrt(D) times the L2-normalised centred ones,
    so their squared distances are those of the latter under a bandwidth D times smaller.
    """
    bandwidth = mask.bandwidth / (width if mask.normalize == "standardize" else 1)
    return {"kernel": mask.kernel, "bandwidth": bandwidth, "threshold_on": mask.threshold_on}


def tau_at(mask, step, total_steps: int):
    """The threshold of a step: linear from `mask.tau` to `mask.tau_end`, where there is one."""
    if mask.tau_end is None:
        return mask.tau
    progress = jnp.minimum(step / max(total_steps - 1, 1), 1.0)
    return mask.tau + (mask.tau_end - mask.tau) * progress
