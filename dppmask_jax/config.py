"""Checks a config before any work starts: every field's type and range, then what must fit."""

from __future__ import annotations

from typing import Any

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.fields import (
    CLASSES,
    FLAG,
    GREY_RANGE,
    SOURCE,
    TEXT,
    Rule,
    above,
    above_to,
    check_fields,
    check_lengths,
    flatten,
    fraction_below_1,
    is_number,
    number,
    one_of,
    optional,
    pair,
    several,
    shown,
    whole,
)
from dppmask_jax.masking import num_masked, num_visible, ratio_range
from dppmask_jax.models.vit import SIZES
from dppmask_jax.targets import TARGETS

MOST_PATCHES = 2**14  # of an image; the selector's kernel has their square

_SCALE = pair(above_to(0, 1), "(smallest, largest) share of the area, within 0 to 1", ordered=True)
COMMON_RULES = {
    "method": TEXT,
    "seed": whole(0),
    "image_size": pair(whole(1, 16384), "(height, width) in pixels, such as (224, 224)"),
    "batch_size": whole(1, 2**20),
    "epochs": above(0),
    "log_every": whole(1),
    "init_from": TEXT,
    "data.source": SOURCE,
    "data.classes": CLASSES,
    "data.range": GREY_RANGE,
    "data.dir": TEXT,
    "data.val_fraction": fraction_below_1,
    "data.crop_scale": _SCALE,
    "data.flip": FLAG,
    "data.workers": whole(0, 256),
    "data.max_bad_frac": number(0, 1),
    "optim.base_lr": above(0),
    "optim.final_lr": number(0),
    "optim.warmup_epochs": number(0),
    "optim.weight_decay": number(0),
    "optim.b1": fraction_below_1,
    "optim.b2": fraction_below_1,
    "optim.epsilon": above(0),
    "optim.weight_decay_end": optional(number(0)),
    "optim.clip_norm": number(0),
    "optim.clip_per_tensor": FLAG,
    "optim.accum_steps": whole(1),
    "optim.max_bad_steps": whole(0),
    "checkpoint.every": whole(1),
    "checkpoint.every_minutes": number(0),
    "checkpoint.keep": whole(1),
    "checkpoint.max_failed_saves": whole(1),
    "evaluate.every_epochs": number(0),
    "evaluate.knn_images": whole(0),
    "evaluate.knn_k": whole(1),
    "evaluate.knn_temperature": above(0),
    "evaluate.knn_feature": one_of("patches", "cls"),
    "evaluate.figure_images": whole(0, 64),
    "model.size": one_of(*SIZES),
    "model.patch_size": whole(1),
    "model.drop_path": fraction_below_1,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.remat": FLAG,
    "mask.tau": number(0, 1),
    "mask.tau_end": optional(number(0, 1)),
    "mask.threshold_on": one_of("d2", "d"),
    "mask.kernel": one_of("gaussian", "cosine"),
    "mask.bandwidth": above(0),
    "mask.normalize": one_of("l2", "center", "standardize"),
}

MAE_RULES = {
    "model.decoder_width": whole(4, 2**14),
    "model.decoder_depth": whole(1, 128),
    "model.decoder_heads": whole(1, 2**14),
    "mask.strategy": one_of("dpp", "random", "block"),
    "mask.ratio": Rule(
        lambda v: is_number(v) and 0 < v < 1, "a number above 0 and below 1 (share masked)"
    ),
    "mask.features": one_of("embedding", "pixels"),
    "loss.target": one_of(*TARGETS),
    "loss.norm_pix": FLAG,
    "loss.hog_window": FLAG,
    "evaluate.loss_images": whole(0),
}

_TEMPERATURE_RULES = {"start": above(0), "end": above(0), "warmup_epochs": whole(0)}

IBOT_RULES = {
    "data.local_views": whole(0, 64),
    "data.local_size": pair(whole(1, 16384), "(height, width) in pixels, such as (96, 96)"),
    "data.local_scale": _SCALE,
    "data.jitter": Rule(
        lambda v: (
            isinstance(v, (tuple, list))
            and len(v) == 4
            and all(is_number(x) and 0 <= x <= 1 for x in v)
            and v[3] <= 0.5
        ),
        "four numbers from 0 to 1 (brightness, contrast, saturation, hue), the last to 0.5",
    ),
    "data.jitter_prob": number(0, 1),
    "data.grey_prob": number(0, 1),
    "data.blur_prob": Rule(
        lambda v: (
            isinstance(v, (tuple, list))
            and len(v) == 3
            and all(is_number(x) and 0 <= x <= 1 for x in v)
        ),
        "three numbers from 0 to 1 (first global view, second, local views)",
    ),
    "data.blur_sigma": pair(
        above_to(0, 2.4), "(smallest, largest) in pixels, above 0 to 2.4", ordered=True
    ),
    "data.solarize_prob": number(0, 1),
    "model.init_std": above(0),
    "model.head_hidden": whole(1, 2**16),
    "model.head_bottleneck": whole(1, 2**16),
    "model.prototypes": whole(2, 2**20),
    "model.shared_head": FLAG,
    "model.norm_last_layer": FLAG,
    "mask.strategy": one_of("dpp", "random", "block", "attention"),
    "mask.ratio": several(fraction_below_1, "a list such as (0.0, 0.7), each from 0 to below 1"),
    "mask.ratio_var": several(fraction_below_1, "a list such as (0.0, 0.05), one a ratio"),
    "mask.prob": above_to(0, 1),
    "mask.start_epoch": number(0),
    "mask.attention": one_of("high", "low", "hint"),
    "mask.features": one_of("tokens", "head", "pixels"),
    "loss.class_weight": number(0),
    "loss.patch_weight": number(0),
    "loss.student_temp": above(0),
    "loss.center_decay": number(0, 1),
    **{
        f"loss.{which}_temp.{name}": rule
        for which in ("class", "patch")
        for name, rule in _TEMPERATURE_RULES.items()
    },
    "optim.freeze_last_layer_epochs": number(0),
    "teacher.ema_decay": number(0, 1),
}

