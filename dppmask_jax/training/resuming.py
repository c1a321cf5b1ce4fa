"""Where a training starts in its folder, and whether its config may go on there.

The settings in config.json are those that every step so far was made with. What no step depends on
may change; all else is refused, or accepted and written into the run's history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, flatten, with_later
from dppmask_jax.runs import checkpoint, history, metrics, workdir
from dppmask_jax.words import count

# Fields that say where the images are. They may change as long as the images are the same ones.
PLACES = frozenset({"data.classes", "data.dir", "data.source", "data.val_fraction"})
_IMAGES = "data_identity"  # in config.json and in `meta`, beside the config


class Start(NamedTuple):
    """Where a training starts.

    `step` is that of the checkpoint to go on from, where one is `restored`; `damaged` are the
    steps of newer ones, and `config` is what its steps were made with. `record` is what config.json
    and the checkpoints say beside the config: "data_identity", see `identity`, and "history",
    see `history`. `notes` are lines on what changed.
    """

    step: int = 0
    restored: bool = False
    damaged: tuple[int, ...] = ()
    config: Any = None
    record: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()


class Terms(NamedTuple):
    """What may change in a run that goes on.

    Attributes:
      known: the fields of the config. What the run's lacks came later, see `fields.with_later`.
      free: fields that may, see `fields.free`. Changes of "measured" fields go into the history.
      free_of_start: those of the run that a fine-tuning started from.
      fixed: whether a field may never change, `allow` or not.
      schedules: None, or config -> {name: function of the step}, all that the length of the run
        changes: `epochs` may grow where they were the same at every step so far.
      allow: whether all other fields may change; the changes go into the history.
      total_steps: of the config; a run that changes by `allow` must have steps left.
      ways: how to go on, for messages.
      refuse: called first with the config of the steps so far; may raise InputError.
    """

    known: Mapping[str, Field] = MappingProxyType({})
    free: Mapping[str, str] = MappingProxyType({})
    free_of_start: Collection[str] = ()
    fixed: Callable[[str], bool] = lambda field: True
    schedules: Callable[[Any], Mapping[str, Callable]] | None = None
    allow: bool = False
    total_steps: int = 0
    ways: str = ""
    refuse: Callable[[Any], Any] = lambda kept: None


def start_in(folder: Path, config, images: Callable[[], dict], terms: Terms) -> Start:
    """Where a config starts in a folder; looked at by the main process, for all of them.

    Args:
      images: () -> `identity.of_splits` of the data.

    Returns:
      The start; in other processes than the main one with `step` and `restored` alone.

    Raises:
      InputError: in every process; see `workdir.check_folder`, or the folder holds a damaged
        metrics.jsonl, a run whose checkpoints are gone or damaged, or one that was made with
        another config than `terms` let go on. Nothing was changed.
    """
    found = []

    def look() -> int:
        found.append(_start(folder, config, images(), terms))
        return found[0].step + 1 if found[0].restored else 0

    number = parallel.decided_by_main(look)
    return found[0] if found else Start(max(number - 1, 0), number > 0)


def _start(folder: Path, config, images: dict, terms: Terms) -> Start:
    workdir.check_folder(folder)
    newest = checkpoint.newest(folder)
    records = metrics.read_metrics(folder / "metrics.jsonl")
    record = {_IMAGES: images}
    if newest is None:
        workdir.check_begins(folder, records)
        return Start(record=record)
    if "history" in newest.meta:
        record["history"] = newest.meta["history"]
    old = workdir.from_json(with_later(newest.meta["config"], terms.known))
    terms.refuse(old)
    changed, moved = differences(
        {**workdir.to_json(old), _IMAGES: newest.meta.get(_IMAGES)},
        {**workdir.to_json(config), _IMAGES: images},
        terms.free,
        terms.free_of_start,
    )
    foreign = {field: values for field, values in changed.items() if terms.fixed(field)}
    if foreign:
        raise InputError(
            f"--workdir={folder} holds checkpoints of another run ({_words(foreign)}); "
            "name another folder, or go back to that config"
        )
    start = Start(newest.step, True, tuple(newest.damaged), old)
    if not newest.step:  # nothing was trained yet: an import
        return start._replace(record=record)
    notes = [f"the same images: {_words(moved)}"] if moved else []
    measured = _other_measures(old, config, terms.free)
    if newest.step >= terms.total_steps:  # nothing will be measured
        measured = {}
    if measured:
        notes.append(f"{_words(measured)}; earlier measures are not comparable")
    if changed.keys() == {"epochs"} and terms.schedules:
        problem = _problem_of_epochs(config, changed["epochs"], newest.step, terms.schedules)
        if not problem:
            notes.append(f"{_words(changed)}; every step so far would have been the same")
            changed = {}
    else:
        problem = ""
    if changed:
        what = _words(changed) + (f", and {problem}" if problem else "")
        _check_allowed(what, newest.step, folder, terms)
    if changed or measured:
        entry = {"step": newest.step, "changed": changed | measured}
        record["history"] = [*record.get("history", []), entry]
    return start._replace(record=json.loads(json.dumps(record)), notes=tuple(notes))


def _other_measures(old, config, free) -> dict:
    """{field: (old, new)} of the changes after which measures mean something else."""
    old, new = flatten(old), flatten(config)
    return {
        field: (old.get(field), new.get(field))
        for field in sorted(free)
        if free[field] == "measured" and old.get(field) != new.get(field)
    }


def _check_allowed(what: str, step: int, folder: Path, terms: Terms) -> None:
    if not terms.allow:
        raise InputError(
            f"--workdir={folder} holds {count(step, 'step')} made with another config ({what}); "
            + terms.ways
        )
    if step >= terms.total_steps:
        raise InputError(
            f"--workdir={folder} holds {count(step, 'step')}, and this config has "
            f"{terms.total_steps:,} ({what}): none is left to make with it; raise config.epochs"
        )


def differences(
    old: Mapping, new: Mapping, free: Collection[str], free_of_start: Collection[str] = ()
) -> tuple[dict, dict]:
    """How two configs differ.

    Args:
      old, new: nested, as JSON, with "data_identity" where the images are known.
      free: fields that are left out, and `free_of_start` in the run that a fine-tuning started
        from.

    Returns:
      ({field: (old, new)}, the same of where the images are, if they are the same). Images that
      differ are the field "data".
    """
    old, new = {**old}, {**new}
    there, here = old.pop(_IMAGES, None), new.pop(_IMAGES, None)
    begun = old.pop("pretrained", None), new.pop("pretrained", None)
    old, new = flatten(old), flatten(new)
    changed = {
        field: (old.get(field), new.get(field))
        for field in sorted(old.keys() | new.keys())
        if field not in free and old.get(field) != new.get(field)
    }
    moved = {}
    if there and there == here:
        moved = {field: changed.pop(field) for field in PLACES & changed.keys()}
    elif there and here:
        changed["data"] = (there, here)
    if all(begun):
        changed |= _other_encoder(*begun, free_of_start)
    return changed, moved


def _other_encoder(old: Mapping, new: Mapping, free: Collection[str]) -> dict:
    """How the runs differ that two fine-tunings started from, as `differences`."""
    configs = [
        {**workdir.to_json(workdir.from_json(run["config"])), _IMAGES: run.get(_IMAGES)}
        for run in (old, new)
    ]
    changed, _ = differences(*configs, free)
    changed = {f"config.{field}": values for field, values in changed.items()}
    for name in ("step", "history", "projection"):
        if old.get(name) != new.get(name):
            changed[name] = (old.get(name), new.get(name))
    return {f"pretrained.{field}": values for field, values in changed.items()}


def _words(changed: Mapping) -> str:
    return "; ".join(history.words(field, *values) for field, values in changed.items())


def _problem_of_epochs(config, epochs, step: int, schedules) -> str:
    """What another length of the run would have changed before `step`; "" where nothing."""
    old, new = epochs
    if new < old:
        return "shorter runs have other schedules"
    before = config.copy_and_resolve_references()
    before.epochs = old
    steps = np.arange(step)
    then, now = (
        {name: np.asarray(jax.vmap(schedule)(steps)) for name, schedule in schedules(run).items()}
        for run in (before, config)
    )
    for name in then:
        other = np.flatnonzero(then[name] != now[name])
        if other.size:
            at = other[0]
            return f"the {name} of step {at:,} was {then[name][at]:.6g}, not {now[name][at]:.6g}"
    return ""
