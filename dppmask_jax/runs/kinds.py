"""What a run is, by its config, and the method that made it."""

from __future__ import annotations

from typing import Any

from dppmask_jax.methods import METHODS, frozen
from dppmask_jax.methods.base import Method, Plan

CLASSIFIER = "classifier"
ENCODER = frozen.NAME
encoder_config = frozen.encoder_config


def kind_of(config) -> str | None:
    """What a run with this config is: a method of pre-training, ENCODER for an encoder alone,
    CLASSIFIER for a fine-tuning, None for what is no run."""
    if config.get("method") in METHODS or config.get("method") == ENCODER:
        return config.method
    task = config.get("task")
    fine_tunes = task == "finetune" or (task == "multilabel" and config.get("train") == "finetune")
    return CLASSIFIER if fine_tunes else None


def method_of(config, step: int = 1) -> Method:
    """The pre-training method of a run, or what stands for it where it is an encoder alone; nobody
    trains it here."""
    if config.method == ENCODER:
        return frozen.build(config)
    return METHODS[config.method].build(config, Plan(1, max(step, 1)))


def encoder_options(config) -> dict[str, Any]:
    """What `encoders.build` needs beside the config of a run to make its encoder again."""
    if kind_of(config) == CLASSIFIER:
        return dict(config.model.get("options", {}))
    return dict(method_of(config).encoder.options)