# Fields that count epochs: up to those of the run, and below them. The argument `epochs` of the
# config files scales them.
_EPOCHS = ("optim.warmup_epochs", "optim.freeze_last_layer_epochs")

RULES = {"mae": COMMON_RULES | MAE_RULES, "ibot": COMMON_RULES | IBOT_RULES}

# Of a method's or a task's config: fields that came when such configs were kept already, with what
# had been done before. A config that was kept without one means this value.
_SAVES = {"checkpoint.max_failed_saves": 3, "checkpoint.every_minutes": 0.0}
LATER_FIELDS = {
    "mae": {
        "optim.clip_per_tensor": False,
        "optim.weight_decay_end": None,
        "loss.target": "pixels",
        "loss.hog_window": False,
        "data.classes": "",
        "data.range": "auto",
    }
    | _SAVES,
    "ibot": {
        "data.blur_sigma": (0.1, 2.0),
        "model.init_std": 0.02,
        "data.classes": "",
        "data.range": "auto",
    }
    | _SAVES,
    "finetune": _SAVES,
    "linear": _SAVES,
    "multilabel": {"data.whole": False} | _SAVES,
}

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


def with_later_fields(values: dict[str, Any]) -> dict[str, Any]:
    """A config that was kept, as nested dicts, with the fields of `LATER_FIELDS` that it lacks; so
    is the one that it keeps of the run it started from ("pretrained")."""
    values = {**values}
    kind = values.get("method") or values.get("task")
    later = LATER_FIELDS.get(kind, {}) if isinstance(kind, str) else {}
    for field, value in later.items():
        section, leaf = field.split(".")
        values[section] = {leaf: value} | values.get(section, {})
    if "pretrained" in values:
        start = values["pretrained"]
        values["pretrained"] = {**start, "config": with_later_fields(start["config"])}
    return values


def check(config) -> None:
    """Raises InputError, in one line, for the first field that is wrong or does not fit."""
    if not hasattr(config, "items"):
        raise InputError(f"the config is {shown(config)}; get_config must return a ConfigDict")
    values = flatten(config)
    if "task" in values:
        raise InputError(
            f"config.task={values['task']} is for eval.py, which also goes on training a "
            f"classifier: python eval.py --config=configs/eval.py:task={values['task']} "
            "--checkpoint=RUN; train.py takes configs/mae.py and configs/ibot.py"
        )
    method = values.get("method")
    if not isinstance(method, str) or method not in RULES:
        raise InputError(f"config.method={shown(method)} is not allowed: {' | '.join(RULES)}")
    rules = RULES[method]

    def is_set_to(field, text):
        return isinstance(values.get(field), str) and values[field] == text

    if is_set_to("data.source", ""):
        raise InputError(
            "config.data.source is empty; say where the images are: "
            "--config.data.source=folder:PATH (or shapes, or tfds:NAME)"
        )
    if method == "mae" and is_set_to("mask.strategy", "attention"):
        raise InputError(
            "config.mask.strategy='attention' needs a teacher, which MAE has not; "
            "use dpp | random | block"
        )
    check_fields(values, rules)
    _check_fit(config)


def _check_fit(config) -> None:
    evaluate = config.evaluate
    if 0 < evaluate.knn_images < evaluate.knn_k:
        raise InputError(
            f"config.evaluate.knn_k={evaluate.knn_k} neighbours are more than "
            f"config.evaluate.knn_images={evaluate.knn_images}"
        )
    if config.batch_size % config.optim.accum_steps:
        raise InputError(
            f"config.batch_size={config.batch_size} is not a multiple of "
            f"config.optim.accum_steps={config.optim.accum_steps}"
        )
    num_patches = _num_patches("image_size", config.image_size, config.model.patch_size)
    {"mae": _check_mae, "ibot": _check_ibot}[config.method](config, num_patches)
    values = flatten(config)
    scaled_by = f"configs/{config.method}.py:epochs=N"
    lengths = {field: values[field] for field in _EPOCHS if field in values}
    check_lengths(config.epochs, lengths, below=_EPOCHS[1:], scaled_by=scaled_by)
    start = {"mask.start_epoch": values.get("mask.start_epoch", 0)}
    check_lengths(config.epochs, start, below=start)


def _num_patches(field: str, size, patch_size: int) -> int:
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


def _check_mae(config, num_patches: int) -> None:
    TARGETS[config.loss.target].check(config)
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
    if not config.loss.class_weight and not config.loss.patch_weight:
        raise InputError("config.loss.class_weight and config.loss.patch_weight are both 0")
