"""Projection head of DINO and iBOT (arXiv 2104.14294, section 3.1; arXiv 2111.07832, section 3)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax.models.fences import seam
from dppmask_jax.models.layers import dense, gelu, normal, uniform


class WeightNormDense(nn.Module):
    """A linear layer without bias whose columns have a direction and a scale of their own.

    `scale` (1, C) is a parameter where `trainable_scale`, else it is fixed at 1.
    """

    features: int
    trainable_scale: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(..., E) -> (..., C) float32."""
        shape = (x.shape[-1], self.features)
        direction = self.param("direction", uniform(x.shape[-1] ** -0.5), shape, jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(direction), axis=0, keepdims=True))
        kernel = direction / norm
        if self.trainable_scale:
            kernel = kernel * self.param(
                "scale", nn.initializers.ones, (1, self.features), jnp.float32
            )
        return jnp.matmul(
            x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )


class ProjectionHead(nn.Module):
    """Three linear layers with GELU between, unit length, then a weight-normalised linear layer.

    Class and patch tokens share the three layers; with `shared` the last layer as well.
    """

    hidden: int
    bottleneck: int
    prototypes: int
    trainable_scale: bool
    shared: bool
    dtype: Any = jnp.float32
    init_std: float = 0.02

    def setup(self):
        init = normal(self.init_std)
        self.mlp = [
            dense(width, self.dtype, None, init)
            for width in (self.hidden, self.hidden, self.bottleneck)
        ]
        self.last_layer = WeightNormDense(self.prototypes, self.trainable_scale, self.dtype)
        if not self.shared:
            self.patch_last_layer = WeightNormDense(
                self.prototypes, self.trainable_scale, self.dtype
            )

    def project(self, tokens):
        """(..., D) -> (..., E) float32 of unit length: all but the last layer."""
        x = tokens
        for layer in self.mlp[:-1]:
            x = gelu(layer(x))
        # With the norm in it, the TPU compiler tries the last product three times.
        x = seam(self.mlp[-1](x)).astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
        return x / jnp.maximum(norm, 1e-12)

    def class_logits(self, projected):
        """(..., E) -> (..., C) float32."""
        return self.last_layer(projected)

    def patch_logits(self, projected):
        """(..., E) -> (..., C) float32."""
        return (self.last_layer if self.shared else self.patch_last_layer)(projected)

    def __call__(self, tokens):
        """(..., D) -> (class logits, patch logits), both (..., C); builds every parameter."""
        projected = self.project(tokens)
        return self.class_logits(projected), self.patch_logits(projected)
