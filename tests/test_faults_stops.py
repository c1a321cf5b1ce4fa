"""Runs of train.py and eval.py stopped by signals, by each other, and by the loss of a process."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import faults
import pytest
import tiny

from dppmask_jax.errors import InputError
from dppmask_jax.runs import lock
from dppmask_jax.training import signals

CHANGES = {
    "epochs": 8.0,
    "checkpoint__every": 1000,
    "evaluate__knn_images": 0,
    "evaluate__loss_images": 24,
    "evaluate__every_epochs": 2.0,
}
STEPS = 96
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECONDS_TO_STOP = 60  # generous, for machines that do much else
SECONDS_TO_NOTICE = 60  # of a lost process, by tests/impatient.py


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Tests under nohup, which ignores SIGHUP, would hand that down to the runs they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# In this process.


class ActedUpon(Exception):
    pass


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    received = []
    before = {n: signal.signal(n, lambda n, _: received.append(n)) for n in SIGNALS}
    own = signal.getsignal(number)
    try:
        with pytest.raises(ActedUpon), signals.noted() as asked:
            assert asked() == 0
            os.kill(os.getpid(), number)
            assert asked() == 128 + number
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGTERM)  # no second one changes the answer
            assert asked() == 128 + number
            raise ActedUpon
        assert signal.getsignal(number) is own and received == []
        with signals.noted():
            os.kill(os.getpid(), number)
            assert received == []
        assert received == [number], "a signal that nobody acted upon is lost"
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.noted() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked() == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


HOLD = """
import sys, time
from pathlib import Path
from dppmask_jax.runs import lock
with lock.held(Path(sys.argv[1]), ".lock"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path):
    folder = tmp_path / "deep" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=tiny.ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    refused = pytest.raises(InputError, match=f"in use by process {holder.pid} on .* since")
    with refused, lock.held(folder, ".lock"):
        raise AssertionError
    with lock.held(folder, ".lock_eval_knn"):
        pass
    holder.kill()
    holder.communicate()
    assert (folder / ".lock").exists()
    with lock.held(folder, ".lock"):
        pass
    assert not (folder / ".lock").exists()
    with lock.held(tmp_path / "other" / "run", ".lock"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_file_system_without_locks_is_named_and_written_to(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock.held(tmp_path, ".lock"):
        assert "no locks on this file system; keep other runs out yourself" in caplog.text
    assert not list(tmp_path.iterdir())


# Whole runs.


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    status, said = faults.run(
        tiny.command(workdir, **CHANGES), tiny.environment(1), workdir.parent / "alone.txt"
    )
    assert status == 0, said
    return workdir


@pytest.mark.slow
def test_sigterm_sigint_and_sighup_save_and_no_step_is_made_twice(alone, tmp_path):
    workdir = tmp_path / "run"
    command, env = tiny.command(workdir, **CHANGES), tiny.environment(1)
    reached = 0
    for number in SIGNALS:
        life = faults.Life(command, env, tmp_path / f"{number}.txt")
        life.wait_for_step(workdir, reached + 8)
        life.send(number)
        status, seconds = life.end()
        print(f"{signal.Signals(number).name}: ended after {seconds:.1f} s")
        assert status == 128 + number and seconds < SECONDS_TO_STOP, life.said()
        assert life.started_at() == reached
        reached = faults.last_step(workdir)
        assert reached < STEPS, "it ended before it could be stopped"
        (line,) = re.findall(r"^SIG(?:TERM|INT|HUP): stopped.*", life.said(), re.M)
        assert line.endswith(
            f"after step {reached} of {STEPS}; the same command resumes at step {reached}"
        )
        assert "Traceback" not in life.said()
        assert str(reached) in faults.checkpoint_names(workdir)
    status, said = faults.run(command, env, tmp_path / "last.txt")
    assert status == 0 and f"resuming at step {reached}\n" in said
    faults.assert_same_run(workdir, alone)
    faults.assert_tidy(workdir, reached, STEPS)


@pytest.mark.slow
def test_a_second_sigint_stops_at_once(tmp_path):
    workdir = tmp_path / "run"
    # A long measurement before the first step, which one SIGINT would wait for.
    changes = CHANGES | {
        "data__source": "shapes:size=64,train=4000,val=1000",  # which the recipes draw
        "evaluate__knn_images": 4000,
    }
    life = faults.Life(tiny.command(workdir, **changes), tiny.environment(1), tmp_path / "out.txt")
    life.wait_until(lambda: (workdir / "tensorboard").exists(), "the measurement")
    life.send(signal.SIGINT)
    life.wait_until(lambda: "Ctrl-C stops at once" in life.said(), "the first SIGINT's answer")
    life.send(signal.SIGINT)
    status, _ = life.end()
    # The first alone would end it with 130, after the measurement.
    assert status == -signal.SIGINT, life.said()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM, signal.SIGKILL),
        pytest.param((signal.SIGHUP,), marks=pytest.mark.long),
    ],
)
def test_loader_processes_leave_signals_alone_and_end_with_the_run(signals, alone, tmp_path):
    """Schedulers and terminals signal all processes of a job; a kill may hit the main one only."""
    workdir = tmp_path / "run"
    command = tiny.command(workdir, **CHANGES, data__workers=2)
    env = tiny.environment(1)
    for number in signals:
        life = faults.Life(command, env, tmp_path / f"{number}.txt", own_session=True)
        life.wait_for_step(workdir, faults.last_step(workdir) + 10)
        if number == signal.SIGKILL:
            life.send(number)
            assert life.end()[0] == -number
        else:
            os.killpg(life.process.pid, number)
            status, seconds = life.end()
            assert status == 128 + number and seconds < SECONDS_TO_STOP, life.said()
            assert f"resumes at step {faults.last_step(workdir)}" in life.said()
        with pytest.raises(ProcessLookupError):  # none of the group is left
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                os.killpg(life.process.pid, 0)
                time.sleep(0.1)
    status, said = faults.run(command, env, tmp_path / "last.txt")
    assert status == 0, said
    faults.assert_same_run(workdir, alone)


