"""Checks a config before any work starts: every field's type and range, then what must fit."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.masking import num_masked, num_visible, ratio_range
from dppmask_jax.models.vit import SIZES


class Rule(NamedTuple):
    """Whether a value is allowed, and the words that say what is."""

    holds: Callable[[Any], bool]
    allowed: str


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number from {low}" + (f" to {high}" if high < 2**31 - 1 else " up")
    return Rule(lambda value: _is_whole(value) and low <= value <= high, words)


def _number(low: float, high: float = math.inf) -> Rule:
    words = f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else " up")
    return Rule(lambda value: _is_number(value) and low <= value <= high, words)


def _above(low: float, below: float = math.inf) -> Rule:
    words = f"a number above {low:g}" + (f" and below {below:g}" if below < math.inf else "")
    return Rule(lambda value: _is_number(value) and low < value < below, words)


def _one_of(*choices: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in choices, " | ".join(choices))


def _pair(each: Rule, words: str, ordered: bool = False) -> Rule:
    def holds(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(each.holds(part) for part in value)
            and (not ordered or value[0] <= value[1])
        )

    return Rule(holds, words)


def _several(each: Rule, words: str) -> Rule:
    return Rule(
        lambda value: (
            isinstance(value, (tuple, list)) and len(value) > 0 and all(map(each.holds, value))
        ),
        words,
    )


_TEXT = Rule(lambda value: isinstance(value, str), "a text")
_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
_FRACTION_BELOW_1 = Rule(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")

_SCALE = _pair(
    _above(0, 1.0000001), "(smallest, largest) share of the area, within 0 to 1", ordered=True
)
COMMON_RULES = {
    "method": _TEXT,
    "seed": _whole(0),
    "image_size": _pair(_whole(1, 16384), "(height, width) in pixels, such as (224, 224)"),
    "batch_size": _whole(1),
    "epochs": _above(0),
    "log_every": _whole(1),
    "init_from": _TEXT,
    "data.source": Rule(
        lambda value: (
            isinstance(value, str)
            and (value == "shapes" or value.startswith(("folder:", "tfds:", "shapes:")))
        ),
        "shapes | folder:PATH | tfds:NAME",
    ),
    "data.dir": _TEXT,
    "data.val_fraction": _FRACTION_BELOW_1,
    "data.crop_scale": _SCALE,
    "data.flip": _FLAG,
    "data.workers": _whole(0, 256),
    "data.max_bad_frac": _number(0, 1),
    "optim.base_lr": _above(0),
    "optim.final_lr": _number(0),
    "optim.warmup_epochs": _number(0),
    "optim.weight_decay": _number(0),
    "optim.b1": _FRACTION_BELOW_1,
    "optim.b2": _FRACTION_BELOW_1,
    "optim.epsilon": _above(0),
    "optim.weight_decay_end": Rule(
        lambda v: v is None or (_is_number(v) and v >= 0), "a number from 0 up"
    ),
    "optim.clip_norm": _number(0),
    "optim.clip_per_tensor": _FLAG,
    "optim.accum_steps": _whole(1),
    "optim.max_bad_steps": _whole(0),
    "checkpoint.every": _whole(1),
    "checkpoint.keep": _whole(1),
    "evaluate.every_epochs": _above(0),
    "evaluate.knn_images": _whole(0),
    "evaluate.knn_k": _whole(1),
    "evaluate.knn_temperature": _above(0),
    "evaluate.knn_feature": _one_of("patches", "cls"),
    "evaluate.figure_images": _whole(0, 64),
    "model.size": _one_of(*SIZES),
    "model.patch_size": _whole(1),
    "model.drop_path": _FRACTION_BELOW_1,
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.remat": _FLAG,
    "mask.tau": _number(0, 1),
    "mask.tau_end": Rule(
        lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "a number from 0 to 1"
    ),
    "mask.threshold_on": _one_of("d2", "d"),
    "mask.kernel": _one_of("gaussian", "cosine"),
    "mask.bandwidth": _above(0),
    "mask.normalize": _one_of("l2", "standardize"),
}

MAE_RULES = {
    "model.decoder_width": _whole(4),
    "model.decoder_depth": _whole(1),
    "model.decoder_heads": _whole(1),
    "mask.strategy": _one_of("dpp", "random", "block"),
    "mask.ratio": Rule(
        lambda v: _is_number(v) and 0 < v < 1, "a number above 0 and below 1 (share masked)"
    ),
    "mask.features": _one_of("embedding", "pixels"),
    "loss.norm_pix": _FLAG,
    "evaluate.loss_images": _whole(0),
}

_TEMPERATURE_RULES = {"start": _above(0), "end": _above(0), "warmup_epochs": _whole(0)}

IBOT_RULES = {
    "data.local_views": _whole(0, 64),
    "data.local_size": _pair(_whole(1, 16384), "(height, width) in pixels, such as (96, 96)"),
    "data.local_scale": _SCALE,
    "data.jitter": Rule(
        lambda v: (
            isinstance(v, (tuple, list))
            and len(v) == 4
            and all(_is_number(x) and 0 <= x <= 1 for x in v)
            and v[3] <= 0.5
        ),
        "four numbers from 0 to 1 (brightness, contrast, saturation, hue), the last to 0.5",
    ),
    "data.jitter_prob": _number(0, 1),
    "data.grey_prob": _number(0, 1),
    "data.blur_prob": Rule(
        lambda v: (
            isinstance(v, (tuple, list))
            and len(v) == 3
            and all(_is_number(x) and 0 <= x <= 1 for x in v)
        ),
        "three numbers from 0 to 1 (first global view, second, local views)",
    ),
    "data.blur_sigma": _pair(
        _above(0, 2.4000001), "(smallest, largest) in pixels, above 0 to 2.4", ordered=True
    ),
    "data.solarize_prob": _number(0, 1),
    "model.init_std": _above(0),
    "model.head_hidden": _whole(1),
    "model.head_bottleneck": _whole(1),
    "model.prototypes": _whole(2),
    "model.shared_head": _FLAG,
    "model.norm_last_layer": _FLAG,
    "mask.strategy": _one_of("dpp", "random", "block", "attention"),
    "mask.ratio": _several(_FRACTION_BELOW_1, "a list such as (0.0, 0.7), each from 0 to below 1"),
    "mask.ratio_var": _several(_FRACTION_BELOW_1, "a list such as (0.0, 0.05), one a ratio"),
    "mask.prob": _above(0, 1.0000001),
    "mask.start_epoch": _number(0),
    "mask.attention": _one_of("high", "low", "hint"),
    "mask.features": _one_of("tokens", "head", "pixels"),
    "loss.class_weight": _number(0),
    "loss.patch_weight": _number(0),
    "loss.student_temp": _above(0),
    "loss.center_decay": _number(0, 1),
    **{
        f"loss.{which}_temp.{name}": rule
        for which in ("class", "patch")
        for name, rule in _TEMPERATURE_RULES.items()
    },
    "optim.freeze_last_layer_epochs": _number(0),
    "teacher.ema_decay": _number(0, 1),
}

RULES = {"mae": COMMON_RULES | MAE_RULES, "ibot": COMMON_RULES | IBOT_RULES}

MODEL_FIELDS = (
    "method",
    "image_size",
    "model.size",
    "model.patch_size",
    "model.decoder_width",
    "model.decoder_depth",
    "model.decoder_heads",
    "model.head_hidden",
    "model.head_bottleneck",
    "model.prototypes",
    "model.shared_head",
    "model.norm_last_layer",
)


def flatten(config) -> dict[str, Any]:
    """{"a.b": value} of a nested config."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def check(config) -> None:
    """Raises InputError, in one line, for the first field that is wrong or does not fit."""
    values = flatten(config)
    method = values.get("method")
    if not isinstance(method, str) or method not in RULES:
        raise InputError(f"config.method={method!r} is not allowed: {' | '.join(RULES)}")
    rules = RULES[method]
    for field in values:
        if field not in rules:
            near = difflib.get_close_matches(field, rules, n=1)
            hint = f"did you mean config.{near[0]}?" if near else "remove it"
            raise InputError(f"unknown config field config.{field}; {hint}")
    for field, rule in rules.items():
        if field not in values:
            raise InputError(f"config.{field} is missing; it takes {rule.allowed}")
        if field == "data.source" and values[field] == "":
            raise InputError(
                "config.data.source is empty; say where the images are: "
                "--config.data.source=folder:PATH (or shapes, or tfds:NAME)"
            )
        if field == "mask.strategy" and method == "mae" and values[field] == "attention":
            raise InputError(
                "config.mask.strategy='attention' needs a teacher, which MAE has not; "
                "use dpp | random | block"
            )
        if not rule.holds(values[field]):
            raise InputError(f"config.{field}={values[field]!r} is not allowed: {rule.allowed}")
    _check_fit(config)


