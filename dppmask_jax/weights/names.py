"""Which tensor of a published file is which of our parameters, and how each is laid out.

PyTorch keeps a linear layer as (out, in) and a convolution as (out, in, row, column); here a kernel
is (in, out), and that of the patch embedding (P, D) with P in the order of `patches.patchify`.
All transposes stand in this file.

A "tree" is nested dicts of arrays as the models have them, with the encoder's and the decoder's
positions among them whether they are learned or not, unless a file leaves fixed ones out:

  {"encoder"}                                     an encoder; "norm" is missing where it has none
  {"encoder", "decoder"}                          a masked autoencoder
  {"encoder", "head"[, "fc_norm"]}                a classifier
  {"encoder", "head"[, "mask_embed"]}             a network of iBOT
  {"student", "teacher", "class_center", "patch_center"}

A head of iBOT always has "scale" and, unless a file lacks it, "patch_last_layer".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import patches


class Layout(NamedTuple):
    """`write` turns our array into the file's, `read` turns it back; NumPy or traced arrays."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)
CENTER = Layout(lambda x: x[None], lambda x: x[0])
PATCH_CENTER = Layout(lambda x: x[None, None], lambda x: x[0, 0])


def convolution(height: int, width: int) -> Layout:
    """(P, D) <-> (D, C, height, width), with those of a patch; P is height * width * C."""
    return Layout(
        lambda x: x.reshape(height, width, -1, x.shape[-1]).transpose(3, 2, 0, 1),
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    )


class Slot(NamedTuple):
    """One of our arrays and the tensors of the file that it is.

    With several `names`, ours is cut into so many equal parts along its last axis.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    layout: Layout


class Format(NamedTuple):
    """How a kind of file names its tensors.

    Attributes:
      holds: "encoder", "autoencoder", "classifier", "teacher", "student" or "both" (of iBOT).
      spell: MAE's name of a tensor -> the names of the format.
      respell: the names in a file -> {name in the file: name of the format}.
      containers: under which key a .pth file may keep the tensors; the first is what is written.
    """

    holds: str
    spell: Callable[[str], tuple[str, ...]]
    respell: Callable[[Iterable[str]], dict[str, str]]
    containers: tuple[str, ...]

    @property
    def anchor(self) -> str:
        """The format's name of a tensor that every file has: the class token."""
        return ("student.module." if self.holds == "both" else "") + self.spell("cls_token")[0]


# What a tree holds, by MAE's names; what MAE has not, by timm's, DINOv2's and BEiT's.

_TOKENS = {"cls_token": "cls_token", "positions": "pos_embed", "registers": "reg_token"}
_LAYERS = ("qkv", "proj", "fc1", "fc2", "w12", "w3")
_RELATIVE = "relative_position_bias_table"


def slots(
    tree, spell: Callable[[str], tuple[str, ...]], patch_size: patches.PatchSize | None = None
) -> list[Slot]:
    """All arrays of a tree; `patch_size` None is that of square patches."""
    if "student" in tree:
        student = slots(
            tree["student"], lambda name: _after("student.module.", spell(name)), patch_size
        )
        teacher = slots(tree["teacher"], lambda name: _after("teacher.", spell(name)), patch_size)
        return [
            *(slot._replace(path=("student", *slot.path)) for slot in student),
            *(slot._replace(path=("teacher", *slot.path)) for slot in teacher),
            Slot(("class_center",), ("ibot_loss.center",), CENTER),
            Slot(("patch_center",), ("ibot_loss.center2",), PATCH_CENTER),
        ]
    found = [*_encoder(tree["encoder"], patch_size)]
    if "decoder" in tree:
        found += _decoder(tree["decoder"])
    if "head" in tree:
        found += _ibot_head(tree["head"]) if "last_layer" in tree["head"] else _linear("head")
    if "fc_norm" in tree:
        found += _norm(("fc_norm",), "fc_norm")
    if "mask_embed" in tree:
        found.append(Slot(("mask_embed",), ("masked_embed",), SAME))
    return [
        slot._replace(names=tuple(part for name in slot.names for part in spell(name)))
        for slot in found
    ]


