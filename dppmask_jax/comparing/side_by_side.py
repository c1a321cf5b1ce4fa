"""Runs of a study as processes side by side, each with its share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import parallel
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.training import signals

LOG = "log.txt"  # in the folder of a run: what its processes printed
_LOOK_EVERY = 0.5  # seconds


class Ended(NamedTuple):
    """A process that ended, of which run, and with what status."""

    number: int
    status: int


def check_jobs(jobs: int) -> None:
    """Raises InputError where there are fewer cores than jobs, or an accelerator, which they would
    have to share."""
    if jobs > 1 and not parallel.on_cpu():
        raise InputError(
            f"--jobs={jobs} shares out cores, and there is an accelerator here; leave it out, or "
            "set JAX_PLATFORMS=cpu"
        )
    cores = len(_cores())
    if jobs > cores:
        raise InputError(f"--jobs={jobs} is more than the {cores} cores of this machine; lower it")


def run_all(commands: Sequence[Sequence[str]], logs: Sequence[Path], jobs: int) -> Iterator[Ended]:
    """Runs commands, at most `jobs` at a time, and yields each when it has ended.

    The cores of this process are dealt out among the jobs, where the system can; what JAX compiles
    is kept beside the logs, for all. A signal is passed on to the processes, which save and end;
    and where this process is killed, its processes notice and end likewise, see `end_with_parent`.

    Raises:
      Stopped: by a signal, when all processes have ended.
    """
    groups = _dealt(sorted(_cores()), jobs)
    free, running = list(range(jobs)), {}
    waiting = list(range(len(commands)))
    with signals.noted() as stopped_by:
        while running or waiting:
            while waiting and free and not stopped_by():
                number, place = waiting.pop(0), free.pop(0)
                running[number] = (_start(commands[number], logs[number], groups[place]), place)
            if status := stopped_by():
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM)
                for process, _ in running.values():
                    process.wait()
                raise Stopped(
                    f"stopped by {signals.name(status)}; the same command goes on", status
                )
            for number, (process, place) in list(running.items()):
                if process.poll() is not None:
                    del running[number]
                    free.append(place)
                    yield Ended(number, process.returncode)
            time.sleep(_LOOK_EVERY if running else 0)


def _start(command: Sequence[str], log: Path, cores: Sequence[int]) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    mine = _cores()
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(log.parent.parent / "compiled"))
    _bind(cores)  # a process has the cores of the one that starts it
    try:
        with open(log, "ab") as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # its end tells that this process is gone
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "JAX_COMPILATION_CACHE_DIR": compiled},
                start_new_session=True,  # Ctrl-C reaches it through this process alone
            )
    finally:
        _bind(mine)


def end_with_parent() -> None:
    """Sends this process a SIGTERM when the one that started it is gone. Called once, by a process
    of `run_all`."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # Python's own reader would hold a lock at the exit
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def last_line(log: Path) -> str:
    """What a process said last, for messages."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1].strip() if lines else ""


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _bind(cores: Any) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _dealt(cores: Sequence[int], jobs: int) -> list[list[int]]:
    """The cores in as many groups, neighbours together."""
    size = len(cores) / jobs
    return [list(cores[round(i * size) : round((i + 1) * size)]) for i in range(jobs)]