def _check_fit(config) -> None:
    num_patches = _num_patches("image_size", config.image_size, config.model.patch_size)
    {"mae": _check_mae, "ibot": _check_ibot}[config.method](config, num_patches)
    if config.optim.warmup_epochs > config.epochs:
        raise InputError(
            f"config.optim.warmup_epochs={config.optim.warmup_epochs:g} is longer than "
            f"config.epochs={config.epochs:g}"
        )


def _num_patches(field: str, size, patch_size: int) -> int:
    try:
        rows, columns = patches.grid_shape(tuple(size), patch_size)
    except ValueError as error:
        raise InputError(f"config.{field}, config.model.patch_size: {error}") from error
    return rows * columns


def _check_mae(config, num_patches: int) -> None:
    try:
        num_keep = num_visible(num_patches, config.mask.ratio)
    except ValueError as error:
        raise InputError(f"config.mask.ratio={config.mask.ratio}: {error}") from error
    if num_keep == num_patches:
        raise InputError(
            f"config.mask.ratio={config.mask.ratio} masks none of the {num_patches} patches; "
            "raise it"
        )
    model = config.model
    if model.decoder_width % model.decoder_heads or model.decoder_width % 4:
        raise InputError(
            f"config.model.decoder_width={model.decoder_width} is not a multiple of 4 and of "
            f"config.model.decoder_heads={model.decoder_heads}"
        )


def _check_ibot(config, num_patches: int) -> None:
    if config.data.local_views:
        _num_patches("data.local_size", config.data.local_size, config.model.patch_size)
    ratios, variations = tuple(config.mask.ratio), tuple(config.mask.ratio_var)
    where = f"config.mask.ratio={ratios}, config.mask.ratio_var={variations}"
    if len(ratios) != len(variations):
        raise InputError(f"{where}: give as many variations as ratios")
    if any(v > r or r + v >= 1 for r, v in zip(ratios, variations, strict=True)):
        raise InputError(f"{where}: each ratio ± its variation must stay within 0 to below 1")
    most = int(num_masked(num_patches, ratio_range(ratios, variations)[1].max()))
    if most in (0, num_patches):
        share = "none" if most == 0 else "all"
        raise InputError(f"{where} masks {share} of the {num_patches} patches; change the ratio")
    for field in ("mask.start_epoch", "optim.freeze_last_layer_epochs"):
        value = flatten(config)[field]
        if value >= config.epochs:
            raise InputError(
                f"config.{field}={value:g} is not below config.epochs={config.epochs:g}"
            )
    if not config.loss.class_weight and not config.loss.patch_weight:
        raise InputError("config.loss.class_weight and config.loss.patch_weight are both 0")
