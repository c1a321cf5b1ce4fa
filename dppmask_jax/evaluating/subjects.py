"""What is evaluated: checkpoints, without a projection or with one, and the images for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import config_table, fields, parallel, paths
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.models import encoders
from dppmask_jax.runs import comparable
from dppmask_jax.runs.image_sizes import checked_image_size
from dppmask_jax.runs.kinds import encoder_options
from dppmask_jax.runs.run import Run, load_run, open_data
from dppmask_jax.tasks import TASKS


class Subject(NamedTuple):
    """A checkpoint that is evaluated.

    `config` is the task's, with the projection of this subject alone; `folder` receives the result;
    `name` tells the run from the others, and `which` says whether it is projected, "" where no
    subject is.
    """

    config: Any
    checkpoint: Path
    folder: Path
    name: str
    which: str = ""

    @property
    def label(self) -> str:
        """Tells the subject from the others."""
        return f"{self.name}, {self.which}" if self.which else self.name

    def with_config(self, config) -> Subject:
        """The same checkpoint under another config, which has the projection or none."""
        return self._replace(config=with_fields(config, projection=self.config.projection))


class Loaded(NamedTuple):
    """What all evaluations of a subject share; a split is None where there is none."""

    run: Run
    train: Source | None
    val: Source | None


def subjects(config, checkpoints: Sequence[Path], folders: Sequence[Path]) -> list[Subject]:
    """One for each checkpoint; with `config.projection` two, without and with.

    Raises:
      InputError: there are neither one projection nor as many as checkpoints.
    """
    names = comparable.labels(checkpoints)
    given = paths.split(config.projection)
    if not given:
        return [Subject(config, *of) for of in zip(checkpoints, folders, names, strict=True)]
    if len(given) not in (1, len(checkpoints)):
        raise InputError(
            f"config.projection names {len(given)} files for {len(checkpoints)} checkpoints; name "
            "one for all, or one each"
        )
    given = given * (len(checkpoints) // len(given))
    found = []
    for path, *of in zip(given, checkpoints, folders, names, strict=True):
        for projection, which in (("", "without projection"), (path, "with projection")):
            found.append(Subject(with_fields(config, projection=projection), *of, which))
    return found


def with_fields(config, **values):
    """A copy of a config with other values of some of its fields."""
    chosen = config.copy_and_resolve_references()
    with chosen.unlocked():
        chosen.update(values)
    return chosen


def opened(subject: Subject) -> Evaluation:
    """An evaluation that can run.

    Raises:
      InputError: the checkpoint, the data or a training in the folder does not fit the config.
    """
    evaluation = evaluation_of(subject, loaded(subject))
    TASKS[evaluation.config.task].check(evaluation)
    return evaluation


def loaded(subject: Subject) -> Loaded:
    """The newest checkpoint of a subject, and the images.

    Raises:
      InputError: they cannot be read, or do not fit the config.
    """
    config = subject.config
    run = load_run(
        subject.checkpoint,
        image_size=config.image_size,
        dtype=config.get("model", {}).get("dtype") or None,
        projection=config.projection or None,
    )
    run.check_encodes()
    config = completed(config, run.config)
    if "data" in config and not config.data.source:
        raise InputError(
            "config.data.source is empty, and the checkpoint does not know what it was trained on; "
            "say where the images are: --config.data.source=folder:PATH (or tfds:NAME, …)"
        )
    return Loaded(run, *(open_data(config) if "data" in config else (None, None)))


def evaluation_of(subject: Subject, shared: Loaded) -> Evaluation:
    """The evaluation of a subject, not yet checked."""
    config = completed(subject.config, shared.run.config)
    return Evaluation(
        config,
        shared.run,
        subject.folder,
        shared.train,
        shared.val,
        say,
        config_table.fields_of(config),
        free_of(shared.run.config, *fields.FREE),
    )


def free_of(config, *groups: str) -> dict[str, str]:
    """`fields.free` of the config of a pre-training or an evaluation, also as JSON."""
    return fields.free(config_table.fields_of(config), *groups)


def completed(config, run_config):
    """The config of an evaluation with what it leaves to the run filled in."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.image_size = checked_image_size(
            config.image_size or tuple(run_config.image_size), run_config.model.patch_size
        )
        if "model" in config:
            config.model.options = encoder_options(run_config)
            encoders.copy_shape(config.model, run_config.model)
            config.model.dtype = config.model.dtype or run_config.model.dtype
        if "data" in config:
            _take_pixels(config.data, run_config)
        if "data" in config and not config.data.source:
            data = run_config.data
            config.data.source, config.data.val_fraction = data.source, data.val_fraction
            config.data.axis = data.get("axis", config.data.axis)
            if config.data.range == "auto":
                config.data.range = data.range
            config.data.dir = config.data.dir or data.dir
            config.data.classes = config.data.classes or data.classes
    return config


def _take_pixels(data, run_config) -> None:
    """Sets the fields of pixels that belong to the encoder to those of the run.

    Raises:
      InputError: one is given, and is another.
    """
    for name in ("channels", "mean", "std"):
        of_run = run_config.get("data", {}).get(name)
        if data[name] is not None and data[name] != of_run:
            raise InputError(
                f"config.data.{name}={fields.shown(data[name])} is not that of the run, "
                f"{fields.shown(of_run)}, which its encoder takes: leave it out"
            )
        data[name] = of_run
    data.shown = data.shown or run_config.get("data", {}).get("shown")


def say(line: str) -> None:
    """Prints a line, in the main process alone."""
    if parallel.is_main():
        print(line, flush=True)
