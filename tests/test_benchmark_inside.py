"""The clock of the benchmark of analyses, and which tasks it knows."""

import time
from pathlib import Path

import pytest

from dppmask_jax.tasks import TASKS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def beside_the_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_parts_of_the_clock_sum_up(monkeypatch):
    import inside_task

    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = inside_task.Clock()
    now = 1.0
    with clock.part("device"):
        now = 3.0
        with clock.part("loading"):
            now = 7.0
        # Lowering a second ago, within a tracing of two; then an event that is no compilation's.
        now = 12.0
        clock.on_event("/jax/core/compile/jaxpr_to_mlir_module_duration", 1.0)
        clock.on_event("/jax/core/compile/jaxpr_trace_duration", 2.0)
        clock.on_event("/jax/checkpoint/write", 3.0)
    now = 12.5
    clock.charge()
    assert clock.seconds == {
        "loading": 4.0, "device": 5.0, "compiling": 2.0, "figures": 0.0, "host": 1.5,
    }  # fmt: skip


def test_every_analysis_is_timed():
    import inside

    runs = {name: task.run for name, task in TASKS.items() if task.run}  # but "inside", of them all
    assert set(inside.TASKS) == {n for n, run in runs.items() if ".analyses." in run.__module__}
