"""The sizes of a file's model: from its tensors, flags and what the file states beside them.

The number of heads, the layer norm's epsilon and a grid that is not square leave no trace in the
tensors. They come from flags, from config.json beside the file, or from a table of the known
widths, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.models.layers import NORM_EPSILON
from dppmask_jax.models.sizes import SIZES, Size

# Of MAE, and of this project's smaller presets.
DECODER_HEADS = {512: 16, 192: 6, 64: 4}
_NONE: Mapping[int, int] = MappingProxyType({})
_NO_CLASS_POSITION = (
    "the file has {} positions, one for each patch and none for the class token: an encoder of "
    "this architecture is not supported yet"
)
# The default of Hugging Face's config, although MAE was trained with 1e-6: too small to matter.
_HF_EPSILON = 1e-12


class Known(NamedTuple):
    """Sizes that flags give; None where none does."""

    image_size: tuple[int, int] | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    epsilon: float | None = None


class Sizes(NamedTuple):
    """The sizes of a file's model; `decoder`, `head` and `classes` are None where it has none.

    `head` is (hidden, bottleneck, prototypes) of iBOT's, `classes`
    how many a classifier tells apart.
    """

    size: Size
    patch_size: patches.PatchSize
    image_size: tuple[int, int]
    decoder: Size | None
    head: tuple[int, int, int] | None
    classes: int | None


def read(
    shapes: dict[str, tuple[int, ...]],
    name_of: Callable[[str], str],
    stated: dict[str, Any],
    known: Known,
    fixed: bool,
) -> Sizes:
    """The sizes of a file.

    Args:
      fixed: whether a file without positions is one that has MAE's.
      shapes: of its tensors.
      name_of: MAE's name of a tensor -> the name in `shapes`.
      stated: config.json beside the file; {} where there is none.

    Raises:
      InputError: a size is neither in the tensors nor stated, or no model here has it.
    """

    def shape(name, *wanted):
        found = shapes.get(name_of(name))
        if found is None:
            raise InputError(f"the file has no {name_of(name)}; it does not fit --format")
        if len(found) != len(wanted) or any(
            size is not None and size != actual for size, actual in zip(wanted, found, strict=True)
        ):
            words = ", ".join("any" if size is None else str(size) for size in wanted)
            raise InputError(f"{name_of(name)} has shape {found} where ({words}) is wanted")
        return found

    def has(name) -> bool:
        return name_of(name) in shapes

    width = shape("cls_token", 1, 1, None)[2]
    high, wide = shape("patch_embed.proj.weight", width, 3, None, None)[2:]
    if min(high, wide) < 1:
        raise InputError(f"{name_of('patch_embed.proj.weight')} is for patches of no pixels")
    patch_size = high if high == wide else (high, wide)
    if has("pos_embed"):
        num_patches = shape("pos_embed", 1, None, width)[1] - 1
        image_size = _image_size(num_patches, patch_size, stated, known)
    else:
        image_size = said_image_size(name_of("pos_embed"), stated, known, fixed)
    check_epsilon(stated, known)
    size = _size(width, heads_of(width, stated, known), shapes, name_of)
    decoder = head = None
    if has("decoder_embed.weight"):
        decoder_width = shape("decoder_embed.weight", None, width)[0]
        decoder = _decoder(decoder_width, shapes, name_of, stated, known)
    if has("head.last_layer.weight_v"):
        prototypes, bottleneck = shape("head.last_layer.weight_v", None, None)
        head = (shape("head.mlp.0.weight", None, width)[0], bottleneck, prototypes)
    classes = shape("head.weight", None, width)[0] if has("head.weight") else None
    return Sizes(size, patch_size, image_size, decoder, head, classes)


def said_image_size(table: str, stated, known: Known, fixed: bool) -> tuple[int, int]:
    """The image size of a file without positions, whose name would be `table`."""
    if not fixed:
        raise InputError(
            f"the file has no {table}, and only MAE's positions are known without; "
            "it does not fit --format, or its encoder is one that is not supported yet"
        )
    image_size = known.image_size or stated_image_size(stated)
    if image_size is None:
        raise InputError(
            "the file has no positions, which are fixed, and so does not say for which images "
            "it is; add --image_size=HEIGHT,WIDTH"
        )
    return image_size


def heads_of(width: int, stated, known: Known, usual: Mapping[int, int] = _NONE) -> int:
    """The heads of an encoder: of flags, config.json, a family's usual ones, those of `SIZES`."""
    arguments = stated.get("model_args")  # timm's
    arguments = arguments if isinstance(arguments, dict) else {}
    heads = known.heads or _whole(stated, "num_attention_heads") or _whole(arguments, "num_heads")
    heads = heads or usual.get(width)
    heads = heads or {size.width: size.heads for size in SIZES.values()}.get(width)
    if heads is None:
        raise InputError(
            f"how many heads an encoder of width {width} has is not in the file; add --heads"
        )
    return heads


