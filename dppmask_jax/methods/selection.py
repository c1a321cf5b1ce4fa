"""What `config.mask` says about the selection. For all methods."""

from __future__ import annotations

import jax.numpy as jnp

_FIELDS = ("kernel", "bandwidth", "normalize", "threshold_on")


def settings(mask) -> dict:
    """The keyword arguments of `dpp.select` that `config.mask` sets for a whole run."""
    return {field: mask[field] for field in _FIELDS}


def tau_at(mask, step, total_steps: int):
    """The threshold of a step: linear from `mask.tau` to `mask.tau_end`, where there is one."""
    if mask.tau_end is None:
        return mask.tau
    progress = jnp.minimum(step / max(total_steps - 1, 1), 1.0)
    return mask.tau + (mask.tau_end - mask.tau) * progress
