"""The folder of a run: its config.json, and whether a config may go on in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from dppmask_jax import checkpoint, lock, metrics, parallel
from dppmask_jax.config import MODEL_FIELDS, with_later_fields
from dppmask_jax.errors import InputError
from dppmask_jax.rules import flatten


def check_resumable(
    config, workdir: Path, is_fixed: Callable[[str], bool] = MODEL_FIELDS.__contains__
) -> list[str] | None:
    """Checks that the newest checkpoint of `workdir`, if there is one, fits a config.

    Args:
      is_fixed: whether a field, such as "model.size", may not change while a run goes on.

    Returns:
      None where there is no checkpoint to go on from; else the fields, "name: old -> new", that
      differ from the run so far and may.

    Raises:
      InputError: see `check_folder`; or the workdir holds checkpoints that a fixed field tells from
        this config, a damaged metrics.jsonl, or one of a run whose checkpoints are gone.
    """
    check_folder(workdir)
    meta = checkpoint.newest_meta(workdir)
    records = metrics.read_metrics(workdir / "metrics.jsonl")
    if meta is None:
        _check_begins(workdir, records)
        return None
    old, new = flatten(from_json(meta["config"])), flatten(config)
    changed = {
        field: f"{field}: {old.get(field)!r} -> {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    }
    foreign = [words for field, words in changed.items() if is_fixed(field)]
    if foreign:
        raise InputError(
            f"--workdir={workdir} holds checkpoints of another run ({'; '.join(foreign)}); "
            "name another folder, or go back to that config"
        )
    return list(changed.values())


def _check_begins(workdir: Path, records: list[dict]) -> None:
    """Raises InputError where a run has gone past its first save and has no checkpoint."""
    path = workdir / "config.json"
    last = max((record["step"] for record in records if "loss" in record), default=0)
    if not last or not path.exists():
        return
    try:
        saved_from = int(json.loads(path.read_text())["checkpoint"]["every"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} of a run that reached step {last} is damaged, and there is no checkpoint; "
            "restore them, or move metrics.jsonl away to start again"
        ) from error
    if last > saved_from:
        raise InputError(
            f"--workdir={workdir} holds a run that reached step {last}, and none of its "
            "checkpoints; restore them, or move its metrics.jsonl away to start again"
        )


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Keeps other runs out of a folder while the context lasts; reading needs no lock.

    Raises:
      InputError: in every process; another run holds the lock, and nothing was changed.
    """
    with contextlib.ExitStack() as stack:

        def take():
            stack.enter_context(lock.held(folder, name))
            return 0

        parallel.decided_by_main(take)
        yield


def check_folder(workdir: Path) -> None:
    """Raises InputError unless the workdir is a local folder that can be written, or made."""
    if ":/" in str(workdir):
        raise InputError(
            f"--workdir={workdir} is not a local folder; runs are written to local or NFS folders"
        )
    there = next(path for path in (workdir, *workdir.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--workdir={workdir}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir}: {there} cannot be written; name another folder")


def write_config(config, workdir: Path) -> None:
    """Writes WORKDIR/config.json, replacing the old one at once."""
    partial = workdir / "config.json.part"
    partial.write_text(json.dumps(to_json(config), indent=2) + "\n")
    partial.replace(workdir / "config.json")


def to_json(config) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: dict[str, Any]) -> config_dict.ConfigDict:
    """A config from `to_json`, with JSON's lists back as tuples, and `with_later_fields`."""

    def tuples(value):
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return config_dict.ConfigDict(tuples(with_later_fields(values)))
