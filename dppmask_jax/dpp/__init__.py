"""Determinantal point processes: kernels, and k patches that differ from each other."""

from dppmask_jax.dpp.greedy import (
    cosine_kernel,
    gaussian_kernel,
    greedy_order,
    has_finite_patch,
    select,
)

__all__ = ["cosine_kernel", "gaussian_kernel", "greedy_order", "has_finite_patch", "select"]
