"""Which encoders are supported, told from the names and shapes of a file's tensors.

An encoder here is a plain vision transformer: class token, one position for it and each patch,
layer norm before attention and MLP, GELU. Whatever else takes part in a file's encoder is refused
by name: without it the same weights are another, worse encoder. Heads alone can be left aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dppmask_jax.errors import InputError
from dppmask_jax.runs.kinds import encoder_options

HEADS = ("head", "fc_norm", "classifier", "pooler", "decoder", "mask_token")  # the usual ones
_NETWORK = r"^(?:(?:student|teacher|module|backbone|vit)\.)*"
_HEAD = re.compile(
    _NETWORK + r"(?:\w*head|heads|fc|fc_norm|classifier|pre_logits|pooler|projector|projection|"
    r"predictor|decoder|attn_pool|mask_token|embeddings\.mask_token|masked_embed|ibot_loss)"
    r"(?:\.|_|$)"
)
# What tensors beyond those of a plain encoder are, by their names.
_PARTS = {
    "register tokens": r"(^|\.)(reg_tokens?|register_tokens?|storage_tokens|registers?)(\.|$)",
    "a distillation token": r"(^|\.)dist(illation)?_token",
    "LayerScale": r"\.ls_?\d\.|\.(gamma|lambda)_?\d?$|layer_?scale",
    "normalised queries and keys": r"\.((q|k|query|key)_?(layer_?)?(norm|ln)|norm_(q|k))\.",
    "rotary positions": r"(^|[._])(rope|rotary|inv_freq|freqs|periods)(\.|_|$)",
    "relative positions": r"rel(ative)?_pos",
    "gated MLPs (SwiGLU)": r"\.mlp\.(w\d+|fc1_[gx]|gate_proj|up_proj|weights_in|fc_norm)\.",
    "a layer norm before the blocks": r"(^|\.)(norm_pre|ln_pre|pre_layer_?norm|pre_layrnorm)\.",
    "layer norms inside its blocks": r"\.(attn|mlp)\.(\w*norm|\w*ln)\.",
    "biases of queries and values alone": r"\.(q|k|v)_bias$",
    "a patch embedding of several layers": r"patch_embed\.",
    "adapters": r"(lora|adapter)",
}
OTHER = "tensors that no encoder here has"
_POSITIONS = re.compile(r"pos(ition(al)?)?_?(embed|enc)")
_TENSORS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias",
            "norm.weight", "norm.bias")  # fmt: skip
_OF_A_BLOCK = tuple(
    f"{layer}.{kind}"
    for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
)
_WITHOUT = {
    "attn.qkv.bias": "no biases of queries, keys and values",
    "norm1.bias": "layer norms without a shift",
    "attn.proj.bias": "no bias after attention",
    "mlp.fc1.bias": "MLPs without biases",
}
# Arguments of timm's models that change what is computed and leave no tensor behind.
_TIMM_ARGUMENTS = ("act_layer", "norm_layer", "mlp_layer", "block_fn", "attn_layer", "rope_type")


def has_fixed_positions(config) -> bool:
    """Whether the encoder of a run has sine-cosine positions, which are no parameters."""
    return encoder_options(config).get("position") == "fixed"


def first_axis(config) -> str:
    """What the first half of the channels of such positions encodes, "column" or "row"."""
    return encoder_options(config).get("first_axis", "column")


# Options of encoders here that these formats have no place for.
_NO_PLACE = {
    "registers": "register tokens",
    "relative": "biases of relative positions",
    "layer_scale": "layer scale",
    "qv_bias": "biases of queries and values alone",
}
# The same where an option is said at all, and is not as in a plain encoder.
_UNLIKE_PLAIN = {
    "class_token": (True, "no class token"),
    "class_position": (True, "no position of the class token"),
    "mlp": ("gelu", "gated MLPs"),
}


def check_plain(what: str, config, format_name: str) -> None:
    """Raises InputError unless the encoder of a run's config is one that the formats are of.

    Args:
      what: whose config it is, in words.
    """
    if (kind := config.model.encoder) != "vit":
        raise InputError(
            f"{what} has an encoder {kind!r}, and the formats are those of ViTs; such encoders are "
            "used through dppmask_jax.load_encoder"
        )
    options = encoder_options(config)
    words = [name for option, name in _NO_PLACE.items() if options.get(option)]
    words += ["no positions"] if options.get("position") == "none" else []
    words += [word for option, (plain, word) in _UNLIKE_PLAIN.items()
              if options.get(option, plain) != plain]  # fmt: skip
    if words:
        raise InputError(
            f"{what} has an encoder with {' and '.join(words)}, which --format={format_name} has "
            "no place for; such encoders are used through dppmask_jax.load_encoder"
        )


def is_head(name: str) -> bool:
    """Whether a tensor belongs to a head: to what takes the encoder's tokens and gives none."""
    return bool(_HEAD.match(name))


def part_of(name: str) -> str:
    """In words what a tensor is that no encoder here has."""
    return next((part for part, pattern in _PARTS.items() if re.search(pattern, name)), OTHER)


