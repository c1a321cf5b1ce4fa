"""Records of evaluations and sweeps: read, and kept without the paths of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.results.portable import portable
from dppmask_jax.tasks import TASKS


def load(path: str | Path) -> dict[str, Any]:
    """The record of an eval_TASK.json or sweep.json, made portable.

    Raises:
      InputError: the file is missing, or something else.
    """
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    wanted = {"task", "protocol", "metrics", "checkpoint", "config", "command"}
    try:
        found = evaluations_of(record)
        known = all(wanted <= evaluation.keys() for evaluation in found)
        tasks = {evaluation["config"]["task"] for evaluation in found if known}
    except (AttributeError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{path} is no result; name an eval_TASK.json or a sweep.json")
    if unknown := tasks - TASKS.keys():
        raise InputError(f"{path} is of task {min(unknown)}; known are {', '.join(TASKS)}")
    return portable(record)


def keep(records: Sequence[dict[str, Any]], folder: str | Path) -> list[Path]:
    """Writes records of `load` into a folder, as TASK_RUN.json or sweep_NAME.json.

    Returns:
      The paths, in the order of the records.

    Raises:
      InputError: two different records would have the same name; nothing was written.
    """
    files: dict[Path, str] = {}
    paths = []
    for record in records:
        path = Path(folder) / _file_name(record)
        text = json.dumps(record, indent=2) + "\n"
        if files.setdefault(path, text) != text:
            raise InputError(
                f"--keep: two results would be {path.name}; rename the workdir of one of them"
            )
        paths.append(path)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        whole_files.write_text(path, text)
    return paths


def _file_name(record) -> str:
    if "points" in record:
        name = f"sweep_{record['name']}"
    else:
        name = f"{record['task']}_{record['checkpoint']['workdir']}"
    return re.sub(r"[^\w.+-]+", "-", name) + ".json"


def evaluations_of(record) -> list[dict]:
    """A record itself, or those of a sweep's points with what their pre-trainings came to."""
    if "points" not in record:
        return [record]
    return [
        evaluation | {"pretraining": point["pretraining"]}
        for point in record["points"]
        for evaluation in (point["evaluation"], *point.get("beside", {}).values())
    ]
