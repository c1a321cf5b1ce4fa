"""Decoders that predict what is hidden, and MAE's encoder and decoder as one (arXiv 2111.06377)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.models.layers import Blocks, dense, layer_norm
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit_module import ViT, given_or_fixed


class Decoder(nn.Module):
    """Predicts P values of every patch from the latents of the visible ones."""

    size: Size
    grid: tuple[int, int]
    patch_values: int
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latent, order):
        """
        Args:
          latent: (B, 1 + K, D) encoder output, class token first, then patches order[:, :K].
          order: (B, M) int32, different patches, visible ones first: all N of the image, or those
            that were not thrown away.

        Returns:
          (B, M, P) float32 predictions of these patches, in the order of the image.
        """
        tokens = dense(self.size.width, self.dtype, "embed")(latent)
        mask_token = self.param(
            "mask_token", nn.initializers.normal(0.02), (1, 1, self.size.width), jnp.float32
        ).astype(tokens.dtype)
        batch, num_visible = tokens.shape[0], tokens.shape[1] - 1
        num_patches = order.shape[1]
        hidden = jnp.broadcast_to(mask_token, (batch, num_patches - num_visible, self.size.width))
        in_drawn_order = jnp.concatenate([tokens[:, 1:], hidden], axis=1)
        in_place = patches.gather(in_drawn_order, jnp.argsort(order, axis=1))
        positions = given_or_fixed(self, self.grid, self.size.width)[0, 1:]
        if num_patches < len(positions):
            positions = jnp.asarray(positions)[jnp.sort(order, axis=1)]
        in_place = in_place + jnp.asarray(positions, tokens.dtype)
        x = jnp.concatenate([tokens[:, :1], in_place], axis=1)
        x = Blocks(self.size, remat=self.remat, dtype=self.dtype, name="blocks")(x)
        x = layer_norm("norm")(x)[:, 1:]
        return dense(self.patch_values, self.dtype, "pred")(x).astype(jnp.float32)


class MAE(nn.Module):
    """Encoder and decoder. Masks are drawn outside, from the tokens that `embed` returns."""

    encoder: ViT
    decoder: Decoder

    def embed(self, images):
        """(B, H, W, 3) -> (B, N, D): the tokens that are about to be masked."""
        return self.encoder.embed(images)

    def predict(self, tokens, order, num_keep: int, keys=None):
        """
        Args:
          tokens: (B, N, D) from `embed`.
          order: (B, M) int32, as the decoder takes it.
          num_keep: number of visible patches, static.
          keys: (B,) keys for drop-path, or None.

        Returns:
          (B, M, P) float32 predicted patches, in the order of the image.
        """
        latent, _ = self.encoder.encode(patches.gather(tokens, order[:, :num_keep]), keys)
        return self.decoder(latent, order)

    def __call__(self, images, order, num_keep: int):
        return self.predict(self.embed(images), order, num_keep)
