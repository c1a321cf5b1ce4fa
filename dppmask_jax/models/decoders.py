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
    """Predicts P values of every patch from the latents of the visible ones, and how hard it is to
    predict, where that is asked for: then it has a second stack of blocks."""

    size: Size
    grid: tuple[int, int]
    patch_values: int
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, latent, order, hardness: bool = False):
        """
        Args:
          latent: (B, 1 + K, D) encoder output, class token first, then patches order[:, :K].
          order: (B, M) int32, different patches, visible ones first: all N of the image, or those
            that were not thrown away.

          hardness: whether the second stack is run; static.

        Returns:
          (B, M, P) float32 predictions of these patches, in the order of the image; with hardness
          that and (B, M) float32, larger for patches that are harder.
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
        pred = self._stack(x, self.patch_values)
        return (pred, self._stack(x, 1, "hard_")[..., 0]) if hardness else pred

    def _stack(self, x, width: int, prefix: str = ""):
        """(B, 1 + M, D) tokens -> (B, M, width) float32, by blocks of its own."""
        x = Blocks(self.size, remat=self.remat, dtype=self.dtype, name=f"{prefix}blocks")(x)
        x = layer_norm(f"{prefix}norm")(x)[:, 1:]
        return dense(width, self.dtype, f"{prefix}pred")(x).astype(jnp.float32)


class MAE(nn.Module):
    """Encoder and decoder. Masks are drawn outside, from the tokens that `embed` returns."""

    encoder: ViT
    decoder: Decoder

    def embed(self, images):
        """(B, H, W, 3) -> (B, N, D): the tokens that are about to be masked."""
        return self.encoder.embed(images)

    def predict(self, tokens, order, num_keep: int, keys=None, hardness: bool = False):
        """
        Args:
          tokens: (B, N, D) from `embed`.
          order: (B, M) int32, as the decoder takes it.
          num_keep: number of visible patches, static.
          keys: (B,) keys for drop-path, or None.
          hardness: see `Decoder`.

        Returns:
          What the decoder does.
        """
        return self.decode(self.latent(tokens, order, num_keep, keys), order, hardness)

    def latent(self, tokens, order, num_keep: int, keys=None):
        """(B, 1 + K, D): the encoded visible tokens, as the decoder takes them; arguments as for
        `predict`."""
        return self.encoder.encode(patches.gather(tokens, order[:, :num_keep]), keys)[0]

    def decode(self, latent, order, hardness: bool = False):
        """What the decoder does."""
        return self.decoder(latent, order, hardness)

    def hardness(self, images):
        """(B, N) float32: how hard each patch would be to predict, of images that are seen
        whole."""
        tokens = self.embed(images)
        order = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape[:2])
        return self.predict(tokens, order, tokens.shape[1], hardness=True)[1]

    def __call__(self, images, order, num_keep: int, hardness: bool = False):
        return self.predict(self.embed(images), order, num_keep, hardness=hardness)
