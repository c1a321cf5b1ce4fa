"""A study of real runs, stopped and killed in the middle, goes on to the same results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from dppmask_jax.comparing import published, side_by_side
from dppmask_jax.runs import checkpoint

STUDY = """
import tiny
from dppmask_jax.comparing import study as studies

def get_config(argument=""):
    study = studies.defaults("small")
    study.seeds = (0,)
    study.maskers.random = {"strategy": "random"}
    study.maskers.dpp = {"strategy": "dpp", "tau": 0.8}
    study.maskers.block = {"strategy": "block"}
    study.methods.mae = tiny.config(
        epochs=EPOCHS, model__depth=1, checkpoint__every=100, evaluate__every_epochs=0.0
    )
    study.evaluations.knn = tiny.evaluation("task=knn")
    return study
"""
EPOCHS = 40.0  # of 12 steps: long enough to be met in the middle


def command(folder, *words):
    return [
        sys.executable,
        "-m",
        "dppmask_jax.compare",
        f"--study={folder / 'small.py'}",
        "--jobs=2",
        *words,
    ]


def start(folder):
    environment = tiny.environment(1)
    environment["PYTHONPATH"] = os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests")])
    words = [f"--workdir={folder / 'runs'}", f"--results={folder / 'results'}"]
    return subprocess.Popen(
        command(folder, *words), cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def steps(folder):
    """How many steps each run has logged."""
    return {
        path.parent.name: len(path.read_text().splitlines())
        for path in (folder / "runs").glob("*/metrics.jsonl")
    }


def wait_until(process, true, seconds=900):
    end = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.1)


def both_further(folder, before):
    """() -> whether two runs have made steps that they had not made before."""
    return lambda: (
        sum(number > before.get(name, 0) + 8 for name, number in steps(folder).items()) == 2
    )


def held(folder):
    """The runs that processes are at work on."""
    return list((folder / "runs").glob("*/.lock"))


def saved(folder):
    return {path.parent.parent.name for path in (folder / "runs").glob("*/checkpoints/*")}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(os.cpu_count() < 2, reason="two runs side by side take two cores")
def test_a_study_that_was_stopped_and_killed_finds_what_one_without_finds(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    for folder in (cut, whole):
        folder.mkdir()
        (folder / "small.py").write_text(STUDY.replace("EPOCHS", str(EPOCHS)))

    process = start(cut)
    wait_until(process, both_further(cut, {}))
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 143 and "SIGTERM; the same command goes on" in said, said
    assert not (cut / "results" / published.VALUES).read_text().splitlines()[1:]
    assert len(saved(cut)) == 2, "they saved where they were"
    after_stop = steps(cut)
    assert all(number < EPOCHS * 12 for number in after_stop.values())

    process = start(cut)
    wait_until(process, both_further(cut, after_stop))
    assert len(held(cut)) == 2
    process.kill()
    process.communicate()
    wait_until(None, lambda: not held(cut), 200)  # its processes notice, save and end
    killed = steps(cut)
    assert all(killed[name] > number for name, number in after_stop.items()), "and went on there"
    assert all(number < EPOCHS * 12 for number in killed.values())
    for log in (cut / "runs").glob(f"*/{side_by_side.LOG}"):
        assert "SIGTERM: stopped after step" in side_by_side.last_line(log)

    for folder in (cut, whole):
        process = start(folder)
        said, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, said
        assert "3 of 3 runs finished" in said
    for name in (published.VALUES, published.IMAGES):
        assert (cut / "results" / name).read_bytes() == (whole / "results" / name).read_bytes()
    assert len((whole / "results" / published.VALUES).read_text().splitlines()) == 4
    runs = [run.name for run in (whole / "runs").glob("mae-*")]
    assert len(runs) == 3
    for run in runs:  # scores of so few images could be the same by chance
        states = [checkpoint.read_newest(folder / "runs" / run) for folder in (cut, whole)]
        assert [step for *_, step in states] == [EPOCHS * 12] * 2
        jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])

    page = Path(tmp_path / "page.md")
    words = ["-m", "dppmask_jax.compare", f"--results={cut / 'results'}", f"--page={page}"]
    assert tiny.run([sys.executable, *words]).returncode == 0
    first = page.read_bytes()
    assert tiny.run([sys.executable, *words]).returncode == 0
    assert page.read_bytes() == first
    about = json.loads((cut / "results" / published.STUDIES).read_text())
    assert all(run["seconds"] > 0 for run in about["small"]["runs"])
