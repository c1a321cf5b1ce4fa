"""TensorBoard's event files, in WORKDIR/tensorboard."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import PIL.Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar, text

from dppmask_jax.trackers.base import Opening, Tracker, TrackerKind

_FLUSH_SECONDS = 10  # between flushes of the file


def _open(opening: Opening) -> Tracker:
    first = 0 if opening.restored_step is None else opening.restored_step + 1
    events = _Events(opening.folder / "tensorboard", first)

    def write(step, values):
        events.write(step, [scalar(name, value) for name, value in values.items()])

    def show(step, paths):
        for path in paths:
            with PIL.Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            events.write(step, [image(f"figures/{path.stem}", pixels, dataformats="HWC")])

    if opening.config:
        lines = json.dumps(opening.config, indent=2).splitlines()
        page = text("config", "\n".join(f"    {line}" for line in lines))
        events.write(opening.restored_step or 0, [page])
    return Tracker(write, show=show, close=lambda finished: events.close(), abandon=events.abandon)


KIND = TrackerKind("tensorboard/", _open)


class _Events:
    """The file of one process.

    Events of earlier files from `first_step` on are hidden, as their steps come again.
    tensorboardX's SummaryWriter is not used: on a full disk it stays silent, then hangs.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
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
