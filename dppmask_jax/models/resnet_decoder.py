"""The mirror image of a ResNet, which paints images from its final map, and the autoencoder of
both (github.com/Horizon2333/imagenet-autoencoder: facts of its structure, code of our own).

What a method does with it::

    net = resnet_decoder.autoencoder(config)
    params, statistics = net.init(key)                   # `Method.init`; statistics go into extra
    pixels, statistics = net.train(params, statistics, images)    # in a turn's loss; into aux
    pixels = net.reconstruct(params, statistics, images)          # anywhere
    net.encoder_of(params, statistics)                   # `Method.encoder_of`
    net.with_encoder(params, statistics, encoder)        # `Method.with_encoder`

Images are normalised, pixels are (B, H, W, C) float32 from 0 to 1. `after_step` puts the statistics
that `train` gave into extra: means over micro-batches and devices, as of all of `aux`. The
statistics of a batch are those of the whole one, over all devices: 1 and N devices compute the same
but for rounding, which many batch norms in a row enlarge. With accum_steps above 1 each micro-batch
has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax.models import resnet
from dppmask_jax.models.base import STATISTICS, Encoder
from dppmask_jax.models.resnet_module import ResNet, Shape, batch_norm, convolution, transposed


class DecoderBlock(nn.Module):
    """A block of a ResNet in reverse: norm and ReLU come before each convolution (arXiv
    1603.05027), and none at the end. Where it doubles the map, the last convolution is a transposed
    one, and so is that of the shortcut, 1x1, behind a norm and ReLU of its own."""

    inside: int
    given: int
    doubles: bool
    bottleneck: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        """(B, h, w, C) -> (B, h, w, C'), or (B, 2 h, 2 w, C')."""
        sides = (1, 3, 1) if self.bottleneck else (3, 3)
        branch = x
        for i, side in enumerate(sides, 1):
            branch, name = nn.relu(batch_norm(self, f"norm{i}")(branch)), f"conv{i}"
            if i < len(sides):
                branch = convolution(self.inside, side, 1, self.dtype, name)(branch)
            elif self.doubles:
                branch = transposed(self.given, side, self.dtype, name)(branch)
            else:
                branch = convolution(self.given, side, 1, self.dtype, name)(branch)
        if self.doubles:
            x = nn.relu(batch_norm(self, "shortcut_norm")(x))
            x = transposed(self.given, 1, self.dtype, "shortcut_conv")(x)
        return x + branch


class Decoder(nn.Module):
    """The stages of a ResNet from the last to the first, of which each doubles the map in its last
    block, then a transposed 7x7 convolution to the channels of the image, and a sigmoid."""

    shape: Shape
    remat: bool = False
    dtype: Any = jnp.float32
    channels: int = 3

    @nn.compact
    def __call__(self, x):
        """(B, H / 32, W / 32, D) -> (B, H, W, C) float32, above 0 and below 1."""
        shape, number = self.shape, 0
        block = nn.remat(DecoderBlock) if self.remat else DecoderBlock
        for stage in reversed(range(len(shape.blocks))):
            inside, blocks = shape.inside(stage), shape.blocks[stage]
            for i in range(blocks):
                doubles = i == blocks - 1
                given = shape.entering(stage) if doubles else inside * shape.expansion
                options = (inside, given, doubles, shape.bottleneck, self.dtype)
                x = block(*options, name=f"block_{number}")(x)
                number += 1
        x = nn.relu(batch_norm(self, "norm")(x))
        return nn.sigmoid(transposed(self.channels, 7, self.dtype, "conv")(x).astype(jnp.float32))


class AutoencoderModule(nn.Module):
    """Encoder and decoder as one."""

    encoder: ResNet
    decoder: Decoder

    def __call__(self, images, keys=None):
        """(B, H, W, C) normalised -> (B, H, W, C) float32, above 0 and below 1.

        Args:
          keys: (B,) keys for the encoder's drop-path; None keeps every branch.
        """
        return self.decoder(self.encoder.final_map(images, keys))


class Autoencoder(NamedTuple):
    """An autoencoder that is set up: see the top of the file.

    `params` and `statistics` are {"encoder", "decoder"} both, trained and not.
    """

    encoder: Encoder

    init: Callable[[Any], tuple[Any, Any]]
    """key -> (params, statistics)."""

    train: Callable[..., tuple[Any, Any]]
    """(params, statistics, images, keys=None) -> (pixels, new running statistics), of a training
    step; keys (B,) are for drop-path."""

    reconstruct: Callable[..., Any]
    """(params, statistics, images) -> pixels, by the running statistics."""

    encoder_of: Callable[..., Any]
    """(params, statistics) -> the parameters of `encoder`."""

    with_encoder: Callable[..., tuple[Any, Any]]
    """(params, statistics, parameters of an encoder) -> (params, statistics) with that encoder."""


def autoencoder(config) -> Autoencoder:
    """The autoencoder of a checked config whose `model.encoder` is "resnet": 47,016,064 parameters
    with 50 layers, half of them the encoder's."""
    encoder = resnet.build(config)
    resnet_module = encoder.module
    channels = encoder.pixels.channels
    decoder = Decoder(resnet_module.shape, resnet_module.remat, resnet_module.dtype, channels)
    module = AutoencoderModule(resnet_module, decoder)

    def init(key):
        images = jnp.zeros((1, *config.image_size, channels), jnp.float32)
        variables = module.init(key, images)
        return variables["params"], variables[STATISTICS]

    def train(params, statistics, images, keys=None):
        variables = {"params": params, STATISTICS: statistics}
        pixels, changed = module.apply(variables, images, keys, mutable=[STATISTICS])
        return pixels, changed[STATISTICS]

    def with_encoder(params, statistics, given):
        given = dict(given)
        of_encoder = given.pop(STATISTICS)
        return {**params, "encoder": given}, {**statistics, "encoder": of_encoder}

    return Autoencoder(
        encoder,
        init,
        train,
        reconstruct=lambda params, statistics, images: module.apply(
            {"params": params, STATISTICS: statistics}, images
        ),
        encoder_of=lambda params, statistics: {
            **params["encoder"],
            STATISTICS: statistics["encoder"],
        },
        with_encoder=with_encoder,
    )
