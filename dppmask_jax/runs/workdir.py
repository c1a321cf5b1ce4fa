"""The folder of a run: who writes in it, and its config.json."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from dppmask_jax import methods, parallel, whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.fields import with_later
from dppmask_jax.methods import METHODS, frozen
from dppmask_jax.runs import bucket_copy, lock


def check_begins(workdir: Path, records: list[dict]) -> None:
    """Raises InputError where a run has gone past its first save and has no checkpoint.

    Args:
      records: of its metrics.jsonl.
    """
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
            f"{bucket_copy.named(workdir)} is not a local folder; name one, or an NFS folder: only "
            "train and eval write to gs:// and s3://"
        )
    there = next(path for path in (workdir, *workdir.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--workdir={workdir}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--workdir={workdir}: {there} cannot be written; name another folder")


def write_config(config, workdir: Path, record: Mapping[str, Any] | None = None) -> None:
    """Writes WORKDIR/config.json in place of the old one, which is there until then. Makes WORKDIR.

    Args:
      record: what else it says, see `resuming.Start`.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    whole_files.write_json(workdir / "config.json", {**to_json(config), **(record or {})})


def to_json(config) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: dict[str, Any]) -> config_dict.ConfigDict:
    """A config from `to_json`, with JSON's lists back as tuples; what a method came to read after
    the config was kept is at its default."""

    def tuples(value):
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return config_dict.ConfigDict(tuples(completed(values)))


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was kept, as JSON: what its method came to read since is at its default."""
    if values.get("method") == frozen.NAME:
        return with_later(values, frozen.fields())
    if values.get("method") not in list(METHODS):
        return dict(values)
    return with_later(values, methods.fields_of(values["method"]))
