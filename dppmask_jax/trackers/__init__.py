"""Trackers of a run, by name. A new one is one file and one line here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, is_text
from dppmask_jax.trackers import mlflow, opened, tensorboard, wandb
from dppmask_jax.trackers.base import Opening, TrackerKind

TRACKERS: dict[str, TrackerKind] = {
    "tensorboard": tensorboard.KIND,
    "wandb": wandb.KIND,
    "mlflow": mlflow.KIND,
}


def _tags(text: str) -> tuple[str, ...]:
    return tuple(tag for tag in (part.strip() for part in text.split(",")) if tag)


def _are_tags(value) -> bool:
    def fits(tag):
        return len(tag) <= 64 and all(c.isalnum() or c in "_-.:/ " for c in tag)

    return is_text(value) and all(map(fits, _tags(value)))


_TAGS = Rule(
    _are_tags, "words with commas between, each of up to 64 letters, digits, spaces and _-.:/"
)


def fields() -> dict[str, Field]:
    """The fields of all trackers."""
    found = {
        "log.tags": Field("", _TAGS, "tags of the run for its trackers: A,B", free="carried out")
    }
    for kind in TRACKERS.values():
        found |= kind.fields
    return found


def check(config) -> None:
    """Raises InputError where the package of a tracker that the config asks for is missing."""
    for name, (kind, target) in _wanted(config).items():
        if kind.package and not _is_installed(kind.package):
            raise InputError(
                f"config.log.{name}={target} needs the package {kind.package}, which is not "
                f"installed: pip install 'dppmask-jax[{kind.extra}]'"
            )


def _is_installed(package: str) -> bool:
    """Whether it can be imported. A mere folder of its name does not count: W&B makes ./wandb."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _wanted(config: Mapping[str, Any]) -> dict[str, tuple[TrackerKind, str]]:
    """{name: (kind, where to)} of the trackers that a config asks for."""
    log = config.get("log", {})
    found = {name: (kind, kind.target(log) if kind.target else "")
             for name, kind in TRACKERS.items()}  # fmt: skip
    return {name: (kind, to) for name, (kind, to) in found.items() if to or not kind.target}


def open_trackers(
    folder: Path,
    config: Mapping[str, Any],
    records: Sequence[dict],
    restored_step: int | None,
    say: Callable[[str], Any],
) -> opened.Opened:
    """The trackers that a config asks for.

    Args:
      folder: the workdir; its trackers.json keeps the names of the run in their stores.
      config: the run's, as JSON; {} has those that every run has.
      records: of metrics.jsonl, as an earlier start left it. Without a checkpoint and a record the
        run is a new one in all stores.
      restored_step: see `Opening`; of the records those up to it are shown.
      say: told when a tracker fails.
    """
    tags = _tags(config.get("log", {}).get("tags", ""))
    idents = opened.read_idents(folder, say) if records or restored_step is not None else {}
    last = -1 if restored_step is None else restored_step
    kept = [record for record in records if record["step"] <= last]
    trackers = opened.Opened(say)
    for name, (kind, target) in _wanted(config).items():
        ident = idents.get(name, "")
        opening = Opening(folder, config, target, tags, restored_step, ident, say)
        trackers.add(name, kind, opening, kept)
    opened.write_idents(folder, {**idents, **trackers.idents}, say)
    return trackers
