"""What a run writes down while it trains: metrics.jsonl, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from dppmask_jax.errors import InputError


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
    With `workdir` None (all processes but one) nothing is written.
    """

    def __init__(self, workdir: Path | None, restored_step: int | None):
        self._file = self._events = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        last = -1 if restored_step is None else restored_step
        kept = [record for record in read_metrics(path) if record["step"] <= last]
        partial = path.with_suffix(".jsonl.part")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)
        self._file = path.open("a")
        self._events = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=last + 1, flush_secs=10
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one record. A value that is not finite is written as null."""
        if self._file is None or not values:
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._events.close()


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
    terminal, about twenty in a run."""

    def __init__(self, start_step: int, total_steps: int, enabled: bool = True):
        self._enabled = enabled
        self._step, self._total = start_step, total_steps
        self._line_every = max(1, total_steps // 20)
        self._next_line = start_step + 1
        self._began = None
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
        # The time before the first call went into compilation, which does not come again.
        self._began = self._began or (step, time.monotonic())
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} images/s", refresh=False)
            self._bar.update(step - self._step)
        elif self._enabled and (step >= self._next_line or step == self._total):
            began_step, began = self._began
            per_step = (time.monotonic() - began) / max(step - began_step, 1)
            left = tqdm.format_interval(per_step * (self._total - step))
            eta = left if step > began_step else "--:--"
            print(
                f"step {step}/{self._total}  loss {loss:.4f}  {rate:.0f} images/s  ETA {eta}",
                flush=True,
            )
            self._next_line = step + self._line_every
        self._step = step

    def say(self, line: str) -> None:
        """Prints a line without tearing the bar; on stderr where the progress is not shown."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True, file=sys.stdout if self._enabled else sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
