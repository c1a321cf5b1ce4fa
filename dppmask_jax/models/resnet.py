"""The encoder "resnet": the fields, checks and `Encoder` of a residual network. Its flax module
stands in `resnet_module`, the decoder that mirrors it in `resnet_decoder`.

Its patches are the positions of the final map, 32 px apart, so `model.patch_size` is 32; what a
position has seen is larger. It has no class token, and no way to hide patches or to leave them out.

Its parameters are {..., "batch_stats"}: running statistics stand among them, get no gradient and do
not change in `encode`. A training that is to follow them runs the module itself and keeps them in
`Method.extra`, as `methods.supervised` and `resnet_decoder.autoencoder` do.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from dppmask_jax import patches, pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, one_of, whole
from dppmask_jax.models.base import STATISTICS, Encoder, EncoderKind, Tokens, class_feature
from dppmask_jax.models.resnet_module import SHAPES, STRIDE, ResNet

FIELDS = {
    "model.resnet": Field("50", one_of(*SHAPES), "layers of a ResNet", fixed=True),
    "model.resnet_width": Field(
        64, whole(1, 2**10), "channels behind a ResNet's first convolution", fixed=True
    ),
}


def check(config) -> None:
    """Raises InputError where the images or patches of a config are not those of a ResNet."""
    if patches.sides(config.model.patch_size) != (STRIDE, STRIDE):
        raise InputError(
            f"config.model.patch_size={patches.size_name(config.model.patch_size)}: positions of a "
            f"ResNet's final map are {STRIDE} px apart; set config.model.patch_size={STRIDE}, and "
            f"config.image_size to multiples of it"
        )
    try:
        patches.grid_shape(tuple(config.image_size), STRIDE)
    except ValueError as error:
        raise InputError(f"config.image_size, config.model.patch_size: {error}") from error


def build(config, **options) -> Encoder:
    """The encoder of a checked config; it has no options."""
    del options
    model = config.model
    return encoder(
        ResNet(
            SHAPES[model.resnet]._replace(width=model.resnet_width),
            model.get("drop_path", 0.0),
            model.get("remat", False),
            jnp.dtype(model.dtype),
            pixel_format.of(config),
        ),
        tuple(config.image_size),
    )


def encoder(module: ResNet, image_size: tuple[int, int]) -> Encoder:
    """The `Encoder` of a ResNet."""
    pixels = module.pixels

    def init(key):
        variables = module.init(key, jnp.zeros((1, *image_size, pixels.channels), jnp.float32))
        return {**variables["params"], STATISTICS: variables[STATISTICS]}

    def encode(params, images, keys=None, mask=None, mask_token=None) -> Tokens:
        if mask is not None or mask_token is not None:
            raise ValueError("a ResNet has no tokens that could give way to a mask token")
        params = dict(params)
        statistics = jax.lax.stop_gradient(params.pop(STATISTICS))
        latent, prenorm = module.apply({"params": params, STATISTICS: statistics}, images, keys)
        return Tokens(class_feature(latent, 0), latent, prenorm)

    depth = sum(module.shape.blocks)
    return Encoder(
        module,
        init,
        encode,
        module.shape.channels,
        depth,
        patches.grid_shape(image_size, STRIDE),
        layer_of=functools.partial(layer_of, depth=depth),
        hides=None,
        pixels=pixels,
    )


def layer_of(path: tuple[str, ...], depth: int) -> int:
    """The layer of a parameter: 0 in front of the blocks, b + 1 in "block_b"."""
    first = path[1] if path[0] == STATISTICS else path[0]
    if first in ("stem_conv", "stem_norm"):
        return 0
    number = first.removeprefix("block_")
    if not number.isdecimal() or int(number) >= depth:
        raise ValueError(f"no layer is known for the parameter {'.'.join(path)}")
    return 1 + int(number)


KIND = EncoderKind(build, FIELDS, check, lambda model: model["resnet"] + _width_of(model))


def _width_of(model) -> str:
    return "" if model["resnet_width"] == 64 else f" of width {model['resnet_width']}"
