"""What a tracker is: a place beside metrics.jsonl where the numbers and figures of a run are shown.

metrics.jsonl is the record of a run. A tracker shows what stands there; where it fails, the run
goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from dppmask_jax.fields import Field


def nothing(*_) -> None:
    """Does nothing."""


class Opening(NamedTuple):
    """The start of a run, as its trackers see it.

    Attributes:
      folder: the workdir, which is there.
      config: the run's config as JSON, nested; {} where there is none to show.
      target: the value of the tracker's field; "" of one without.
      tags: words that group runs.
      restored_step: the step that the run goes on from; None: it begins anew.
      ident: what `Tracker.ident` was in an earlier start of this run; "" in the first one.
      say: prints a line for whoever watches.
    """

    folder: Path
    config: Mapping[str, Any]
    target: str
    tags: tuple[str, ...]
    restored_step: int | None
    ident: str
    say: Callable[[str], Any]


class Tracker(NamedTuple):
    """An open tracker. Its functions may raise anything: the run goes on without it then.

    Steps come in order, several records of one step too. A resumed run goes back to its checkpoint
    and makes steps a second time; the tracker sees to it that each stands there once.

    Attributes:
      write: (step, {name: finite number}).
      ident: the name of the run in the tracker's store, kept in the workdir for its next start; ""
        where there is none to keep.
      catch_up: given the records of metrics.jsonl that the run goes on from, [(step, values)],
        before anything else is written. It adds those that the store lacks: a killed process may
        have lost its last ones, and a tracker may be chosen late.
      show: (step, paths of pictures), at the end.
      close: given whether the run is at its end.
      abandon: lets go of files after a failure.
    """

    write: Callable[[int, dict[str, float]], Any]
    ident: str = ""
    catch_up: Callable[[Sequence[tuple[int, dict[str, float]]]], Any] = nothing
    show: Callable[[int, Sequence[Path]], Any] = nothing
    close: Callable[[bool], Any] = nothing
    abandon: Callable[[], Any] = nothing


class TrackerKind(NamedTuple):
    """A kind of tracker.

    Attributes:
      label: its name in messages.
      open: Opening -> Tracker.
      target: the fields log.* of a config -> where the run goes, the value of log.NAME of this
        tracker's NAME in `TRACKERS`; "" for nowhere. None: every run has the tracker.
      fields: the fields that it reads.
      package: what it imports beyond the extra [train]; "" for nothing.
      extra: the extra of this project that installs it.
    """

    label: str
    open: Callable[[Opening], Tracker]
    target: Callable[[Mapping[str, Any]], str] | None = None
    fields: Mapping[str, Field] = MappingProxyType({})
    package: str = ""
    extra: str = ""
