"""A network that draws soft masks over an image: a U-Net and a softmax over N masks (ADIOS,
arXiv 2201.13100, and its code, github.com/YugeTen/adios).

Widths, kernels, the fully connected layers at the bottom and nearest neighbours on the way down and
up are the authors'; so is the number of blocks, floor(log2(side)) - 1, for square images of 32 to
255 px. Others are ours: the shorter side counts, larger images have 6 blocks, and biases of
convolutions without a norm start at 0.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, one_of, whole
from dppmask_jax.models.layers import dense, uniform

_LEAST_BLOCKS, _MOST_BLOCKS = 3, 6
_BOTTOM = 128  # width of the fully connected layers
_GROUPS = 8
_START = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
FIELDS = {
    "masks.count": Field(4, whole(2, 64), "soft masks of an image; they add up to 1", fixed=True),
    "masks.width": Field(
        32,
        whole(1, 2**12),
        "channels of the mask network; half of its blocks have twice",
        fixed=True,
    ),
    "masks.norm": Field(
        "group",
        one_of("group", "instance", "none"),
        "norm behind its convolutions: over an image and an eighth of the channels, or one channel",
        fixed=True,
    ),
}


def num_blocks(image_size: tuple[int, int]) -> int:
    """How many blocks lead down, and how many up; from one to the next the map is halved."""
    return min(int(math.log2(min(image_size))) - 1, _MOST_BLOCKS)


def check(config) -> None:
    """Raises InputError where a config's image size or width makes no mask network."""
    size, norm, width = tuple(config.image_size), config.masks.norm, config.masks.width
    blocks = num_blocks(size)
    unit = 2 ** (max(blocks, _LEAST_BLOCKS) - 1)
    if blocks < _LEAST_BLOCKS or any(side % unit for side in size):
        raise InputError(
            f"config.image_size={size}: the mask network halves images {unit.bit_length() - 1} "
            f"times; take sides from 16 px up that are multiples of {unit}"
        )
    if norm == "group" and width % _GROUPS:
        raise InputError(
            f"config.masks.width={width} is not a multiple of {_GROUPS}, which "
            f"config.masks.norm={norm!r} needs"
        )


class _Block(nn.Module):
    """A 3x3 convolution, a norm and a ReLU."""

    features: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x):
        bare = self.norm == "none"
        x = nn.Conv(
            self.features, (3, 3), use_bias=bare, dtype=self.dtype, kernel_init=_START, name="conv"
        )(x)
        if not bare:
            groups = _GROUPS if self.norm == "group" else self.features
            x = nn.GroupNorm(
                groups, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name="norm"
            )(x)
        return nn.relu(x)


class MaskNetwork(nn.Module):
    """Soft masks of images.

    Attributes:
      count, width, norm: see `FIELDS`.
      blocks: see `num_blocks`.
    """

    count: int
    width: int
    norm: str
    blocks: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):
        """(B, H, W, C) normalised -> (B, N, H, W) float32, above 0 to 1; the N masks of a pixel add
        up to 1."""
        narrow, wide = self.width, 2 * self.width
        x, skipped = images, []
        for i in range(self.blocks):
            x = x[:, ::2, ::2] if i else x
            features = narrow if i < self.blocks - 3 else wide
            x = _Block(features, self.norm, self.dtype, name=f"down_{i}")(x)
            skipped.append(x)
        x = self._bottom(x)
        for i in range(self.blocks):
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) if i else x
            x = jnp.concatenate([x, skipped.pop()], axis=-1)
            x = _Block(wide if i < 2 else narrow, self.norm, self.dtype, name=f"up_{i}")(x)
        start = uniform(narrow**-0.5)
        logits = dense(self.count, self.dtype, "head", start)(x)
        return jnp.moveaxis(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), -1, 1)

    def _bottom(self, x):
        """(B, h, w, C) -> the same shape, by layers that see the whole map."""
        flat = x.reshape(len(x), -1)
        for i, features in enumerate((_BOTTOM, _BOTTOM, flat.shape[-1])):
            start = uniform((flat.shape[-1]) ** -0.5)
            flat = nn.relu(dense(features, self.dtype, f"bottom_{i}", start)(flat))
        return flat.reshape(x.shape)


def build(config) -> MaskNetwork:
    """The mask network of a checked config."""
    masks = config.masks
    blocks = num_blocks(tuple(config.image_size))
    return MaskNetwork(masks.count, masks.width, masks.norm, blocks, jnp.dtype(config.model.dtype))
