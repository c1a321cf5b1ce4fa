"""Which numbers of several runs cannot be compared, and why, from their configs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dppmask_jax.errors import InputError
from dppmask_jax.fields import flatten
from dppmask_jax.masking import MASKERS
from dppmask_jax.methods import METHODS
from dppmask_jax.runs import workdir

_DATA = (
    "data.source", "data.range", "data.channels", "data.axis", "data.classes", "data.val_fraction",
    "image_size",
)  # fmt: skip
_OF_LOSS = (
    "method", "mask.", "loss.", "model.patch_size", "model.prototypes", "data.mean", "data.std",
    *_DATA,
)  # fmt: skip
_NAMED = 4  # fields that a line lists
_OF_KNN = ("evaluate.knn_", *_DATA)


def warnings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each kind of number, losses or k-NN accuracies, that these runs cannot compare.

    Args:
      configs: of pre-training runs, as in config.json.
    """
    flat = [flatten(config) for config in configs]
    lines = []
    if differ := _differences(flat, _of_loss):
        what = "under different masks " * all(line.startswith(("mask.", "and ")) for line in differ)
        lines.append(f"losses {what}are not comparable: {', '.join(differ)}")
    if differ := _differences(flat, lambda config: _OF_KNN):
        lines.append(f"k-NN accuracies are not comparable: {', '.join(differ)}")
    return lines


def is_read(field: str, config: dict[str, Any]) -> bool:
    """Whether a run depends on a field of its config; False for fields of other maskers.

    A masker that is not known here may read any field.
    """
    if field == "mask.defined_in":  # the same masks may lie elsewhere
        return False
    strategy = config.get("mask.strategy")
    if strategy not in MASKERS:
        return True
    if field == "mask.features":
        mask = {name.removeprefix("mask."): value for name, value in config.items()}
        return "features" in MASKERS[strategy].build(SimpleNamespace(**mask)).needs
    of_maskers = {name for kind in MASKERS.values() for name in kind.fields}
    return field in MASKERS[strategy].fields or field not in of_maskers


def _of_loss(config: dict[str, Any]) -> tuple[str, ...]:
    """How the names of the fields begin that decide what a run's loss measures; of a method that
    is not known here, those of all methods."""
    kind = METHODS.get(config.get("method"))
    return (*_OF_LOSS, *(kind.loss_fields if kind else ()))


def _differences(configs: list[dict[str, Any]], prefixes: Callable) -> list[str]:
    """Texts "field a | b", one for each field that differs between the runs that read it.

    Args:
      prefixes: config -> how the names of the fields begin that are looked at in it.
    """
    differ = []
    for field in sorted(set().union(*configs)):
        values = [
            str(config[field])
            for config in configs
            if field in config and field.startswith(prefixes(config)) and is_read(field, config)
        ]
        if len(set(values)) > 1:
            differ.append(f"{field} {' | '.join(dict.fromkeys(values))}")
    return differ[:_NAMED] + [f"and {len(differ) - _NAMED} more"] * (len(differ) > _NAMED)


def warnings_of(runs: Sequence[Path]) -> list[str]:
    """What to know before comparing the curves of some runs, see `warnings`."""
    found = [run / "config.json" for run in runs]
    lines = [f"not known whether {path.parent} can be compared: it has no {path.name}"
             for path in found if not path.is_file()]  # fmt: skip
    configs = []
    for path in filter(Path.is_file, found):
        try:
            configs.append(workdir.completed(dict(json.loads(path.read_text()))))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
    return lines + warnings(configs)


def labels(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; equal paths are numbered."""
    parts = [Path(os.path.abspath(run)).parts[1:] for run in runs]  # without ".."
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{run.name} ({number})" for number, run in enumerate(runs, 1)]
