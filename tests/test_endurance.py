"""What a long run holds on to: memory, open files and threads must not grow with the steps."""

import gc
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny

from dppmask_jax.runs import checkpoint, metrics

# glibc keeps what was freed, after compiling more than is in use, and touches more and more of its
# pages. Told to hand it back, what is resident is what is held.
HAND_BACK = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
WARM_UP = 200  # steps: some probes and saves
SAVE_EVERY = 50
SAVES = 12
# MiB resident, from one quarter of the time to the next. The allocator takes up to 10 at once, now
# and then; what each step leaves makes every quarter larger, so the median of the three counts.
MEMORY_GROWTH = 3
# MiB resident that each save may leave: TensorStore never frees what it says of an array to orbax.
SAVE_GROWTH = 0.1


class Sample(NamedTuple):
    step: int
    resident: int  # MiB
    files: int
    threads: int


def look(process, workdir) -> Sample:
    folder = Path("/proc") / str(process.pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    records = metrics.read_metrics(workdir / "metrics.jsonl")
    return Sample(
        records[-1]["step"] if records else 0,
        int(status["VmRSS"].split()[0]) // 1024,
        len(os.listdir(folder / "fd")),
        int(status["Threads"]),
    )


def endure(workdir, seconds: float, every: float, **changes) -> list[Sample]:
    """Samples of a run that trains, logs, probes and saves, taken after the warm-up, for so many
    seconds and at least `SAVES` saves."""
    command = tiny.command(
        workdir, epochs=1e5, log_every=5, checkpoint__every=SAVE_EVERY,
        evaluate__every_epochs=100 / 12, **changes,
    )  # fmt: skip
    environment = tiny.environment(2) | HAND_BACK
    process = subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=subprocess.DEVNULL)
    samples, until, last_step = [], time.monotonic() + 600, 0
    try:
        while time.monotonic() < until or (samples and samples[-1].step < last_step):
            time.sleep(every)
            assert process.poll() is None, "the run ended by itself"
            sample = look(process, workdir)
            if sample.step >= WARM_UP:
                if not samples:
                    until = time.monotonic() + seconds
                    last_step = sample.step + SAVES * SAVE_EVERY
                samples.append(sample)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return samples


def assert_flat(samples):
    """A quarter of the time holds no more than the one before, but for what saves leave. Of files
    and threads the least of a quarter is what it holds: those of a save come on top, and go. The
    median of the three differences counts: a pool fills once, a leak makes every quarter larger."""
    print(f"\n{len(samples)} samples, steps {samples[0].step} to {samples[-1].step}")
    quarter = len(samples) // 4
    saves = (samples[-1].step - samples[0].step) / 4 / SAVE_EVERY
    for name, held, allowed in (
        ("resident", statistics.median, MEMORY_GROWTH + SAVE_GROWTH * saves),
        ("files", min, 1),
        ("threads", min, 1),
    ):
        values = [getattr(sample, name) for sample in samples]
        quarters = [values[n * quarter : (n + 1) * quarter] for n in range(4)]
        helds = [held(part) for part in quarters]
        print(name, "held in each quarter", helds, "most", [max(part) for part in quarters])
        grown = statistics.median(b - a for a, b in itertools.pairwise(helds))
        assert grown <= allowed, (name, grown)
        if held is min:
            assert helds[-1] - helds[0] <= 8, (name, helds)  # a pool that fills
    assert samples[-1].step > samples[0].step


def test_a_save_leaves_no_more_behind_than_tensorstore_forgets(tmp_path):
    """Measured for the 12 arrays: 60 to 71 blocks of memory a save, 5 to 11 without that."""
    arrays = 12
    state = {f"{n}": np.full(n + 2, n, np.float32) for n in range(arrays)}
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)

    def save(steps):
        for step in steps:
            checkpoints.save(step, state, {})
            checkpoints.wait()
        gc.collect()
        return sys.getallocatedblocks()

    before = save(range(15))
    kept = (save(range(15, 30)) - before) / 15
    checkpoints.close()
    assert kept < 10 * arrays


@pytest.mark.slow
def test_a_short_training_holds_on_to_nothing(tmp_path):
    assert_flat(endure(tmp_path / "run", seconds=40, every=0.5))


@pytest.mark.slow
@pytest.mark.faults
def test_half_an_hour_of_training_holds_on_to_nothing(tmp_path):
    assert_flat(endure(tmp_path / "run", seconds=1800, every=2))
