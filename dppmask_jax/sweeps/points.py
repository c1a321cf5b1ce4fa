"""Points that are pre-trained and evaluated: checked together before the first trains, then run one
by one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import config as training_config
from dppmask_jax import evaluate, fields, parallel, pretrain
from dppmask_jax.data.sources import identity
from dppmask_jax.errors import InputError
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evaluating import records as evaluated
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs import metrics, workdir
from dppmask_jax.runs.run import open_data
from dppmask_jax.sweeps import records
from dppmask_jax.sweeps.grid import Point
from dppmask_jax.tasks import TASKS, checks
from dppmask_jax.training import resuming

# Fields of metrics.jsonl that are no results.
_NOT_RESULTS = ("step", "lr", "grad_norm", "images_per_sec", "data_wait_frac", "bad_steps")


class Naming:
    """Puts in front of an InputError what it is about."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self._what}: {error}") from error


def check_evaluations(evaluations: Mapping[str, Any]) -> dict[str, Any]:
    """{name of its records: config} of evaluations that are given by what messages call them.

    Raises:
      InputError: one is wrong, cannot be run on what is yet to be trained, or would write the
        records of another.
    """
    found: dict[str, Any] = {}
    called: dict[str, str] = {}
    for words, config in evaluations.items():
        with Naming(words):
            checks.check(config)
            if because := TASKS[config.task].unswept(config):
                raise InputError(because)
            if config.projection:
                raise InputError(
                    "config.projection belongs to one encoder, and others are trained here; leave "
                    "it out"
                )
            name = evaluated.name_of(config)
            if name in found:
                raise InputError(
                    f"{evaluated.result_name(config)} is written by {called[name]} already; leave "
                    "one of the two out"
                )
            found[name], called[name] = config, words
    return found


def check_config(config, words: str) -> None:
    """Raises InputError where the config of a point is wrong."""
    with Naming(words):
        training_config.check(config)
        parallel.check_batch(config.batch_size, config.optim.accum_steps, "config.batch_size")


def check_data(
    points: Sequence[Point],
    eval_config,
    folder: Path,
    words: str,
    say: Callable[[str], None] = subjects.say,
) -> dict[str, str]:
    """Opens the data of points, which would otherwise be found missing after hours, and has the
    task look at it.

    Args:
      words: what messages call the evaluation.

    Returns:
      {name of a point: identity of the images that the evaluation of it reads}.
    """
    opened, checked, images = {}, {}, {}
    for point in points:
        completed = subjects.completed(eval_config, point.config)
        asked = [workdir.to_json(config)["data"] for config in (point.config, completed)]
        mask = point.config.get("mask", {})
        asked = json.dumps([*asked, mask.get("path", ""), mask.get("parts", "")])
        of_encoder = json.dumps([asked, workdir.to_json(completed)])
        if of_encoder in checked:
            images[point.name] = checked[of_encoder]
            continue
        if asked not in opened:
            open_data(point.config)
            with Naming(words):
                opened[asked] = open_data(completed)
        with Naming(words):
            evaluation = Evaluation(completed, None, folder, *opened[asked], say)
            TASKS[completed.task].check(evaluation)
        images[point.name] = checked[of_encoder] = evaluated.images_of(evaluation)
    return images


def check_folders(points: Sequence[Point], folder: Path) -> None:
    """Raises InputError where the folder of a point holds another run."""
    for point in points:
        if (folder / point.name).exists():
            images = functools.partial(_images, point.config)
            known = training_config.fields_of(point.config.method)
            terms = resuming.Terms(known, fields.free(known, records.FREE))
            resuming.start_in(folder / point.name, point.config, images, terms)


def _images(config) -> dict[str, Any]:
    return identity.of_splits(*open_data(config))


def run(
    point: Point, evaluations: Mapping[str, Any], done: Mapping, folder: Path, command: str
) -> dict[str, Any]:
    """{name: record} of all evaluations of a point, which is trained as far as it is not; those
    that are done are not run again. Empty in other processes than the main one."""
    pretrain.train(point.config, folder)
    found = {}
    for name, config in evaluations.items():
        if name in done:
            found[name] = done[name]
            continue
        path = evaluate.evaluate(config, folder, command=command)
        if parallel.is_main():
            found[name] = json.loads(path.read_text())
    return found


def pretraining(folder: Path) -> dict[str, Any]:
    """The last value of each metric of the run in a folder."""
    last = {}
    for logged in metrics.read_metrics(folder / "metrics.jsonl"):
        last |= {name: value for name, value in logged.items() if value is not None}
    return {name: last[name] for name in last if name not in _NOT_RESULTS}
