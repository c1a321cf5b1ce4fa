"""An encoder with a linear layer on top, trained as one (MAE, arXiv 2111.06377, appendix A.1)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax.models.base import class_feature
from dppmask_jax.models.layers import layer_norm, normal

HEAD_STD = 2e-5  # of the initial weights: training starts from nearly equal scores


class Classifier(nn.Module):
    """Scores of classes, or of labels.

    `pool` "mean" takes the mean of the patch tokens before the encoder's final layer norm, through
    a layer norm of its own (`fc_norm`); "cls" takes the class token after the encoder's. `encoder`
    is the module of a `base.Encoder`.
    """

    encoder: nn.Module
    num_outputs: int
    pool: str = "mean"

    def setup(self):
        self.fc_norm = layer_norm(None)
        self.head = nn.Dense(self.num_outputs, kernel_init=normal(HEAD_STD))

    def __call__(self, images, keys=None):
        """
        Args:
          images: (B, H, W, C) normalised.
          keys: (B,) keys for drop-path; None keeps every branch.

        Returns:
          (B, num_outputs) float32.
        """
        if self.pool == "cls":
            latent, _ = self.encoder(images, keys)
            return self.head(class_feature(latent, self.encoder.prefix))
        if self.pool == "mean":
            tokens = self.encoder.prenorm(images, keys)[:, self.encoder.prefix :]
            return self.head(self.fc_norm(jnp.mean(tokens.astype(jnp.float32), axis=1)))
        raise ValueError(f"no such pool: {self.pool!r}")
