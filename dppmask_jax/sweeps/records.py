"""sweep.json: what a sweep is, and which of its points are finished."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
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


def new(config, evaluations, points, folder, command) -> dict[str, Any]:
    """A record without any finished point.

    Args:
      evaluations: {name of its records, see `evaluating.records.name_of`: config}; the first stands
        for a point.
    """
    values: dict[str, list] = {field: [] for field in points[0].values}
    for point in points:
        for field, value in point.values.items():
            if value not in values[field]:
                values[field].append(value)
    (_, first), *beside = evaluations.items()
    further = {name: workdir.to_json(of_one) for name, of_one in beside}
    return {
        "name": folder.resolve().name,
        "grid": values,
        "config": workdir.to_json(config),
        "eval": workdir.to_json(first),
        **({"eval_beside": further} if further else {}),
        "points": [],
        "command": command,
    }


def of_evaluations(found: Mapping[str, dict]) -> dict[str, Any]:
    """What a point has of its evaluations: the first, and those beside it where there are some."""
    (_, first), *beside = found.items()
    return {"evaluation": first, **({"beside": dict(beside)} if beside else {})}


def evaluations_of(point: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of the evaluations of a point, the first that which stands for it."""
    return [point["evaluation"], *point.get("beside", {}).values()]


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
        kept = {key: record[key] for key in ("grid", "config", "eval", "points")}
        return kept | {"eval_beside": record.get("eval_beside", {})}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); move the folder away to start again"
        ) from error


def done(old, new, points, evaluations, folder) -> dict[str, dict[str, dict]]:
    """{point: {evaluation: its record}}, by their names, of the evaluations that are there.

    Raises:
      InputError: the folder holds another sweep.
    """
    found: dict[str, dict[str, dict]] = {point.name: {} for point in points}
    if old is None:
        return found
    foreign = []
    if list(old["grid"]) != list(new["grid"]):
        foreign = [f"grid: {', '.join(old['grid'])} -> {', '.join(new['grid'])}"]
    foreign += _changes(old["config"], new["config"], "", new["grid"])
    foreign += _changes(old["eval"], new["eval"], "eval.", ("seeds",))
    further = new.get("eval_beside", {})
    for name, config in old["eval_beside"].items():
        if name not in further:
            foreign.append(f"the evaluation {name} -> none")
        else:
            foreign += _changes(config, further[name], f"{name}.", ("seeds",))
    if foreign:
        raise InputError(
            f"--workdir={folder} holds another sweep ({'; '.join(foreign)}); name another folder, "
            "or go back to that one"
        )
    recorded = {record["name"]: record for record in old["points"]}
    for point in points:
        if point.name in recorded:
            record = recorded[point.name]
            there = {next(iter(evaluations)): record["evaluation"], **record.get("beside", {})}
            found[point.name] = {
                name: there[name]
                for name, config in evaluations.items()
                if name in there and _is_done(there[name], point, config, folder)
            }
    return found


def finished(old, done, evaluations) -> dict[str, dict]:
    """The records of the points all of whose evaluations are done, by name."""
    if old is None:
        return {}
    return {
        record["name"]: record | of_evaluations(done[record["name"]])
        for record in old["points"]
        if list(done.get(record["name"], ())) == list(evaluations)
    }


def _is_done(found, point: Point, eval_config, folder: Path) -> bool:
    path = folder / point.name / evaluated.result_name(eval_config)
    wanted = subjects.completed(eval_config, point.config)
    return (
        path.exists()
        and json.loads(path.read_text()) == found
        and all((path.parent / name).is_file() for name in found["files"])
        and not _changes(found["checkpoint"]["config"], workdir.to_json(point.config))
        and not _changes(found["config"], workdir.to_json(wanted))
    )


def _changes(old, new, prefix: str = "", free: Collection[str] = ()) -> list[str]:
    """How a kept config differs from the new one, both as JSON; fields that may change are free."""
    known = config_table.fields_of(new)
    old = fields.with_later(old, known)
    changed, _ = resuming.differences(old, new, {*fields.free(known, FREE), *free})
    return [f"{prefix}{history.words(field, *values)}" for field, values in changed.items()]
