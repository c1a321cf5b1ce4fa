"""The config of an evaluation: its fields are collected from the tasks, when asked."""

from __future__ import annotations

from ml_collections import config_dict

from dppmask_jax import config_dicts, fields
from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field
from dppmask_jax.tasks import TASKS


def fields_of(task: str, train: str = "") -> dict[str, Field]:
    """The fields of a task's config by their full names, in the order in which they are shown.

    Args:
      train: what is trained; only read where the fields of the task depend on it.
    """
    kind = TASKS[task]
    return {
        "task": Field(task, TEXT, "what is evaluated"),
        **kind.by_train.get(train, kind.fields),
    }


def defaults(task: str, train: str = "") -> config_dict.ConfigDict:
    """A task's config with every field at its default; arguments as for `fields_of`."""
    return config_dicts.built(fields_of(task, train))


def shorten(config, epochs: float) -> None:
    """As `config_dicts.shorten`."""
    config_dicts.shorten(config, epochs, fields_of(config.task, config.get("train", "")))


def fields_for(config) -> dict[str, Field]:
    """`fields_of` the task of a config.

    Raises:
      InputError: it is no config, or its task is unknown.
    """
    if not hasattr(config, "items"):
        raise InputError(
            f"the config is {fields.shown(config)}; get_config must return a ConfigDict"
        )
    if "method" in config and "task" not in config:
        raise InputError(
            f"config.method={fields.shown(config['method'])} is for train; an evaluation takes "
            "--config=eval:task=TASK"
        )
    task = config.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"config.task={fields.shown(task)} is not allowed: {' | '.join(TASKS)}")
    if not TASKS[task].by_train:
        return fields_of(task)
    # config.train says which other fields there are.
    fields.check_fields({"train": config.get("train")}, {"train": fields_of(task)["train"]})
    return fields_of(task, config["train"])


def check(config) -> None:
    """Raises InputError, in one line, for the first field that is wrong or does not fit."""
    allowed = fields_for(config)
    values, task = fields.flatten(config), config.task
    _check_train(task, values)
    fields.check_fields(values, allowed)
    if values.get("epochs"):  # 0: a classifier as it is
        fields.check_lengths(
            config.epochs,
            {name: values[name] for name, field in allowed.items() if field.in_epochs},
            scaled_by=f"eval:task={task},epochs=N",
        )
    TASKS[task].check_fields(config)
    if config.projection and (because := TASKS[task].unprojected(config)):
        raise InputError(
            f"config.projection={fields.shown(config.projection)} does nothing for task {task}: "
            f"{because}; leave it out"
        )


def _check_train(task: str, values) -> None:
    """Raises InputError where a config has the fields of another training than its own."""
    for other in TASKS[task].by_train:
        foreign = set(values) & (fields_of(task, other).keys() - fields_of(task, values["train"]))
        if foreign:
            raise InputError(
                f"config.train={values['train']} has other fields than {other}; write "
                f"--config=eval:task={task},train={values['train']}"
            )
