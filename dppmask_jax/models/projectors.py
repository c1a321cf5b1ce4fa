"""Projectors of contrastive learning: linear layers without bias, each followed by a batch norm,
with ReLU between them (MoCo v3, arXiv 2104.02057, section 4; SimCLR's idea, arXiv 2002.05709).

Batch norms go by the batch they get, over all devices, and keep no running statistics: a projector
is used in training alone, and nothing reads what it gives elsewhere. It therefore runs inside a
function that `parallel` compiled.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import parallel
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.layers import dense, uniform

_EPSILON = 1e-5


class Projector(nn.Module):
    """Maps one vector an image to another.

    Attributes:
      widths: of what each layer gives; the last is that of the embedding.
      last_norm: whether a batch norm follows the last layer. It has no scale and shift.
    """

    widths: tuple[int, ...]
    last_norm: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(B, D) -> (B, E) float32; B is above 1 over all devices, or a batch norm gives zeros."""
        last = len(self.widths) - 1
        for i, width in enumerate(self.widths):
            start = uniform(x.shape[-1] ** -0.5)  # a linear layer's usual one in the authors' code
            x = dense(width, self.dtype, f"layer_{i}", start, use_bias=False)(x)
            if i < last or self.last_norm:
                x = self._norm(f"norm_{i}", with_scale=i < last)(x)
            x = nn.relu(x) if i < last else x
        return x.astype(jnp.float32)

    def _norm(self, name: str, with_scale: bool) -> nn.BatchNorm:
        return nn.BatchNorm(
            use_running_average=False,
            epsilon=_EPSILON,
            dtype=self.dtype,
            use_bias=with_scale,
            use_scale=with_scale,
            axis_name=parallel.AXIS,
            use_fast_variance=False,
            name=name,
        )


def init(projector: Projector, key, width: int):
    """The parameters of a projector of vectors (B, width)."""
    return projector.init(key, jnp.zeros((2, width), jnp.float32))["params"]


def project(projector: Projector, params, x):
    """(B, D) -> (B, E) float32, see `Projector`."""
    # The layer makes running statistics whether they are wanted or not; they are dropped here.
    found, _ = projector.apply({"params": params}, x, mutable=[STATISTICS])
    return found
