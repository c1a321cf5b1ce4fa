"""Determinantal point processes (DPPs): kernels, greedy selection, exact draws."""

from dppmask_jax.dpp.exact import sample_exact
from dppmask_jax.dpp.greedy import greedy_order, has_finite_patch, select
from dppmask_jax.dpp.kernels import cosine_kernel, gaussian_kernel

__all__ = [
    "cosine_kernel",
    "gaussian_kernel",
    "greedy_order",
    "has_finite_patch",
    "sample_exact",
    "select",
]
