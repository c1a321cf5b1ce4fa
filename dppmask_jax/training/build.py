"""The plan of a run and its method, with its optimisers, from a config of pre-training."""

from __future__ import annotations

from collections.abc import Callable

from dppmask_jax import optim
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, above, number, whole
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Method, Plan

FIELDS = {
    "batch_size": Field(256, whole(1, 2**20), "images in an optimiser step, over all devices"),
    "epochs": Field(100.0, above(0), "times that all training images are seen"),
    "evaluate.every_epochs": Field(
        10.0,
        number(0),
        "epochs between measures, at the start and the end too; 0 is off",
        free="spaced",
    ),
}


def plan_from(config, num_images: int) -> Plan:
    """Steps of a run: an epoch is as many whole batches as the images fill, at least one.

    `optim.warmup_epochs` and `optim.base_lr` count as 0 where a method has other fields.

    Raises:
      InputError: the steps are too many to be counted in an int32.
    """
    steps_per_epoch = max(1, num_images // config.batch_size)

    def steps(epochs):
        return max(1, round(epochs * steps_per_epoch))

    total = steps(config.epochs)
    if total >= 2**31 - 1:
        raise InputError(
            f"config.epochs={config.epochs:g} of {steps_per_epoch} steps are {total:.3g} steps in "
            "all, more than 2147483646; lower it"
        )
    warmup = config.optim.get("warmup_epochs", 0.0)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=min(round(warmup * steps_per_epoch), total - 1),
        evaluate_every=config.evaluate.every_epochs and steps(config.evaluate.every_epochs),
        peak_lr=optim.scaled_learning_rate(config.optim.get("base_lr", 0.0), config.batch_size),
    )


def method_from(config, plan: Plan) -> Method:
    """The method of a checked config of pre-training."""
    return METHODS[config.method].build(config, plan)


def schedules(config, num_images: int) -> dict[str, Callable]:
    """{name: function of the step}: all that depends on the length of the run."""
    method = method_from(config, plan_from(config, num_images))
    found = {}
    for turn in method.turns:
        ending = f" of the {turn.name}" if turn.name else ""
        found[f"learning rate{ending}"] = turn.optimizer.learning_rate
        found[f"weight decay{ending}"] = turn.optimizer.weight_decay
    return found | method.schedules
