"""The flax module of a residual network that encodes images (arXiv 1512.03385).

A bottleneck halves the image in its first convolution, 1x1, as in the paper; torchvision's does so
in the second, 3x3. Images enter as pixels from 0 to 1: as in the autoencoder whose encoder it is
(github.com/Horizon2333/imagenet-autoencoder), nothing is standardised in front.

Statistics of batch norms are the collection "batch_stats". Where `apply` may change it, as a
training step does, images are normalised by the mean and variance of the whole batch, over all
devices, and the running statistics follow; elsewhere by the running statistics. Such a step runs
inside a function that `parallel` compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import parallel
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.layers import branch_scales
from dppmask_jax.pixel_format import RGB, Pixels

STRIDE = 32  # pixels from one position of the final map to the next
_KEPT = 0.9  # of the running statistics, at each step
_EPSILON = 1e-5
# A convolution's usual U(±1/sqrt(fan in)), as the autoencoder's parameters start.
_START = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_TRANSPOSED_START = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2
)


class Shape(NamedTuple):
    """Blocks of each of the four stages, whether they are bottlenecks, and the channels `width`
    behind the first convolution."""

    blocks: tuple[int, ...]
    bottleneck: bool
    width: int = 64

    @property
    def expansion(self) -> int:
        """Channels that a block gives, for one inside."""
        return 4 if self.bottleneck else 1

    @property
    def channels(self) -> int:
        """Channels D of the final map."""
        return self.inside(len(self.blocks) - 1) * self.expansion

    def inside(self, stage: int) -> int:
        """Channels inside the blocks of a stage, which counts from 0."""
        return self.width * 2**stage

    def entering(self, stage: int) -> int:
        """Channels that enter a stage."""
        return self.inside(stage - 1) * self.expansion if stage else self.width


# By number of layers (arXiv 1512.03385, table 1).
SHAPES = {
    "18": Shape((2, 2, 2, 2), False),
    "34": Shape((3, 4, 6, 3), False),
    "50": Shape((3, 4, 6, 3), True),
    "101": Shape((3, 4, 23, 3), True),
}


def batch_norm(module: nn.Module, name: str) -> nn.BatchNorm:
    """A batch norm inside `module`, of what it gets: see the top of the file.

    The running variance is that of the batch with its size for denominator; PyTorch's is larger by
    n / (n - 1), n values a channel.
    """
    return nn.BatchNorm(
        use_running_average=not module.is_mutable_collection(STATISTICS),
        momentum=_KEPT,
        epsilon=_EPSILON,
        dtype=module.dtype,
        axis_name=parallel.AXIS,
        use_fast_variance=False,
        name=name,
    )


def convolution(features: int, side: int, stride: int, dtype, name: str) -> nn.Conv:
    """A convolution without bias, `side` odd, whose map is 1 / `stride` of the one that enters."""
    return nn.Conv(
        features,
        (side, side),
        (stride, stride),
        padding=((side // 2, side // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_START,
        name=name,
    )


def transposed(features: int, side: int, dtype, name: str) -> nn.ConvTranspose:
    """A transposed convolution without bias, `side` odd, whose map is twice the one that enters.

    Value x of the one that enters reaches 2 x - side // 2 to 2 x + side // 2: with side 1 the odd
    rows and columns of the result are 0.
    """
    return nn.ConvTranspose(
        features,
        (side, side),
        (2, 2),
        padding=((side // 2, side // 2 + 1),) * 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=_TRANSPOSED_START,
        name=name,
    )


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck: 1x1, 3x3 and 1x1, beside a shortcut."""

    inside: int
    stride: int
    bottleneck: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, scales=None):
        """(B, h, w, C) -> (B, h / stride, w / stride, C'); `scales` (B,), where given, multiply
        what stands beside the shortcut."""
        given = self.inside * (4 if self.bottleneck else 1)
        between = ((3, self.inside),) if self.bottleneck else ()
        layers = ((1 if self.bottleneck else 3, self.inside), *between)
        layers = (*layers, (1 if self.bottleneck else 3, given))
        branch = x
        for i, (side, features) in enumerate(layers, 1):
            stride = self.stride if i == 1 else 1
            branch = convolution(features, side, stride, self.dtype, f"conv{i}")(branch)
            branch = batch_norm(self, f"norm{i}")(branch)
            branch = nn.relu(branch) if i < len(layers) else branch
        if self.stride > 1 or x.shape[-1] != given:
            x = convolution(given, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = batch_norm(self, "shortcut_norm")(x)
        if scales is not None:
            branch = branch * scales[:, None, None, None].astype(branch.dtype)
        return nn.relu(x + branch)


class ResNet(nn.Module):
    """Encoder of images: a 7x7 convolution and a maximum of 3x3, each of stride 2, then four stages
    of blocks, of which all but the first halve the map in their first block.

    Attributes:
      drop_path_rate: of the last block; it rises linearly from 0 in the first.
      remat: compute the activations of blocks twice.
      pixels: what images were normalised by: the first convolution sees them from 0 to 1.
    """

    shape: Shape
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    pixels: Pixels = RGB

    @property
    def prefix(self) -> int:
        """There is no class token."""
        return 0

    def __call__(self, images, keys=None):
        """(latent, prenorm): both (B, N, D), positions of the final map, row by row; latent is
        float32. There is no norm behind the last block.

        Args:
          images: (B, H, W, C) normalised.
          keys: (B,) keys for drop-path; None keeps every branch.
        """
        prenorm = self.prenorm(images, keys)
        return prenorm.astype(jnp.float32), prenorm

    def prenorm(self, images, keys=None):
        """(B, N, D), as `__call__`."""
        found = self.final_map(images, keys)
        return found.reshape(len(found), -1, found.shape[-1])

    @nn.compact
    def final_map(self, images, keys=None):
        """(B, H / 32, W / 32, D), none below 0."""
        mean, std = (jnp.asarray(x, images.dtype) for x in (self.pixels.mean, self.pixels.std))
        pixels = images * std + mean
        x = convolution(self.shape.width, 7, 2, self.dtype, "stem_conv")(pixels)
        x = nn.relu(batch_norm(self, "stem_norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        depth, number = sum(self.shape.blocks), 0
        rates = [self.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        scales = branch_scales(keys, rates) if keys is not None and any(rates) else None
        block = nn.remat(Block) if self.remat else Block
        for stage, blocks in enumerate(self.shape.blocks):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                options = (self.shape.inside(stage), stride, self.shape.bottleneck, self.dtype)
                x = block(*options, name=f"block_{number}")(
                    x, None if scales is None else scales[:, number, 0]
                )
                number += 1
        return x
