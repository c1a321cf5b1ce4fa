"""The encoder "vit": a vision transformer's fields, checks and `Encoder`, of all methods and
classifiers. Its flax module stands in `vit_module`."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from dppmask_jax import patches, pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.fields import FLAG, Field, fraction_below_1, one_of, optional, pair, sides, whole
from dppmask_jax.models.base import (
    BlockTrace,
    Encoder,
    EncoderKind,
    Tokens,
    Trace,
    class_feature,
)
from dppmask_jax.models.layers import MLPS
from dppmask_jax.models.sizes import SIZES, name_of, size_of
from dppmask_jax.models.vit_module import ViT, fixed_table

FIELDS = {
    "image_size": Field(
        (224, 224),
        pair(whole(1, 16384), "(height, width) in pixels, such as (224, 224)"),
        "size of the images that the model sees, multiples of the patches",
        fixed=True,
    ),
    "model.size": Field("B", one_of(*SIZES), "width, depth and heads of the encoder", fixed=True),
    "model.width": Field(None, optional(whole(1, 2**14)), "width; None: the size's", fixed=True),
    "model.depth": Field(None, optional(whole(1, 256)), "blocks; None: the size's", fixed=True),
    "model.heads": Field(None, optional(whole(1, 2**14)), "heads; None: the size's", fixed=True),
    "model.mlp": Field(
        None,
        optional(whole(1, 2**16)),
        "hidden width of the MLPs; None: 4 times the width",
        fixed=True,
    ),
    "model.patch_size": Field(
        16, sides(whole(1)), "height and width of a patch in pixels, or (height, width)", fixed=True
    ),
    "model.drop_path": Field(
        0.0,
        fraction_below_1,
        "probability of skipping the last block in training; less for those before",
    ),
    "model.dtype": Field(
        "bfloat16",
        one_of("float32", "bfloat16"),
        "type of activations; parameters, softmax, norms and loss are float32",
    ),
    "model.remat": Field(
        False, FLAG, "compute activations twice, which takes less memory", free="carried out"
    ),
}

MOST_PATCHES = 2**14  # of an image; the selector's kernel has their square


def checked_patches(field: str, size, patch_size: patches.PatchSize) -> int:
    """The number of patches of images whose size is a field of a config.

    Raises:
      InputError: patches do not divide the images, or are more than `MOST_PATCHES`.
    """
    try:
        rows, columns = patches.grid_shape(tuple(size), patch_size)
    except ValueError as error:
        raise InputError(f"config.{field}, config.model.patch_size: {error}") from error
    if rows * columns > MOST_PATCHES:
        raise InputError(
            f"config.{field}, config.model.patch_size: {rows * columns} patches are more than "
            f"{MOST_PATCHES}; take larger patches or smaller images"
        )
    return rows * columns


def check(config) -> None:
    """Raises InputError where the sizes of a config make no encoder, or its images no patches."""
    size = size_of(config.model)
    if size.width % size.heads or size.width % 4:
        raise InputError(
            f"an encoder of width {size.width} with {size.heads} heads cannot be made: the width "
            "is a multiple of 4 and of the heads; change config.model.width or config.model.heads"
        )
    checked_patches("image_size", config.image_size, config.model.patch_size)


def build(config, **options) -> Encoder:
    """The encoder of a checked config; `options` are attributes of `ViT` that a method settles."""
    model = config.model
    return encoder(
        ViT(
            size_of(model),
            tuple(config.image_size),
            model.patch_size,
            drop_path_rate=model.get("drop_path", 0.0),
            remat=model.get("remat", False),
            dtype=jnp.dtype(model.dtype),
            **options,
        ),
        pixel_format.of(config),
    )


def encoder(module: ViT, pixels: pixel_format.Pixels = pixel_format.RGB) -> Encoder:
    """The `Encoder` of a ViT, of images with such pixels."""

    def tokens(latent, prenorm) -> Tokens:
        return Tokens(class_feature(latent, module.prefix), latent[:, module.prefix :], prenorm)

    def init(key):
        images = jnp.zeros((1, *module.image_size, pixels.channels), jnp.float32)
        return module.init(key, images)["params"]

    def encode(params, images, keys=None, mask=None, mask_token=None) -> Tokens:
        variables = {"params": params}
        return tokens(*module.apply(variables, images, keys, mask=mask, mask_token=mask_token))

    def embed(params, images, mask=None, mask_token=None):
        return module.apply({"params": params}, images, mask, mask_token, method="embed")

    def blocks(params, embedded, keys=None) -> Tokens:
        return tokens(*module.apply({"params": params}, embedded, keys, method="encode"))

    def attended(params, images):
        found, sown = module.apply({"params": params}, images, mutable=["intermediates"])
        last = sown["intermediates"]["blocks"][f"block_{module.size.depth - 1}"]
        (weights,) = last["attn"]["weights"]
        return tokens(*found), weights[:, :, 0, module.prefix :]

    def trace(params, images) -> Trace:
        found, sown = module.apply({"params": params}, images, mutable=["trace"])
        in_blocks = sown["trace"]["blocks"]
        of_blocks = [in_blocks[f"block_{i}"] for i in range(module.size.depth)]
        return Trace(
            in_blocks["embedding"][0],
            tuple(
                BlockTrace(
                    *(block[name][0] for name in ("after_attention", "after_mlp")),
                    *(block["attn"][name][0] for name in ("attention", "keys", "mixed")),
                )
                for block in of_blocks
            ),
            tokens(*found),
        )

    return Encoder(
        module,
        init,
        encode,
        module.size.width,
        module.size.depth,
        module.grid,
        layer_of=functools.partial(layer_of, depth=module.size.depth),
        options={name: getattr(module, name) for name in OPTIONS},
        tuned=lambda: encoder(
            module.clone(position=_TUNED.get(module.position, module.position)), pixels
        ),
        trainable=functools.partial(_with_positions, module),
        embed=embed,
        blocks=None if module.relative else blocks,
        attended=attended if module.class_token else None,
        trace=trace,
        pixels=pixels,
    )


def layer_of(path: tuple[str, ...], depth: int) -> int:
    """The layer of a parameter, as MAE's fine-tuning counts them (arXiv 2111.06377, appendix A.1):
    tokens, positions and the patch embedding are layer 0, "blocks/block_b" is layer b + 1, the norm
    and biases that all blocks share are layer depth + 1."""
    if path[0] in ("patch_embed", "cls_token", "positions", "registers"):
        return 0
    if path[0] == "blocks":
        block = int(path[1].removeprefix("block_"))
        if block >= depth:
            raise ValueError(f"{path[1]}, which an encoder of {depth} blocks has not")
        return 1 + block
    if path[0] in ("norm", "relative_bias"):
        return depth + 1
    raise ValueError(f"no layer is known for the parameter {'.'.join(path)}")


def _with_positions(module: ViT, params):
    """The parameters with positions among them: their own, or the fixed table."""
    if "positions" in params or module.position == "none":
        return params
    table = fixed_table(module.grid, module.size.width, module.of_class, module.first_axis)
    return {**params, "positions": jnp.asarray(table)}


def defaults() -> dict[str, Any]:
    """The options of a `ViT` at their defaults."""
    return {name: getattr(ViT, name) for name in OPTIONS}


def check_options(options) -> None:
    """Raises InputError where options of a `ViT` are unknown or do not go together."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise InputError(f"an encoder has no option {unknown[0]!r}; there are {', '.join(OPTIONS)}")
    values = {**defaults(), **options}
    allowed = {
        "position": ("fixed", "learned", "none"),
        "relative": ("", "shared", "each"),
        "mlp": tuple(MLPS),
        "first_axis": ("column", "row"),
    }
    for name, choices in allowed.items():
        if values[name] not in choices:
            words = " | ".join(map(repr, choices))
            raise InputError(f"an encoder's {name}={values[name]!r} is not allowed: {words}")
    if not values["class_token"] and (values["registers"] or values["relative"]):
        raise InputError("an encoder without class token has no registers or relative positions")
    if values["registers"] and values["relative"]:
        raise InputError("an encoder with registers has no relative positions")


OPTIONS = (
    "position",
    "registers",
    "relative",
    "layer_scale",
    "qv_bias",
    "class_token",
    "class_position",
    "mlp",
    "first_axis",
)
_TUNED = {"fixed": "learned"}
KIND = EncoderKind(build, FIELDS, check, name_of)
