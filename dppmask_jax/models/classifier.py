"""An encoder with a linear layer on top, trained as one (MAE, arXiv 2111.06377, appendix A.1)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax.models.backbone import Backbone
from dppmask_jax.models.vit import Size, layer_norm, normal

HEAD_STD = 2e-5  # of the initial weights, so that training starts from even answers


class Classifier(nn.Module):
    """Scores of classes, or of labels.

    `pool` "mean" takes the mean of the patch tokens before the encoder's final layer norm, through
    a layer norm of its own (`fc_norm`); "cls" takes the class token after the encoder's.
    """

    size: Size
    image_size: tuple[int, int]
    patch_size: int
    num_outputs: int
    pool: str = "mean"
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder = Backbone(
            self.size,
            self.image_size,
            self.patch_size,
            self.drop_path_rate,
            self.remat,
            self.dtype,
        )
        self.fc_norm = layer_norm(None)
        self.head = nn.Dense(self.num_outputs, kernel_init=normal(HEAD_STD))

    def __call__(self, images, keys=None):
        """
        Args:
          images: (B, H, W, 3) normalised.
          keys: (B,) keys for drop-path; None keeps every branch.

        Returns:
          (B, num_outputs) float32.
        """
        if self.pool == "cls":
            latent, _ = self.encoder(images, keys)
            return self.head(latent[:, 0])
        if self.pool == "mean":
            tokens = self.encoder.prenorm(images, keys)[:, 1:]
            return self.head(self.fc_norm(jnp.mean(tokens.astype(jnp.float32), axis=1)))
        raise ValueError(f"no such pool: {self.pool!r}")
