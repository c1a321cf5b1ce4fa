"""ViT encoder with learned positions: iBOT's student and teacher (arXiv 2111.07832, section 3), and
the encoder of a classifier, whatever it was pre-trained with."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.models.vit import Blocks, PatchEmbed, Size, layer_norm, normal


class Backbone(nn.Module):
    """ViT encoder with learned positions and a class token; takes views of any whole grid."""

    size: Size
    image_size: tuple[int, int]
    patch_size: int
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    init_std: float = 0.02

    @property
    def grid(self) -> tuple[int, int]:
        return patches.grid_shape(self.image_size, self.patch_size)

    def setup(self):
        width, (rows, columns) = self.size.width, self.grid
        init = normal(self.init_std)
        self.patch_embed = PatchEmbed(width, self.patch_size, self.dtype, kernel_init=None)
        self.cls_token = self.param("cls_token", init, (1, 1, width), jnp.float32)
        self.positions = self.param("positions", init, (1, 1 + rows * columns, width), jnp.float32)
        self.blocks = Blocks(
            self.size.depth, self.size.heads, self.drop_path_rate, self.remat, self.dtype, init
        )
        self.norm = layer_norm(None)

    def __call__(self, images, keys=None, *, mask=None, mask_embed=None):
        """
        Args:
          images: (B, H, W, 3) normalised; where the size is not `image_size`, the positions are
            interpolated.
          keys: (B,) keys for drop-path; None keeps every branch.
          mask: (B, N) bool; the embeddings of patches that are True give way to `mask_embed`.
          mask_embed: (1, D).

        Returns:
          (latent, prenorm): both (B, 1 + N, D), class token first, after and before the final
          layer norm; latent is float32.
        """
        prenorm = self.prenorm(images, keys, mask=mask, mask_embed=mask_embed)
        return self.norm(prenorm), prenorm

    def prenorm(self, images, keys=None, *, mask=None, mask_embed=None):
        """As `__call__`, but without the final layer norm, whose parameters it does not make."""
        grid = patches.grid_shape(images.shape[1:3], self.patch_size)
        tokens = self.patch_embed(images)
        if mask is not None:
            tokens = jnp.where(mask[..., None], mask_embed.astype(tokens.dtype), tokens)
        cls = jnp.broadcast_to(
            self.cls_token.astype(tokens.dtype), (len(tokens), 1, self.size.width)
        )
        positions = patches.resize_positions(self.positions, self.grid, grid)
        x = jnp.concatenate([cls, tokens], axis=1) + positions.astype(tokens.dtype)
        return self.blocks(x, keys)
