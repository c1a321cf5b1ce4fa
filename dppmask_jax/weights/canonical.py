"""What a published encoder is, told from its tensors by the names of `families.base`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.models.sizes import Size
from dppmask_jax.weights import architecture, prefixes, sizes
from dppmask_jax.weights.families import FAMILIES
from dppmask_jax.weights.families.base import Family

INDICES = "relative_position_index"  # how the names of such tensors end; they hold whole numbers
_TABLE = "relative_position_bias_table"
_PARTS = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "mlp.w12": ("mlp.fc1_g", "mlp.fc1_x"),
}
_KNOWN = re.compile(
    r"cls_token|pos_embed|reg_token|(patch_embed\.proj|norm)\.(weight|bias)|rel_pos_bias\.\w+|"
    r"blocks\.\d+\.((norm[12]|attn\.(qkv|[qkv]|proj)|mlp\.(fc[12]|fc1_[gx]|w12|w3))\.(weight|bias)|"
    r"ls[12]\.gamma|attn\.([qv]_bias|relative_\w+))"
)
_LAYER_SCALE = 1.0  # where layer scale would start, which the file's values replace


class Found(NamedTuple):
    """The encoder of a file.

    Attributes:
      options: of `vit_module.ViT`.
      in_front: how many positions stand before those of the patches.
    """

    size: Size
    patch_size: patches.PatchSize
    image_size: tuple[int, int]
    options: dict[str, Any]
    in_front: int


def spelled(path, entries: Mapping[str, Any], family: Family, format_name: str) -> dict[str, str]:
    """{name here: name in the file}; names that are not known stay as they are.

    Raises:
      InputError: the file is of another family, or has a tensor twice.
    """
    found: dict[str, str] = {}
    for name, new in family.respell(entries).items():
        if new in found:
            raise InputError(f"{path} has {new} twice: {found[new]} and {name}")
        found[new] = name
    if family.anchor not in found:
        part = next((part for part in map(architecture.part_of, found)
                     if part not in (architecture.OTHER, "LayerScale")), "")  # fmt: skip
        raise InputError(
            f"{path} is not of --format={format_name}: it has no {family.anchor} in any spelling "
            f"of {family.label}" + (f", but {part}" if part else "")
            + f"; its tensors start with {prefixes.beginnings(entries)}{families_of(entries)}"
        )  # fmt: skip
    return _with_gates_named({name: entries[old].shape for name, old in found.items()}, found)


def families_of(entries) -> str:
    """In words the families that have a place for all names, "" where there is none."""
    fitting = [
        name for name, family in FAMILIES.items()
        if all(_KNOWN.fullmatch(new) or re.fullmatch(family.aside, old)
               for old, new in family.respell(entries).items())
    ]  # fmt: skip
    return f"; it looks like --format={' or '.join(fitting)}" if fitting else ""


def _with_gates_named(shapes, found: dict[str, str]) -> dict[str, str]:
    """The same with timm's names of gated MLPs as those of DINOv2."""
    renamed = {}
    for name, old in found.items():
        block, mlp, layer = name.partition(".mlp.")
        first, last = (shapes.get(f"{block}.mlp.{fc}.weight", ()) for fc in ("fc1", "fc2"))
        packed = len(first) == 2 == len(last) and first[0] == 2 * last[1]
        if mlp and (packed or f"{block}.mlp.fc1_g.weight" in shapes):
            layer = layer.replace("fc1.", "w12.").replace("fc2.", "w3.")
        renamed[f"{block}{mlp}{layer}"] = old
    return renamed


def speller(found: Mapping[str, str]) -> Callable[[str], tuple[str, ...]]:
    """The name here of a tensor -> the file's names of it; what it lacks, as another block's."""

    def in_file(name: str) -> str:
        if name in found:
            return found[name]
        number = re.match(r"blocks\.(\d+)\.", name)
        first = re.sub(r"^blocks\.\d+\.", "blocks.0.", name)
        if number and first in found and ".0." in found[first]:
            return re.sub(r"\.0\.", f".{number[1]}.", found[first], count=1)
        return name

    def spell(name: str) -> tuple[str, ...]:
        layer, _, kind = name.rpartition(".")
        for whole, parts in _PARTS.items():
            if layer.endswith(f".{whole}"):
                block = layer.removesuffix(whole)
                apart = [f"{block}{part}.{kind}" for part in parts]
                first = [re.sub(r"^blocks\.\d+\.", "blocks.0.", part) for part in apart]
                if any(part in found for part in (*apart, *first)):
                    return tuple(in_file(part) for part in apart)
        return (in_file(name),)

    return spell


def read(
    path,
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    stated: Mapping[str, Any],
    known: sizes.Known,
) -> Found:
    """The encoder whose tensors have these shapes, by the names here.

    Args:
      stated: config.json beside the file.
      known: what flags say.

    Raises:
      InputError: it has what no encoder here has, or lacks what each has, or a size is neither in
        the tensors nor stated.
    """
    architecture.check_published(path, shapes, stated)
    kernel = shapes[family.anchor]
    if len(kernel) != 4 or kernel[1] != 3 or min(kernel) < 1:
        raise InputError(
            f"{path}: {family.anchor} has shape {kernel}, wanted (D, 3, height, width)"
        )
    width, _, high, wide = kernel
    patch_size = high if high == wide else (high, wide)
    sizes.check_epsilon(stated, known)
    options = _options(path, shapes, family)
    image_size, options["position"], in_front = _positions(
        path, shapes, options, patch_size, family, stated, known
    )
    if not options["class_position"] and not options["class_token"]:
        del options["class_position"]
    depth = _depth(shapes)
    if not depth:
        raise InputError(f"{path} has no blocks (blocks.0): it is no encoder of {family.label}")
    heads = sizes.heads_of(width, stated, known, family.heads)
    size = sizes.sized(width, depth, heads, _hidden(shapes, width))
    return Found(size, patch_size, image_size, _plain(options), in_front)


