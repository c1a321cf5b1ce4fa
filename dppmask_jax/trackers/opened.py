"""The open trackers of a run, of which one that fails is dropped with a line."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import whole_files
from dppmask_jax.trackers.base import Opening, Tracker, TrackerKind

_FILE = "trackers.json"
_LONGEST = 300  # characters of another package's message


class Opened:
    """Passes on to all trackers what a run writes.

    A tracker that raises anything is dropped, and `say` is told once, with the error: what stands
    in metrics.jsonl is complete, and the next start of the run adds what the tracker lacks.

    Attributes:
      idents: {name: `Tracker.ident`} of those that have one.
    """

    def __init__(self, say: Callable[[str], Any]):
        self._say = say
        self._trackers: dict[str, tuple[str, Tracker]] = {}  # with their labels
        self.idents: dict[str, str] = {}

    def add(self, name: str, kind: TrackerKind, opening: Opening, records: Iterable[dict]) -> None:
        """Opens a tracker and shows it the records that the run goes on from."""
        try:
            tracker = kind.open(opening)
        except Exception as error:
            self._say(f"{kind.label} cannot be opened ({reason(error)}); the run goes on without")
            return
        if tracker.ident:
            self.idents[name] = tracker.ident
        self._trackers[name] = kind.label, tracker
        kept = [(record["step"], finite(record)) for record in records]
        self._call(name, opening.restored_step or 0, lambda tracker: tracker.catch_up(kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows the finite values of a step."""
        if shown := finite(values):
            self._each(step, lambda tracker: tracker.write(step, shown))

    def show(self, step: int, paths: Sequence[Path]) -> None:
        """Shows pictures, under their names."""
        if paths:
            self._each(step, lambda tracker: tracker.show(step, paths))

    def close(self, step: int, finished: bool) -> None:
        """Closes all of them, after which they are gone."""
        self._each(step, lambda tracker: tracker.close(finished))
        self._trackers = {}

    def _each(self, step: int, call: Callable[[Tracker], Any]) -> None:
        for name in list(self._trackers):
            self._call(name, step, call)

    def _call(self, name: str, step: int, call: Callable[[Tracker], Any]) -> None:
        label, tracker = self._trackers[name]
        try:
            call(tracker)
        except Exception as error:
            del self._trackers[name]
            tracker.abandon()
            self._say(
                f"step {step}: {label} cannot be written ({reason(error)}); it ends here, "
                "metrics.jsonl goes on"
            )


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, without its step."""
    return {
        name: value
        for name, value in values.items()
        if name != "step" and value is not None and math.isfinite(value)
    }


def reason(error: Exception) -> str:
    """An error in one line: its kind, what it says, and the line of code that raised it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())
    said = said if len(said) <= _LONGEST else said[:_LONGEST] + " …"
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


def read_idents(folder: Path, say: Callable[[str], Any]) -> dict[str, str]:
    """{tracker: name of the run in its store}; {} where none are kept."""
    try:
        kept = json.loads((folder / _FILE).read_text())
        return {str(name): str(ident) for name, ident in kept.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        say(f"{_FILE} cannot be read ({reason(error)}); this is another run for the trackers")
        return {}


def write_idents(folder: Path, idents: Mapping[str, str], say: Callable[[str], Any]) -> None:
    """Keeps them; without any there is no file."""
    if not idents:
        return
    try:
        whole_files.write_json(folder / _FILE, dict(idents))
    except OSError as error:
        say(
            f"{_FILE} cannot be written ({error.strerror}); a later start is another run for the "
            "trackers"
        )