def _encoder(encoder, patch_size) -> Iterator[Slot]:
    if patch_size is None:
        patch_size = math.isqrt(encoder["patch_embed"]["proj"]["kernel"].shape[0] // 3)
    path = ("encoder",)
    for ours, theirs in _TOKENS.items():
        if ours in encoder:
            yield Slot((*path, ours), (theirs,), SAME)
    proj = (*path, "patch_embed", "proj")
    yield Slot(
        (*proj, "kernel"), ("patch_embed.proj.weight",), convolution(*patches.sides(patch_size))
    )
    yield Slot((*proj, "bias"), ("patch_embed.proj.bias",), SAME)
    if "relative_bias" in encoder:
        yield Slot((*path, "relative_bias", "table"), (f"rel_pos_bias.{_RELATIVE}",), SAME)
    yield from _blocks((*path, "blocks"), "blocks", encoder["blocks"])
    if "norm" in encoder:
        yield from _norm((*path, "norm"), "norm")


def _decoder(decoder) -> Iterator[Slot]:
    path = ("decoder",)
    yield Slot((*path, "mask_token"), ("mask_token",), SAME)
    if "positions" in decoder:
        yield Slot((*path, "positions"), ("decoder_pos_embed",), SAME)
    yield from _linear("decoder_embed", (*path, "embed"))
    yield from _blocks((*path, "blocks"), "decoder_blocks", decoder["blocks"])
    yield from _norm((*path, "norm"), "decoder_norm")
    yield from _linear("decoder_pred", (*path, "pred"))


def _blocks(path, name: str, blocks) -> Iterator[Slot]:
    for i in range(len(blocks)):
        block, prefix = (*path, f"block_{i}"), f"{name}.{i}"
        tree = blocks[block[-1]]
        for norm in ("norm1", "norm2"):
            yield from _norm((*block, norm), f"{prefix}.{norm}")
        for part in ("attn", "mlp"):
            for layer in (layer for layer in _LAYERS if layer in tree[part]):
                bias = "bias" in tree[part][layer]
                yield from _linear(f"{prefix}.{part}.{layer}", (*block, part, layer), bias)
        for bias in (bias for bias in ("q_bias", "v_bias") if bias in tree["attn"]):
            yield Slot((*block, "attn", bias), (f"{prefix}.attn.{bias}",), SAME)
        if "relative" in tree["attn"]:
            table = (*block, "attn", "relative", "table")
            yield Slot(table, (f"{prefix}.attn.{_RELATIVE}",), SAME)
        for ours, theirs in (("scale1", "ls1"), ("scale2", "ls2")):
            if ours in tree:
                yield Slot((*block, ours), (f"{prefix}.{theirs}.gamma",), SAME)


def _norm(path, name: str) -> Iterator[Slot]:
    yield Slot((*path, "scale"), (f"{name}.weight",), SAME)
    yield Slot((*path, "bias"), (f"{name}.bias",), SAME)


def _linear(name: str, path: tuple[str, ...] = (), bias: bool = True) -> Iterator[Slot]:
    path = path or (name,)
    yield Slot((*path, "kernel"), (f"{name}.weight",), LINEAR)
    if bias:
        yield Slot((*path, "bias"), (f"{name}.bias",), SAME)


def _ibot_head(head) -> Iterator[Slot]:
    for i in range(3):
        # Even numbers are linear layers, the odd ones between are GELUs.
        yield from _linear(f"head.mlp.{2 * i}", ("head", f"mlp_{i}"))
    for ours, theirs in (("last_layer", "last_layer"), ("patch_last_layer", "last_layer2")):
        if ours in head:
            yield Slot(("head", ours, "scale"), (f"head.{theirs}.weight_g",), LINEAR)
            yield Slot(("head", ours, "direction"), (f"head.{theirs}.weight_v",), LINEAR)


# From a tree to a file's tensors and back.


def write(tree, spell, patch_size: patches.PatchSize | None = None) -> dict[str, Any]:
    """{name: array in the file's layout}; views, not all of them contiguous. `patch_size` None is
    that of square patches."""
    tensors = {}
    for slot in slots(tree, spell, patch_size):
        array = tree
        for part in slot.path:
            array = array[part]
        cut = array.shape[-1] // len(slot.names)
        for i, name in enumerate(slot.names):
            tensors[name] = slot.layout.write(array[..., i * cut : (i + 1) * cut])
    return tensors


def write_names(tree, spell) -> set[str]:
    """The names of `write`."""
    return {name for slot in slots(tree, spell) for name in slot.names}


def read(template, spell, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of `write`'s tensors; arrays are contiguous.

    Args:
      template: a tree whose arrays have the shapes wanted.
      tensors: those of all slots of the template, in the file's layout.
    """
    tree: dict[str, Any] = {}
    for slot in slots(template, spell):
        *outer, leaf = slot.path
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
        parts = [slot.layout.read(tensors[name]) for name in slot.names]
        node[leaf] = np.ascontiguousarray(np.concatenate(parts, axis=-1))
    return tree


def _after(prefix: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


# The spellings.


def _mae(name: str) -> tuple[str, ...]:
    return (name,)


def _as_they_are(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


_HF_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key",
                 "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}  # fmt: skip
_HF_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def _huggingface(name: str) -> tuple[str, ...]:
    """The names of transformers 4, which are those of the published files; 5 reads them too."""
    block = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if block:
        decoder, number, layer, kind = block.groups()
        where = "decoder.decoder_layers" if decoder else "vit.encoder.layer"
        return tuple(f"{where}.{number}.{part}.{kind}" for part in _HF_BLOCK[layer])
    if name in _HF_ENCODER:
        return (f"vit.{_HF_ENCODER[name]}",)
    return (f"decoder.{name}",)


# transformers 5 in memory, and what its save_pretrained makes of the decoder's blocks.
_HF_SPELLINGS = (
    (r"^(?=(embeddings|encoder|layers|layernorm)\.)", "vit."),
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def _any_huggingface(names: Iterable[str]) -> dict[str, str]:
    spelled = {}
    for name in names:
        new = name
        for pattern, replacement in _HF_SPELLINGS:
            new = re.sub(pattern, replacement, new)
        spelled[name] = new
    return spelled


def _without_vit(name: str) -> tuple[str, ...]:
    return tuple(part.removeprefix("vit.") for part in _huggingface(name))


def _any_huggingface_encoder(names: Iterable[str]) -> dict[str, str]:
    return {name: new.removeprefix("vit.") for name, new in _any_huggingface(names).items()}


def _ibot(name: str) -> tuple[str, ...]:
    return (name,) if name.startswith("head.") else (f"backbone.{name}",)


def _ibot_student(name: str) -> tuple[str, ...]:
    return _after("module.", _ibot(name))


def _any_ibot(names: Iterable[str]) -> dict[str, str]:
    """Without the prefix of data-parallel training; a backbone alone may go without its own."""
    spelled = {name: name.removeprefix("module.") for name in names}
    if not any(new.startswith(("backbone.", "head.")) for new in spelled.values()):
        spelled = {name: f"backbone.{new}" for name, new in spelled.items()}
    return spelled


def _any_ibot_student(names: Iterable[str]) -> dict[str, str]:
    return {name: f"module.{new}" for name, new in _any_ibot(names).items()}


def _any_ibot_both(names: Iterable[str]) -> dict[str, str]:
    def new(name):
        network, _, rest = name.partition(".")
        if network not in ("student", "teacher"):
            return name
        return f"{network}.{'module.' if network == 'student' else ''}" + rest.removeprefix(
            "module."
        )

    return {name: new(name) for name in names}


FORMATS = {
    "mae": Format("encoder", _mae, _as_they_are, ("model", "state_dict")),
    "mae-full": Format("autoencoder", _mae, _as_they_are, ("model", "state_dict")),
    "mae-finetuned": Format("classifier", _mae, _as_they_are, ("model", "state_dict")),
    "hf": Format("autoencoder", _huggingface, _any_huggingface, ("state_dict",)),
    "hf-encoder": Format("encoder", _without_vit, _any_huggingface_encoder, ("state_dict",)),
    "timm": Format("encoder", _mae, _as_they_are, ("state_dict", "model")),
    "ibot-teacher": Format("teacher", _ibot, _any_ibot, ("teacher", "state_dict")),
    "ibot-student": Format("student", _ibot_student, _any_ibot_student, ("student", "state_dict")),
    "ibot": Format("both", _ibot, _any_ibot_both, ()),
}


def abstract(shape: tuple[int, ...]):
    """A template's float32 array of a shape, without values."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