@pytest.mark.slow
def test_a_fine_tuning_stops_and_goes_on(alone, tmp_path):
    env = tiny.environment(1)

    def command(folder):
        return [
            sys.executable, "eval.py", "--config=configs/eval.py:task=finetune,dataset=shapes",
            f"--checkpoint={alone}", f"--workdir={folder}", "--config.epochs=6.0",
            "--config.batch_size=8", "--config.log_every=1", "--config.seeds=(0, 1)",
        ]  # fmt: skip

    status, said = faults.run(command(tmp_path / "alone"), env, tmp_path / "alone.txt")
    assert status == 0, said
    seed = tmp_path / "stopped" / "eval_finetune" / "seed-1"
    life = faults.Life(command(tmp_path / "stopped"), env, tmp_path / "stopped.txt")
    life.wait_for_step(seed, 12)
    life.send(signal.SIGTERM)
    status, seconds = life.end()
    reached = faults.last_step(seed)
    assert status == 143 and seconds < SECONDS_TO_STOP, life.said()
    assert f"resumes at step {reached}" in life.said()
    status, said = faults.run(command(tmp_path / "stopped"), env, tmp_path / "again.txt")
    assert status == 0 and f"resuming at step {reached}," in said
    for number in (0, 1):
        name = f"eval_finetune/seed-{number}"
        faults.assert_same_run(tmp_path / "stopped" / name, tmp_path / "alone" / name)


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_lives(alone, tmp_path):
    workdir, env = tmp_path / "run", tiny.environment(1)
    changes = CHANGES | {"epochs": 400.0, "checkpoint__every": 4}
    command = tiny.command(workdir, **changes)
    first = faults.Life(command, env, tmp_path / "first.txt")
    first.wait_for_step(workdir, 9)

    status, said = faults.run(command, env, tmp_path / "second.txt")
    assert status == 2 and said.count("\n") == 1, said
    assert f"{workdir} is in use by process {first.process.pid} on " in said
    second = faults.two_processes(workdir, env, tmp_path / "two", **changes)
    for life in second:
        status, _ = life.end()
        assert status == 2, life.said()
    assert f"in use by process {first.process.pid} on" in second[0].said()
    knn = [
        sys.executable, "eval.py", "--config=configs/eval.py:task=knn,dataset=shapes",
        f"--checkpoint={workdir}",
    ]  # fmt: skip
    status, said = faults.run(knn, env, tmp_path / "knn.txt")
    assert status == 0 and (workdir / "eval_knn.json").exists(), said

    assert first.process.poll() is None, first.said()
    first.send(signal.SIGKILL)
    first.end()
    assert (workdir / ".lock").exists()
    third = faults.Life(command, env, tmp_path / "third.txt")
    third.wait_until(lambda: third.started_at(), "a resume")
    third.send(signal.SIGKILL)
    third.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signalled",
    [
        (0,),
        pytest.param((1,), marks=pytest.mark.long),
        pytest.param((0, 1), marks=pytest.mark.long),
    ],
)
def test_two_processes_stop_after_the_same_step(tmp_path, signalled):
    workdir, env = tmp_path / "run", tiny.environment(1)
    lives = faults.two_processes(workdir, env, tmp_path / "first", **CHANGES)
    lives[0].wait_for_step(workdir, 10)
    for number in signalled:
        lives[number].send(signal.SIGTERM)
    for life in lives:
        status, seconds = life.end()
        assert status == 143 and seconds < SECONDS_TO_STOP, life.said()
    reached = faults.last_step(workdir)
    assert reached < STEPS, "they ended before they could be stopped"
    assert f"resumes at step {reached}" in lives[0].said()
    assert f"stopped after step {reached} of {STEPS}" in lives[1].said()
    assert faults.checkpoint_names(workdir) == [str(reached)]

    lives = faults.two_processes(workdir, env, tmp_path / "again", **CHANGES)
    for life in lives:
        status, _ = life.end()
        assert status == 0, life.said()
    assert lives[0].started_at() == reached
    logged = [record["step"] for record in faults.curve(workdir) if "loss" in record]
    assert logged == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("killed", [1, pytest.param(0, marks=pytest.mark.long)])
