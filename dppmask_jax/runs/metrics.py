"""What a run writes down while it trains: metrics.jsonl, its trackers, a progress bar."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from dppmask_jax import terminal, trackers, whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

_SILENCE_SECONDS = 10.0  # without a line, until one is printed


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl, in order; a half-written last line is left out.

    Raises:
      InputError: a line in the middle is not a record, an object with a whole "step".
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError('no object with a whole "step"')
            records.append(record)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"line {number} of {path} is damaged ({error}); remove that line"
            ) from error
    return records


class MetricsLog:
    """Appends records to WORKDIR/metrics.jsonl, and shows them in the run's trackers.

    Opening it cuts the file back to `restored_step`, the step of the checkpoint that the run goes
    on from (None: it starts anew and the file too), so that every logged step stands there once.
    Records that cannot be written, on a full disk say, wait for the next `write` or `flush`; `say`
    is told. With `workdir` None (all processes but one) nothing is written. `config`, as JSON, says
    which trackers there are besides TensorBoard.
    """

    def __init__(
        self,
        workdir: Path | None,
        restored_step: int | None,
        say: Callable[[str], Any] = logging.warning,
        config: Mapping[str, Any] = MappingProxyType({}),
    ):
        self._say = say
        self._waiting: list[str] = []
        self._file = None
        self._step, self._finished = restored_step or 0, False
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        last = -1 if restored_step is None else restored_step
        records = read_metrics(path)
        kept = [record for record in records if record["step"] <= last]
        whole_files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._trackers = trackers.open_trackers(workdir, config, records, restored_step, say)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one record. A value that is not finite is written as null."""
        if self._file is None or not values:
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        waited = bool(self._waiting)
        self._waiting.append(json.dumps({"step": step, **values}) + "\n")
        try:
            self._append()
        except OSError as error:
            if not waited:
                self._say(f"step {step}: metrics.jsonl cannot be written ({error.strerror}); "
                          "its records wait")  # fmt: skip
        self._step = step
        self._trackers.write(step, values)

    def finish(self, step: int, figures: Sequence[Path] = ()) -> None:
        """Notes that the run is at its end, and shows its figures in the trackers."""
        self._finished = True
        if self._file is not None:
            self._trackers.show(step, figures)

    def flush(self) -> None:
        """Returns once all records are on the disk.

        Raises:
          OSError: they are not; they still wait.
        """
        if self._file is not None:
            self._append()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes what waits, or says how much is lost."""
        if self._file is None:
            return
        try:
            self._append()
        except OSError as error:
            lost = count(len(self._waiting), "record")
            self._say(f"{lost} of metrics.jsonl lost: {error.strerror}")
        self._file.close()
        self._trackers.close(self._step, self._finished)

    def _append(self) -> None:
        if not self._waiting:
            return
        data = "".join(self._waiting).encode()
        self._file.truncate(self._size)  # what a failed write left of a line
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._size += written
        self._waiting = []


def counted(batches, total: int, what: str, enabled: bool = True):
    """Iterates over batches behind a progress bar, where there is a terminal to show it."""
    return tqdm(
        batches,
        total=total,
        desc=what,
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        disable=not (enabled and sys.stderr.isatty()),
    )


class Progress:
    """A progress bar with loss, images/s and the time left; plain lines where there is no
    terminal, about twenty in a run, and one after every `_SILENCE_SECONDS` without any."""

    def __init__(self, start_step: int, total_steps: int, enabled: bool = True):
        self._enabled = enabled
        self._step, self._total = start_step, total_steps
        self._line_every = max(1, total_steps // 20)
        self._next_line = start_step + 1
        self._began = None
        self._opened = self._said = time.monotonic()
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )

    def update(self, step: int, values: dict[str, float]) -> None:
        """Shows the `loss` and `images_per_sec` of a step."""
        loss, rate = values["loss"], values["images_per_sec"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s", refresh=False)
        shown = step >= self._next_line or step == self._total
        if shown:
            self._next_line = step + self._line_every
        self._reach(step, f"loss {loss:.4f}  {rate:.0f} images/s  " if shown else None)

    def beat(self, step: int) -> None:
        """Shows that a step was reached, where a bar shows it or nothing was said for long."""
        if step <= self._step:
            return
        now = time.monotonic()
        # A log of days needs no line every ten seconds.
        silence = max(_SILENCE_SECONDS, (now - self._opened) / 100)
        self._reach(step, "" if now - self._said >= silence else None)

    def _reach(self, step: int, words: str | None) -> None:
        # The time before the first call went into compilation, which does not come again.
        self._began = self._began or (step, time.monotonic())
        if self._bar is not None:
            self._bar.update(step - self._step)
        elif self._enabled and words is not None:
            began_step, began = self._began
            per_step = (time.monotonic() - began) / max(step - began_step, 1)
            left = tqdm.format_interval(per_step * (self._total - step))
            eta = left if step > began_step else "--:--"
            self.say(f"step {step}/{self._total}  {words}ETA {eta}")
        self._step = step

    def say(self, line: str) -> None:
        """Prints a line without tearing the bar; on stderr where the progress is not shown."""
        self._said = time.monotonic()
        if self._bar is not None:
            terminal.write_above(self._bar, line)
        else:
            terminal.show(line, sys.stdout if self._enabled else sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
