"""sweep.json: what a sweep is, and which of its points are finished."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dppmask_jax import config_table, fields
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import records as evaluated
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs import history, workdir
from dppmask_jax.sweeps.grid import Point
from dppmask_jax.training import resuming

FREE = "carried out"  # may change while a sweep goes on: the numbers stay the same


def new(config, eval_config, points, folder, command) -> dict[str, Any]:
    """A record without any finished point."""
    values: dict[str, list] = {field: [] for field in points[0].values}
    for point in points:
        for field, value in point.values.items():
            if value not in values[field]:
                values[field].append(value)
    return {
        "name": folder.resolve().name,
        "grid": values,
        "config": workdir.to_json(config),
        "eval": workdir.to_json(eval_config),
        "points": [],
        "command": command,
    }


def read(path: Path) -> dict[str, Any] | None:
    """What was written so far; None where the folder is empty or missing.

    Raises:
      InputError: the folder is something else than that of a sweep.
    """
    folder = path.parent
    workdir.check_folder(folder)
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"--workdir={folder} is not empty and holds no sweep.json; name another folder"
            )
        return None
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("grid", "config", "eval", "points")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); move the folder away to start again"
        ) from error


def finished(old, new, points, eval_config, folder) -> dict[str, dict]:
    """The records of the points whose evaluation is there, by name.

    Raises:
      InputError: the folder holds another sweep.
    """
    if old is None:
        return {}
    foreign = []
    if list(old["grid"]) != list(new["grid"]):
        foreign = [f"grid: {', '.join(old['grid'])} -> {', '.join(new['grid'])}"]
    foreign += _changes(old["config"], new["config"], "", new["grid"])
    foreign += _changes(old["eval"], new["eval"], "eval.", ("seeds",))
    if foreign:
        raise InputError(
            f"--workdir={folder} holds another sweep ({'; '.join(foreign)}); name another folder, "
            "or go back to that one"
        )
    recorded = {record["name"]: record for record in old["points"]}
    return {
        point.name: recorded[point.name]
        for point in points
        if point.name in recorded and _is_done(recorded[point.name], point, eval_config, folder)
    }


def _is_done(record, point: Point, eval_config, folder: Path) -> bool:
    path = folder / point.name / evaluated.result_name(eval_config)
    wanted = subjects.completed(eval_config, point.config)
    found = record["evaluation"]
    return (
        path.exists()
        and json.loads(path.read_text()) == found
        and not _changes(found["checkpoint"]["config"], workdir.to_json(point.config))
        and not _changes(found["config"], workdir.to_json(wanted))
    )


def _changes(old, new, prefix: str = "", free: Collection[str] = ()) -> list[str]:
    """How a kept config differs from the new one, both as JSON; fields that may change are free."""
    known = config_table.fields_of(new)
    old = fields.with_later(old, known)
    changed, _ = resuming.differences(old, new, {*fields.free(known, FREE), *free})
    return [f"{prefix}{history.words(field, *values)}" for field, values in changed.items()]
