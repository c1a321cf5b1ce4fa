"""The saves of a training: some may fail, too many in a row end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dppmask_jax.fields import Field, number, whole
from dppmask_jax.runs import checkpoint

FAILED = 1  # the exit status of a run that cannot save
FIELDS = {
    "checkpoint.every": Field(1000, whole(1), "steps between saves", free="carried out"),
    "checkpoint.every_minutes": Field(
        10.0,
        number(0),
        "minutes after which a save is due, whatever the step; 0 is off",
        free="carried out",
    ),
    "checkpoint.keep": Field(2, whole(1), "checkpoints that are kept", free="carried out"),
    "checkpoint.max_failed_saves": Field(
        3, whole(1), "failed saves in a row that end the run", free="carried out"
    ),
}


class Saves:
    """Saves through `checkpoints`. That is None in all processes but the main one, which save
    nothing.

    Attributes:
      failed: how many saves in a row have failed, up to now.
      reason: why the last of them did.
    """

    def __init__(
        self,
        checkpoints: checkpoint.Checkpoints | None,
        *,
        meta: dict[str, Any],
        max_failed: int,
        every_seconds: float,
        write_metrics: Callable[[], Any],
        say: Callable[[str], Any],
    ):
        """
        Args:
          max_failed: failed saves in a row that end the run.
          every_seconds: after which a save is overdue; 0: it never is.
          write_metrics: raises OSError unless every record so far is on the disk.
          say: called with a line for each failed save.
        """
        self.failed, self.reason = 0, ""
        self._checkpoints, self._meta, self._max_failed = checkpoints, meta, max_failed
        self._write_metrics, self._say = write_metrics, say
        self._every_seconds, self._last = every_seconds, time.monotonic()
        self._step: int | None = None

    def begin(self, step: int, state) -> None:
        """Starts to save a state; `settle` says how it ended."""
        self.settle()
        self._last = time.monotonic()
        if self._checkpoints is None or self.status():
            return
        try:
            # A resumed run has to find the records of the steps that it does not repeat.
            self._write_metrics()
            self._checkpoints.save(step, state, self._meta)
        except checkpoint.SaveFailed as error:
            self._note(error.step, error.reason)
        except OSError as error:
            self._note(step, f"metrics.jsonl: {error.strerror}")
        else:
            self._step = step

    def settle(self) -> None:
        """Waits for the save that was begun last."""
        if self._checkpoints is None or self._step is None:
            return
        self._step = None
        try:
            self._checkpoints.wait()
        except checkpoint.SaveFailed as error:
            self._note(error.step, error.reason)
        else:
            self.failed, self.reason = 0, ""

    def overdue(self) -> bool:
        """Whether the last save, or the start, is too long ago; only the process that saves says
        so."""
        return (
            self._checkpoints is not None
            and 0 < self._every_seconds <= time.monotonic() - self._last
        )

    def close(self) -> None:
        """Waits for the last save, and ends what writes."""
        self.settle()
        if self._checkpoints is not None:
            self._checkpoints.close()

    def status(self) -> int:
        """The exit status to end the run with: 0 while it may go on."""
        return FAILED if self.failed >= self._max_failed else 0

    def resumes(self) -> str:
        """Where the same command will go on, in words."""
        newest = self._checkpoints.newest
        return "begins at step 0" if newest is None else f"resumes at step {newest:,}"

    def _note(self, step: int, reason: str) -> None:
        self.failed, self.reason = self.failed + 1, reason
        newest = self._checkpoints.newest
        self._say(
            f"step {step} could not be saved: {reason}; "
            + ("there is no checkpoint yet" if newest is None else f"checkpoint {newest} stays")
            + f"; {self.failed} of config.checkpoint.max_failed_saves={self._max_failed} in a row"
        )
