"""Faults done to runs of train.py, and what they leave behind."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import forked
import jax
import numpy as np
import tiny

from dppmask_jax.methods.base import TrainState
from dppmask_jax.runs import checkpoint, metrics

TIMING = ("images_per_sec", "data_wait_frac")
PATIENCE = 1800  # seconds


def curve(workdir):
    """The records of a run without what depends on the clock."""
    records = metrics.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def saved(workdir):
    """(step, the whole training state) of the newest checkpoint."""
    _, state, step = checkpoint.read_newest(workdir, TrainState._fields)
    return step, state


def last_step(workdir):
    """The last step whose loss stands whole in metrics.jsonl; 0 before the first."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return max((r["step"] for r in map(json.loads, lines) if "loss" in r), default=0)


def checkpoint_names(workdir):
    """What lies in the folder of checkpoints, half-written ones among it."""
    folder = workdir / checkpoint.FOLDER
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def is_saving(workdir):
    return any("tmp" in name for name in checkpoint_names(workdir))


def assert_same_run(workdir, other):
    """Every record of the two runs and every number of their final states is the same."""
    assert curve(workdir) == curve(other)
    (step, state), (other_step, other_state) = saved(workdir), saved(other)
    assert step == other_step and state.keys() == other_state.keys() >= {"params", "opt_state"}
    jax.tree.map(np.testing.assert_array_equal, state, other_state)


def assert_tidy(workdir, *steps):
    """No temporary file or lock is left, and of checkpoints these."""
    assert checkpoint_names(workdir) == sorted(map(str, steps))
    left = [p for p in workdir.rglob("*") if re.search(r"tmp|\.part|\.lock", p.name)]
    assert not left


class Life:
    """One process of a run, from its start to its end; its output goes to a file.

    Args:
      own_session: its processes are a group of their own.
    """

    def __init__(self, command, env, output, *, own_session=False):
        self._output = output
        output.write_text("")
        if own_session:
            with output.open("w") as file:
                self.process = subprocess.Popen(
                    command, cwd=tiny.ROOT, env=env, stdout=file, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
        else:
            self.process = forked.Process(command, tiny.ROOT, env, output)

    def wait_until(self, holds, what, poll=0.02):
        """Asks until `holds()`; fails if the process ends or time runs out before."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"no {what} in time:\n{self.said()}"
            time.sleep(poll)

    def wait_for_step(self, workdir, step):
        self.wait_until(lambda: last_step(workdir) >= step, f"step {step}")

    def send(self, number):
        self.process.send_signal(number)

    @contextlib.contextmanager
    def held(self):
        """The process does nothing meanwhile."""
        self.send(signal.SIGSTOP)
        try:
            state = Path("/proc") / str(self.process.pid) / "stat"
            self.wait_until(
                lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "a halt"
            )
            yield
        finally:
            self.send(signal.SIGCONT)

    def end(self, timeout=PATIENCE):
        """The exit status, and the seconds until it came."""
        start = time.monotonic()
        try:
            return self.process.wait(timeout), time.monotonic() - start
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def said(self):
        return self._output.read_text()

    def started_at(self):
        """The step that the run said it goes on from; None if it was killed before."""
        found = re.search(r"(?:resuming|starting) at step ([\d,]+)", self.said())
        return found and int(found[1].replace(",", ""))


def run(command, env, output):
    """Runs a command to its end: (status, output)."""
    life = Life(command, env, output)
    status, _ = life.end()
    return status, life.said()


class Kills(NamedTuple):
    """How many kills there were, how many of them while a checkpoint was half written, how many
    before the run had said where it starts, and the steps done again after each of the others."""

    total: int
    saving: int
    starting: int
    redone: list[int]


def kill_at_random(command, workdir, env, outputs, *, kills, seed, stride):
    """Kills a run so many times, starts it again each time, and lets it end at last.

    Args:
      stride: the most steps that a life makes before it becomes a target.
    """
    rng = random.Random(seed)
    saving = starting = 0
    redone, before = [], None
    for number in range(kills + 1):
        life = Life(command, env, outputs / f"life-{number:02}.txt")
        kind = rng.choices(("start", "step", "save"), (1, 3, 4))[0] if number < kills else "end"
        target, delay = last_step(workdir) + rng.randint(1, stride), rng.random()
        if kind == "start":
            time.sleep(6 * delay)
        elif kind != "end":
            life.wait_for_step(workdir, target)
            if kind == "save":
                life.wait_until(lambda: is_saving(workdir), "a save", poll=0.001)
            time.sleep(0.04 * delay)
        if kind != "end":
            assert life.process.poll() is None, life.said()
            life.send(signal.SIGKILL)
        status, _ = life.end()
        assert status == (0 if kind == "end" else -signal.SIGKILL), life.said()
        start = life.started_at()
        if start is None:
            starting += 1
        elif before is not None:
            redone.append(before - start)
        # A life that was killed before it wrote anything leaves the steps of the one before.
        if start is not None or before is None:
            before = last_step(workdir)
        saving += kind != "end" and is_saving(workdir)
    return Kills(kills, saving, starting, redone)


def two_processes(workdir, env, outputs, *flags, script="train.py", **changes):
    """Starts a run in two processes."""
    port = tiny.free_port()
    outputs.mkdir(exist_ok=True)
    together = ["--num_processes=2", f"--coordinator=127.0.0.1:{port}", *flags]

    def start(number):
        python, _, *words = tiny.command(workdir, *together, f"--process_id={number}", **changes)
        output = outputs / f"process-{number}-{port}.txt"
        return Life([python, script, *words], env, output)

    return [start(number) for number in range(2)]


def is_root_with_mounts():
    """Whether this process may mount file systems, in a namespace of its own."""
    return os.geteuid() == 0 and not subprocess.run(["unshare", "-m", "true"]).returncode