def check_left_aside(path, prefix: str, names: Iterable[str]) -> None:
    """Raises InputError where a tensor takes part in the encoder whose tensors have a prefix that
    it has not: `reg_token` beside `vit.`, or `model.pos_embed` beside `model.vit.`."""
    for name in names:
        pairs = zip(name.split("."), prefix.split("."), strict=False)
        first = next((word for word, above in pairs if word != above), "") + "."
        part = "positions" if _POSITIONS.match(first) else part_of(first)
        if part != OTHER:
            raise InputError(
                f"{path} has {part} ({name}) beside {prefix}, which may take part in its encoder: "
                "an encoder of this architecture is not supported yet"
            )


def check(
    path,
    shapes: Mapping[str, tuple[int, ...]],
    spellings: Iterable[Callable[[str], tuple[str, ...]]],
    stated: Mapping[str, Any],
) -> None:
    """Raises InputError unless a file's encoder is a plain one; what it has besides, by name.

    Args:
      shapes: of its tensors, by the names of its format.
      spellings: MAE's name of a tensor -> the names of the format; one for each network.
      stated: config.json beside it.
    """
    depth = 1 + max((int(number) for name in shapes for number in re.findall(r"\.(\d+)\.", name)
                     if len(number) < 4), default=-1)  # fmt: skip
    spellings, known, found = list(spellings), set(), {}
    for spell in spellings:
        blocks = [f"{part}blocks.{i}" for i in range(depth) for part in ("", "decoder_")]
        plain = [*_TENSORS, *(f"{block}.{name}" for block in blocks for name in _OF_A_BLOCK)]
        known |= {name for tensor in plain for name in spell(tensor)}
    for name in shapes:
        if name not in known and not is_head(name):
            found.setdefault(part_of(name), []).append(name)
    for part in _without(shapes, spellings[0], depth):
        found.setdefault(part, [])
    found |= {part: [] for part in _without_a_trace(stated)}
    if found:
        words = "; ".join(part + _some(names) for part, names in found.items())
        raise InputError(
            f"{path} has {words}: an encoder of this architecture is not supported yet"
        )


def check_published(path, shapes: Mapping[str, tuple[int, ...]], stated: Mapping[str, Any]) -> None:
    """Raises InputError where an encoder lacks what each here has, or computes what none does,
    without a tensor that shows it.

    Args:
      shapes: of its tensors, by the names of `families.base`.
      stated: config.json beside it.
    """
    biases = any(
        re.match(r"blocks\.\d+\.attn\.(qkv\.bias|q\.bias|q_bias)$", name) for name in shapes
    )
    lacks = [_WITHOUT[name] for name in ("norm1.bias", "attn.proj.bias")
             if f"blocks.0.{name}" not in shapes]  # fmt: skip
    lacks += [] if biases else [_WITHOUT["attn.qkv.bias"]]
    lacks += _without_a_trace(stated)
    if "blocks.0.norm1.weight" in shapes and lacks:
        raise InputError(
            f"{path} has {'; '.join(lacks)}: an encoder of this architecture is not supported yet"
        )


def check_known(path, names: Iterable[str], instead: str) -> None:
    """Raises InputError where names of tensors that have no place say that an encoder has parts
    that none of its family has.

    Args:
      instead: in words of which family it may be, "" where of none here.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if not is_head(name) and (part := part_of(name)) != OTHER:
            found.setdefault(part, []).append(name)
    if found:
        words = "; ".join(part + _some(names) for part, names in found.items())
        raise InputError(
            f"{path} has {words}"
            + (instead or ": an encoder of this architecture is not supported yet")
        )


def _without(shapes, spell, depth: int):
    """What a plain encoder has and this one has in no block, in words."""
    blocks = [i for i in range(depth) if spell(f"blocks.{i}.norm1.weight")[0] in shapes]
    for name, words in _WITHOUT.items():
        if blocks and not any(spell(f"blocks.{i}.{name}")[0] in shapes for i in blocks):
            yield words
    if blocks and spell("patch_embed.proj.bias")[0] not in shapes:
        yield "a patch embedding without a bias"
    hidden, narrowed = (shapes.get(spell(f"blocks.0.mlp.{layer}.weight")[0], ())
                        for layer in ("fc1", "fc2"))  # fmt: skip
    if len(hidden) == 2 == len(narrowed) and hidden[0] == 2 * narrowed[1]:
        yield "gated MLPs (SwiGLU)"


def _without_a_trace(stated):
    """What config.json of timm says of the computation that no tensor shows."""
    name, arguments = stated.get("architecture"), stated.get("model_args")
    for word, part in (("rope", "rotary positions"), ("_rpn", "layer norms after its layers"),
                       ("quickgelu", "another GELU")):  # fmt: skip
        if isinstance(name, str) and word in name:
            yield f"{part} (config.json: {name})"
    for argument in _TIMM_ARGUMENTS if isinstance(arguments, dict) else ():
        if arguments.get(argument):
            yield f"{argument}={arguments[argument]!r} (config.json)"


def _some(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" ({names[0]}{more})"