def test_the_other_of_two_processes_ends_and_both_go_on(tmp_path, killed):
    env = tiny.environment(1) | {"PYTHONPATH": str(tiny.ROOT)}
    changes = CHANGES | {"checkpoint__every": 4}
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    script = "tests/impatient.py"
    lives = faults.two_processes(workdir, env, tmp_path / "first", script=script, **changes)
    lives[0].wait_for_step(workdir, 22)
    lives[killed].send(signal.SIGKILL)
    lives[killed].end()
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(lives[1 - killed].end)
        # It waits for a while: time for a run that nobody disturbs.
        for life in faults.two_processes(alone, env, tmp_path / "undisturbed", **changes):
            status, _ = life.end()
            assert status == 0, life.said()
        status, seconds = ended.result()
    print(f"process {killed} killed: the other ended with {status} after {seconds:.1f} s")
    assert status not in (0, None) and seconds < SECONDS_TO_NOTICE
    before = faults.last_step(workdir)
    assert before < STEPS, "they ended before one could be killed"

    lives = faults.two_processes(workdir, env, tmp_path / "again", **changes)
    for life in lives:
        status, _ = life.end()
        assert status == 0, life.said()
    assert 0 <= before - lives[0].started_at() <= 4
    faults.assert_same_run(workdir, alone)
    faults.assert_tidy(workdir, STEPS - 4, STEPS)