def _options(path, shapes, family: Family) -> dict[str, Any]:
    registers = shapes.get("reg_token", (1, 0, 0))
    relative = "each" if _in_a_block(shapes, f"attn.{_TABLE}") else ""
    relative = "shared" if f"rel_pos_bias.{_TABLE}" in shapes else relative
    options = {
        "registers": registers[1] if len(registers) == 3 else 0,
        "relative": relative,
        "layer_scale": _LAYER_SCALE if _in_a_block(shapes, "ls[12].gamma") else 0.0,
        "qv_bias": _in_a_block(shapes, "attn.[qv]_bias"),
        "class_token": "cls_token" in shapes,
        "class_position": True,
        "mlp": "swiglu" if _gated(shapes) else "gelu",
    }
    if not options["class_token"] and (options["registers"] or options["relative"]):
        raise InputError(
            f"{path} has no class token, and register tokens or relative positions: an encoder of "
            "this architecture is not supported yet"
        )
    return options


def _in_a_block(shapes, name: str) -> bool:
    return any(re.fullmatch(rf"blocks\.\d+\.{name}", other) for other in shapes)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Without what is as in a plain encoder."""
    usual = {"registers": 0, "relative": "", "layer_scale": 0.0, "qv_bias": False,
             "class_token": True, "class_position": True, "mlp": "gelu"}  # fmt: skip
    return {name: value for name, value in options.items() if value != usual.get(name)}


def _gated(shapes) -> bool:
    return "blocks.0.mlp.w3.weight" in shapes


def _hidden(shapes, width: int) -> int:
    last = shapes.get(f"blocks.0.mlp.{'w3' if _gated(shapes) else 'fc2'}.weight", ())
    return last[1] if len(last) == 2 else 4 * width


def _depth(shapes) -> int:
    """How many blocks there are without a gap; tensors of others find no place later."""
    found = {number[1] for name in shapes if (number := re.match(r"blocks\.(\d+)\.", name))}
    return next(i for i in range(len(found) + 1) if str(i) not in found)


def _positions(path, shapes, options, patch_size, family: Family, stated, known):
    """(image size, option "position", positions before those of the patches); says in `options`
    whether the class token has one."""
    table = shapes.get("pos_embed")
    image_size = known.image_size or sizes.stated_image_size(stated)
    if table is None:
        if options["relative"]:
            return image_size or _relative_size(path, shapes, options, patch_size), "none", 0
        if not family.fixed:
            raise InputError(
                f"{path} has no positions (pos_embed): rotary ones or others that are computed are "
                "not supported yet"
            )
        return sizes.said_image_size("pos_embed", stated, known, fixed=True), "fixed", 0
    if len(table) != 3 or table[0] != 1:
        raise InputError(f"{path}: pos_embed has shape {table}, wanted (1, positions, width)")
    allowed = (1, 0, 1 + options["registers"]) if options["class_token"] else (0,)
    if image_size is None:
        fitting = [front for front in allowed if _is_square(table[1] - front)]
        if not fitting:
            raise InputError(
                f"{path} has {table[1]} positions, which no square image has, and how patches lie "
                "is not in the file; add --image_size=HEIGHT,WIDTH"
            )
        side = math.isqrt(table[1] - fitting[0])
        image_size = tuple(side * each for each in patches.sides(patch_size))
        in_front = fitting[0]
    else:
        in_front = table[1] - _num_patches(image_size, patch_size)
        if in_front not in allowed:
            raise InputError(
                f"{path} has {table[1]} positions, and images of {image_size[0]}x{image_size[1]} "
                f"have {_num_patches(image_size, patch_size)} patches of "
                f"{patches.size_name(patch_size)} px; if the file is for another size, add "
                "--image_size=HEIGHT,WIDTH of it"
            )
    options["class_position"] = in_front > 0
    return image_size, "learned", in_front


def _num_patches(image_size, patch_size) -> int:
    try:
        return math.prod(patches.grid_shape(image_size, patch_size))
    except ValueError as error:
        raise InputError(f"--image_size: {error}") from error


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _relative_size(path, shapes, options, patch_size) -> tuple[int, int]:
    """The image size of a square grid that has as many relative positions as a table has rows."""
    table = (
        f"rel_pos_bias.{_TABLE}" if options["relative"] == "shared" else f"blocks.0.attn.{_TABLE}"
    )
    between = shapes[table][0] - 3
    side = math.isqrt(max(between, 0))
    if side**2 != between or side % 2 == 0:
        raise InputError(
            f"{path}: {table} has {shapes[table][0]} rows, which no square grid has; add "
            "--image_size=HEIGHT,WIDTH"
        )
    return tuple((side + 1) // 2 * each for each in patches.sides(patch_size))