def _decoder(width, shapes, name_of, stated, known) -> Size:
    hidden = shapes.get(name_of("decoder_blocks.0.mlp.fc1.weight"), (4 * width,))[0]
    if hidden != 4 * width:
        raise InputError(
            f"the MLPs of the decoder are {hidden} wide, and those of decoders here 4 times their "
            f"width of {width}; import the encoder alone: --format=mae or hf-encoder, with "
            "--drop=decoder,mask_token"
        )
    heads = known.decoder_heads or _whole(stated, "decoder_num_attention_heads")
    heads = heads or DECODER_HEADS.get(width)
    if heads is None:
        raise InputError(
            f"how many heads a decoder of width {width} has is not in the file; add --decoder_heads"
        )
    return Size(width, _depth(shapes, name_of, "decoder_blocks"), heads)


def _depth(shapes, name_of, blocks: str) -> int:
    depth = 0
    while name_of(f"{blocks}.{depth}.norm1.weight") in shapes:
        depth += 1
    return depth


def _size(width: int, heads: int, shapes, name_of) -> Size:
    depth = _depth(shapes, name_of, "blocks")
    hidden = shapes.get(name_of("blocks.0.mlp.fc1.weight"), (4 * width,))[0]
    return sized(width, depth, heads, hidden)


def sized(width: int, depth: int, heads: int, hidden: int) -> Size:
    """A size that encoders here can have.

    Raises:
      InputError: none has so many heads.
    """
    if width % heads or width % 4:
        raise InputError(
            f"an encoder of width {width} has not {heads} heads here: the width is a multiple of 4 "
            "and of the heads; say with --heads how many there are"
        )
    return Size(width, depth, heads, None if hidden == 4 * width else hidden)


def _image_size(num_patches: int, patch_size, stated, known: Known) -> tuple[int, int]:
    (high, wide), image_size = patches.sides(patch_size), known.image_size
    image_size = image_size or stated_image_size(stated)
    if image_size is None:
        side = math.isqrt(max(num_patches, 0))
        if side < 1 or side**2 != num_patches:
            # A table of one patch more and no class token has the same shape.
            square = math.isqrt(num_patches + 1) ** 2 == num_patches + 1
            raise InputError(
                f"{num_patches} patches make no square, and how they lie is not in the file; "
                + ("if the images are no squares, " if square else "")
                + "add --image_size=HEIGHT,WIDTH"
                + (f"; {num_patches + 1} patches and a class token without a position are not "
                   "supported yet" if square else "")
            )  # fmt: skip
        return side * high, side * wide
    rows, columns = image_size[0] / high, image_size[1] / wide
    if rows * columns == num_patches + 1:
        raise InputError(_NO_CLASS_POSITION.format(num_patches + 1))
    if rows * columns != num_patches or rows != int(rows) or columns != int(columns):
        raise InputError(
            f"the file has positions for {num_patches} patches, which images of "
            f"{image_size[0]}x{image_size[1]} with {patches.size_name(patch_size)} px patches have "
            "not; if they are for another size, add --image_size=HEIGHT,WIDTH of it; positions of "
            "other tokens are not supported yet"
        )
    return image_size


def stated_image_size(stated) -> tuple[int, int] | None:
    value = stated.get("image_size")
    pretrained = stated.get("pretrained_cfg")
    if isinstance(pretrained, dict) and isinstance(pretrained.get("input_size"), list):
        value = pretrained["input_size"][1:]  # timm's, channels first
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, list)
        or len(sides) != 2
        or not all(isinstance(side, int) and side > 0 for side in sides)
    ):
        raise InputError(f"config.json: image_size is {value!r}; add --image_size=HEIGHT,WIDTH")
    return sides[0], sides[1]


def _whole(stated, field: str) -> int | None:
    value = stated.get(field)
    if value is not None and (not isinstance(value, int) or value < 1):
        raise InputError(f"config.json: {field} is {value!r}, not a whole number from 1")
    return value


def check_epsilon(stated, known: Known) -> None:
    stated_epsilon = stated.get("layer_norm_eps", NORM_EPSILON)
    epsilon = stated_epsilon if known.epsilon is None else known.epsilon
    if epsilon not in (NORM_EPSILON, _HF_EPSILON):
        raise InputError(
            f"the layer norms have epsilon {epsilon!r}, those of the models here {NORM_EPSILON:g}; "
            f"add --layer_norm_eps={NORM_EPSILON:g} to take the weights all the same"
        )
    activation = stated.get("hidden_act", "gelu")
    if activation != "gelu":
        raise InputError(f"config.json: hidden_act is {activation!r}; the models here have gelu")
