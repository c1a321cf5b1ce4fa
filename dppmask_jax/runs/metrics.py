"""What a run writes down while it trains: metrics.jsonl, TensorBoard events, a progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar, text
from tqdm import tqdm

from dppmask_jax import terminal, whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

_FLUSH_SECONDS = 10  # between flushes of TensorBoard's file
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
    """Appends records to WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Opening it cuts the file back to `restored_step`, the step of the checkpoint that the run goes
    on from (None: it starts anew and the file too), so that every logged step stands there once.
    Records that cannot be written, on a full disk say, wait for the next `write` or `flush`; `say`
    is told. With `workdir` None (all processes but one) nothing is written.
    """

    def __init__(
        self,
        workdir: Path | None,
        restored_step: int | None,
        say: Callable[[str], Any] = logging.warning,
    ):
        self._say = say
        self._waiting: list[str] = []
        self._file = self._events = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        last = -1 if restored_step is None else restored_step
        kept = [record for record in read_metrics(path) if record["step"] <= last]
        whole_files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._events = _Events(workdir / "tensorboard", last + 1)

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
        self._show(step, [scalar(name, v) for name, v in values.items() if v is not None])

    def show_config(self, step: int, config: dict[str, Any]) -> None:
        """Shows a config, as JSON, on TensorBoard's page of texts."""
        lines = json.dumps(config, indent=2).splitlines()
        self._show(step, [text("config", "\n".join(f"    {line}" for line in lines))])

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
        if self._events is not None:
            try:
                self._events.close()
            except OSError:
                self._events.abandon()

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

    def _show(self, step: int, summaries: list) -> None:
        if self._events is None:
            return
        try:
            self._events.write(step, summaries)
        except OSError as error:
            self._events.abandon()
            self._events = None
            self._say(
                f"step {step}: tensorboard/ cannot be written ({error.strerror}); it ends here, "
                "metrics.jsonl goes on"
            )


def show_figures(
    workdir: Path, step: int, paths: Iterable[Path], say: Callable[[str], Any] = logging.warning
) -> None:
    """Adds pictures to WORKDIR/tensorboard, under their names; `say` is told where they cannot be
    written."""
    try:
        events = _Events(workdir / "tensorboard", None)
        try:
            for path in paths:
                with PIL.Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                events.write(step, [image(f"figures/{path.stem}", pixels, dataformats="HWC")])
            events.close()
        except OSError:
            events.abandon()
            raise
    except OSError as error:
        say(f"tensorboard/ cannot be written ({error.strerror}); it lacks the figures")


class _Events:
    """TensorBoard's file of one process.

    Events of earlier files from `first_step` on are hidden, as their steps come again; None hides
    none. tensorboardX's SummaryWriter is not used: on a full disk it stays silent, then hangs.
    """

    def __init__(self, folder: Path, first_step: int | None):
        folder.mkdir(exist_ok=True)
        kind = ".figures" if first_step is None else ""
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}{kind}")
        if first_step is not None:
            start = SessionLog(status=SessionLog.START)  # hides what comes again
            self._writer.write_event(Event(step=first_step, session_log=start))
        self._flushed = time.monotonic()

    def write(self, step: int, summaries: Iterable) -> None:
        for summary in summaries:
            event = Event(wall_time=time.time(), step=step, summary=summary)
            self._writer.write_event(event)
        if time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        """Closes the file without what could not be written."""
        with contextlib.suppress(OSError):
            self._writer._py_recordio_writer.close()  # `close` above would flush and fail first


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
