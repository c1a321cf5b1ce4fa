"""A loss of scores that are to put things in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def pairwise(
    scores: Float[Array, "B M"], values: Float[Array, "B M"], mask: Bool[Array, "B M"]
) -> Float[Array, ""]:
    """How well scores tell which of two values of a row is larger (HPM, arXiv 2304.05919, its
    relative loss): the binary cross-entropy of sigmoid(score i - score j), the mean over all pairs
    within rows whose values differ.

    The authors add 1e-6 to each probability before the logarithm; this is the exact logarithm.

    Args:
      scores: they are trained.
      values: gradients stop here.
      mask: which of them count.

    Returns:
      Float32; 0 where no two values differ.
    """
    chex.assert_equal_shape([scores, values, mask])
    scores, values = scores.astype(jnp.float32), jax.lax.stop_gradient(values)
    larger = (values[:, :, None] > values[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    losses = jax.nn.softplus(scores[:, None, :] - scores[:, :, None])
    return jnp.sum(jnp.where(larger, losses, 0.0)) / jnp.maximum(jnp.sum(larger), 1)
