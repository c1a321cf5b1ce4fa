"""Checks the config of an evaluation, before any work starts."""

from __future__ import annotations

from dppmask_jax import fields
from dppmask_jax.errors import InputError
from dppmask_jax.fields import (
    Rule,
    above,
    above_to,
    fraction_below_1,
    number,
    one_of,
    optional,
    pair,
    several,
    whole,
)

_SEEDS = several(whole(0), "a list of different whole numbers such as (0, 1, 2)", different=True)
_ALPHA = Rule(
    lambda value: fields.is_number(value) and (value == 0 or 1e-3 <= value <= 1e3),
    "0, or a number from 0.001 to 1000",
)
_PROBABILITY = number(0, 1)

_TASK = {
    "task": fields.TEXT,
    "image_size": optional(pair(whole(1, 16384), "(height, width) in pixels, such as (224, 224)")),
}

_DATA = {
    "model.dtype": one_of("", "float32", "bfloat16"),
    "batch_size": whole(1, 2**20),
    "data.source": Rule(
        lambda value: fields.is_text(value) and (value == "" or fields.SOURCE.holds(value)),
        f"{fields.SOURCE.allowed}; '' for the images of the run",
    ),
    "data.range": fields.GREY_RANGE,
    "data.dir": fields.TEXT,
    "data.val_fraction": fraction_below_1,
    "data.classes": fields.CLASSES,
    "data.workers": whole(0, 256),
    "memory_gb": above(0),
}

_TRAINING = {
    "seeds": _SEEDS,
    "epochs": above(0),
    "log_every": whole(1),
    "data.crop_scale": pair(
        above_to(0, 1), "(smallest, largest) share of the area, within 0 to 1", ordered=True
    ),
    "data.flip": fields.FLAG,
    "data.max_bad_frac": _PROBABILITY,
    "model.pool": one_of("mean", "cls"),
    "loss.kind": one_of("softmax", "bce", "asl"),
    "loss.smoothing": fraction_below_1,
    "loss.gamma_neg": number(0),
    "loss.gamma_pos": number(0),
    "loss.clip": fraction_below_1,
    "optim.base_lr": above(0),
    "optim.final_lr": number(0),
    "optim.warmup_epochs": number(0),
    "optim.weight_decay": number(0),
    "optim.b1": fraction_below_1,
    "optim.accum_steps": whole(1),
    "optim.max_bad_steps": whole(0),
    "checkpoint.every": whole(1),
    "checkpoint.every_minutes": number(0),
    "checkpoint.keep": whole(1),
    "checkpoint.max_failed_saves": whole(1),
    "evaluate.every_epochs": number(0),
}

_FINETUNING = {
    "data.randaugment": number(0, 10),
    "data.erase_prob": _PROBABILITY,
    "data.mixup": _ALPHA,
    "data.cutmix": _ALPHA,
    "model.drop_path": fraction_below_1,
    "model.remat": fields.FLAG,
    "optim.layer_decay": above_to(0, 1),
    "optim.b2": fraction_below_1,
    "optim.epsilon": above(0),
    "optim.clip_norm": number(0),
}

_RIDGE = {"ridge": several(number(0), "a list of strengths such as (1e-4, 1e-2, 1.0)")}

RULES = {
    # No epochs: a classifier as it is.
    "finetune": _TASK | _DATA | _TRAINING | _FINETUNING | {"epochs": number(0)},
    "linear": _TASK | _DATA | _TRAINING | _RIDGE | {"solver": one_of("lars", "ridge")},
    "multilabel": _TASK
    | _DATA
    | _TRAINING
    | {
        "train": one_of("finetune", "linear"),
        "threshold": above(0, 1),
        "data.whole": fields.FLAG,
    },
    "knn": _TASK
    | _DATA
    | {
        "k": several(
            whole(1), "a list of different whole numbers such as (10, 20, 100, 200)", different=True
        ),
        "temperature": above(0),
        "center": fields.FLAG,
    },
    "cluster": _TASK | _DATA | {"seeds": _SEEDS, "num_clusters": whole(0)},
    "backgrounds": _TASK
    | _DATA
    | _RIDGE
    | {
        "seed": whole(0),
        "root": fields.TEXT,
        "classifier": one_of("ridge", "finetune", "linear", "own"),
        "classifier_seed": whole(0),
        "mapping": one_of("same", "imagenet100", "imagenet1k", "wnid"),
    },
    "reconstruct": _TASK
    | {
        "seed": whole(0),
        "images": fields.TEXT,
        "num": whole(1, 64),
        "tau": optional(number(0, 1)),
        "borrow_statistics": fields.FLAG,
    },
}


def check(config) -> None:
    """Raises InputError, in one line, for the first field that is wrong or does not fit."""
    if not hasattr(config, "items"):
        raise InputError(
            f"the config is {fields.shown(config)}; get_config must return a ConfigDict"
        )
    task = config.get("task")
    if not isinstance(task, str) or task not in RULES:
        raise InputError(f"config.task={fields.shown(task)} is not allowed: {' | '.join(RULES)}")
    values = fields.flatten(config)
    allowed = RULES[task]
    if task == "multilabel":  # it says which other fields there are
        fields.check_fields({"train": values.get("train")}, {"train": allowed["train"]})
        if config.train == "finetune":
            allowed = allowed | _FINETUNING
        elif set(values) & set(_FINETUNING):
            raise InputError(
                "config.train=linear has other fields than finetune; write "
                "--config=configs/eval.py:task=multilabel,train=linear"
            )
    fields.check_fields(values, allowed)
    if "epochs" in config:
        _check_training(config)


def _check_training(config) -> None:
    if config.epochs:  # 0: a classifier as it is
        fields.check_lengths(
            config.epochs,
            {"optim.warmup_epochs": config.optim.warmup_epochs},
            scaled_by=f"configs/eval.py:task={config.task},epochs=N",
        )
    several_labels = config.task == "multilabel"
    if (config.loss.kind == "softmax") == several_labels:
        right = "bce | asl" if several_labels else "softmax"
        raise InputError(
            f"config.loss.kind={config.loss.kind!r} does not fit config.task={config.task}: {right}"
        )
    if several_labels and config.loss.smoothing:
        raise InputError(
            f"config.loss.smoothing={config.loss.smoothing:g} is for one label an image; set it "
            "to 0"
        )
