"""What a run is, by its config, and the method that made it."""

from __future__ import annotations

from typing import Any

from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Method, Plan

CLASSIFIER = "classifier"


def kind_of(config) -> str | None:
    """What a run with this config is: a method of pre-training, CLASSIFIER for a fine-tuning, None
    for what is no run."""
    if config.get("method") in METHODS:
        return config.method
    task = config.get("task")
    fine_tunes = task == "finetune" or (task == "multilabel" and config.get("train") == "finetune")
    return CLASSIFIER if fine_tunes else None


def method_of(config, step: int = 1) -> Method:
    """The pre-training method of a run; nobody trains it here."""
    return METHODS[config.method].build(config, Plan(1, max(step, 1)))


def encoder_options(config) -> dict[str, Any]:
    """What `encoders.build` needs beside the config of a run to make its encoder again."""
    if kind_of(config) == CLASSIFIER:
        return dict(config.model.get("options", {}))
    return dict(method_of(config).encoder.options)
