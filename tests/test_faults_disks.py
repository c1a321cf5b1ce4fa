"""Checkpoints that rot, disks that are full, disks that turn read-only."""

import contextlib
import gc
import logging
import re
import subprocess
import time

import faults
import jax
import numpy as np
import pytest
import tiny

from dppmask_jax.errors import InputError
from dppmask_jax.runs import checkpoint, integrity, metrics
from dppmask_jax.trackers import tensorboard

KEY = jax.random.key(0)
META = {"config": {"method": "none"}}
# orbax' notes on a checkpoint, which nothing here reads.
UNREAD = {"_CHECKPOINT_METADATA", "commit_success.txt"}

needs_mount = pytest.mark.skipif(
    not faults.is_root_with_mounts(), reason="only root may mount a small disk"
)


def state_of(step, size=100):
    rng = np.random.default_rng(step)
    return {
        "params": {"w": rng.normal(size=size).astype(np.float32)},
        "step": np.full((), step, np.int32),
    }


def save(folder, *steps, keep=9):
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=keep)
    for step in steps:
        checkpoints.save(step, state_of(step), META)
    checkpoints.close()


def restored(folder):
    step, _, damaged = checkpoint.newest(folder)
    checkpoint.check_fits(folder, step, state_of(0))
    state = checkpoint.restore(folder, step, state_of(0))
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    return step, damaged


def files_of(folder, step):
    path = folder / checkpoint.FOLDER / str(step)
    return sorted(file for file in path.rglob("*") if file.is_file())


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "garbled": lambda file: file.write_bytes(b"\x00garbled\xff" * 9),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found_and_named(tmp_path, damage, caplog):
    save(tmp_path, 1, 2)
    found = 0
    for file in files_of(tmp_path, 2):
        before = file.read_bytes()
        DAMAGES[damage](file)
        name = str(file.relative_to(tmp_path / checkpoint.FOLDER / "2"))
        caplog.clear()
        if name in UNREAD:
            assert restored(tmp_path) == (2, [])
            assert not caplog.records
        else:
            assert restored(tmp_path) == (1, [2])
            assert checkpoint.read_newest(tmp_path, ("params",))[2] == 1
            if name != integrity.MANIFEST or damage != "flipped":
                assert name in caplog.text
            assert not [r for r in caplog.records if r.exc_info and r.levelno > logging.DEBUG]
            found += 1
        file.write_bytes(before)
    assert restored(tmp_path) == (2, [])
    assert found >= 8


def test_any_byte_of_the_arrays_counts(tmp_path):
    save(tmp_path, 2)
    arrays = [file for file in files_of(tmp_path, 2) if file.match("state/d/*")]
    largest = max(arrays, key=lambda file: file.stat().st_size)
    whole = largest.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        for bit in (0, 7):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            largest.write_bytes(data)
            with pytest.raises(InputError, match=r"none of the checkpoints .* is whole"):
                checkpoint.newest(tmp_path)
    largest.write_bytes(whole)
    assert restored(tmp_path) == (2, [])


def test_a_fault_of_our_own_is_not_taken_for_damage(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)

    def broken(path, tree):
        raise ValueError("a fault in the code that reads")

    monkeypatch.setattr(checkpoint, "_load", broken)
    with pytest.raises(ValueError, match="a fault in the code"):
        checkpoint.read_newest(tmp_path, ("params",))


def test_a_half_written_checkpoint_is_cleared_away(tmp_path):
    save(tmp_path, 1)
    partial = tmp_path / checkpoint.FOLDER / "2.orbax-checkpoint-tmp" / "state"
    partial.mkdir(parents=True)
    (partial / "some").write_text("half")
    assert restored(tmp_path) == (1, [])
    save(tmp_path, 3)
    assert faults.checkpoint_names(tmp_path) == ["1", "3"]


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def read_only(folder):
    """Makes a folder read-only for everybody, root and running processes among them."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Fills a disk to the last byte; returns the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return filler


@needs_mount
def test_a_save_on_a_full_disk_fails_alone(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        save(disk, 1, 2, keep=2)
        checkpoints = checkpoint.Checkpoints(disk / checkpoint.FOLDER, keep=2)
        for step in (3, 4):
            with pytest.raises(checkpoint.SaveFailed, match="No space left") as failed:
                checkpoints.save(step, state_of(step, size=500_000), META)
                checkpoints.wait()
            assert failed.value.step == step
            assert faults.checkpoint_names(disk) == ["1", "2"] and restored(disk) == (2, [])
        filler = fill(disk)
        with pytest.raises(checkpoint.SaveFailed, match="No space left"):
            checkpoints.save(5, state_of(5), META)
            checkpoints.wait()
        assert restored(disk) == (2, [])
        filler.unlink()
        checkpoints.save(6, state_of(6), META)
        checkpoints.close()
        assert restored(disk) == (6, [])
        assert faults.checkpoint_names(disk) == ["2", "6"]


@needs_mount
def test_nothing_of_a_failed_save_comes_later(tmp_path, caplog):
    rng = np.random.default_rng(0)
    state = {f"layer_{i}": rng.normal(size=3000).astype(np.float32) for i in range(100)}
    failed = 0
    with small_disk(tmp_path / "disk", "6m") as disk:
        checkpoints = checkpoint.Checkpoints(disk / checkpoint.FOLDER, keep=1)
        checkpoints.save(1, state, META)
        checkpoints.wait()
        newest = 1
        # Room for nothing, for some arrays, for all of them but not for what follows, for all.
        for step, room in enumerate((0, 0, 40_000, 120_000, 600_000, 1_150_000, 1_200_000), 2):
            filler = fill(disk)
            with filler.open("r+b") as file:
                file.truncate(filler.stat().st_size - room)
            try:
                checkpoints.save(step, state, META)
                checkpoints.wait()
            except checkpoint.SaveFailed:
                failed += 1
            else:
                newest = step
            assert faults.checkpoint_names(disk) == [str(newest)]
            time.sleep(0.1)
            assert faults.checkpoint_names(disk) == [str(newest)]
            filler.unlink()
        checkpoints.close()
    gc.collect()
    assert failed >= 5
    assert not [record for record in caplog.records if record.name == "asyncio"]


@needs_mount
def test_records_wait_for_room_and_stand_once(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "256k") as disk:
        said = []
        log = metrics.MetricsLog(disk, None, said.append)
        log.write(1, {"loss": 1.0})
        filler = fill(disk)
        monkeypatch.setattr(tensorboard, "_FLUSH_SECONDS", 0)
        for step in range(2, 2002):  # more than the rest of a page holds
            log.write(step, {"loss": 1.0})
        assert len([line for line in said if "metrics.jsonl cannot be written" in line]) == 1
        assert len([line for line in said if "tensorboard/ cannot be written" in line]) == 1
        with pytest.raises(OSError, match="No space left"):
            log.flush()
        filler.unlink()
        log.flush()
        log.write(2002, {"loss": 2.0})
        log.close()
        records = metrics.read_metrics(disk / "metrics.jsonl")
        assert [record["step"] for record in records] == list(range(1, 2003))


# Whole runs.

CHANGES = {
    "epochs": 8.0,
    "checkpoint__every": 8,
    "evaluate__knn_images": 0,
    "evaluate__loss_images": 24,
    "evaluate__every_epochs": 4.0,
}
PATIENT = {"checkpoint__max_failed_saves": 12}  # more than can fail
STEPS = 96


@pytest.fixture(scope="module")
def env():
    return tiny.environment(1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, env):
    """A run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    status, said = faults.run(tiny.command(workdir, **CHANGES), env, workdir.parent / "alone.txt")
    assert status == 0, said
    return workdir


@pytest.mark.slow
def test_a_run_falls_back_from_damage_and_stops_where_nothing_is_left(alone, env, tmp_path):
    workdir = tmp_path / "run"
    command = tiny.command(workdir, **CHANGES)
    life = faults.Life(command, env, tmp_path / "first.txt")
    life.wait_for_step(workdir, 26)
    life.send(9)
    life.end()
    # The one before them may not have been removed yet.
    steps = sorted(int(name) for name in faults.checkpoint_names(workdir) if name.isdigit())
    older, newest = steps[-2:]
    flip(max(files_of(workdir, newest), key=lambda file: file.stat().st_size))
    status, said = faults.run(command, env, tmp_path / "second.txt")
    assert status == 0, said
    assert f"checkpoint {newest} in {workdir}/checkpoints is damaged: state/" in said
    assert f"resuming at step {older}\n" in said and "Traceback" not in said
    faults.assert_same_run(workdir, alone)
    faults.assert_tidy(workdir, STEPS - 8, STEPS)

    for step in (STEPS - 8, STEPS):
        for file in files_of(workdir, step):
            file.write_bytes(b"")
    before = (workdir / "metrics.jsonl").read_bytes()
    status, said = faults.run(command, env, tmp_path / "third.txt")
    assert status == 2 and "Traceback" not in said, said
    assert "error: none of the checkpoints in" in said.splitlines()[-1]
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert faults.checkpoint_names(workdir) == [str(STEPS - 8), str(STEPS)]

    (workdir / checkpoint.FOLDER).rename(tmp_path / "gone")
    status, said = faults.run(command, env, tmp_path / "fourth.txt")
    assert status == 2 and said.count("\n") == 1 and "none of its checkpoints" in said, said
    assert (workdir / "metrics.jsonl").read_bytes() == before


@needs_mount
@pytest.mark.slow
def test_a_full_disk_is_survived_or_ends_the_run(alone, env, tmp_path):
    with small_disk(tmp_path / "disk", "40m") as disk:
        workdir = disk / "run"
        command = tiny.command(workdir, **CHANGES)
        life = faults.Life(command, env, tmp_path / "full.txt")
        life.wait_until(lambda: "16" in faults.checkpoint_names(workdir), "checkpoint 16")
        with life.held():
            filler = fill(disk)
        status, _ = life.end()
        said = life.said()
        assert status == 1 and "Traceback" not in said, said
        failed = [line for line in said.splitlines() if "could not be saved" in line]
        assert len(failed) == 3 and "3 of config.checkpoint.max_failed_saves=3" in failed[-1]
        stays = int(re.search(r"No space left on device.*checkpoint (\d+) stays", failed[0])[1])
        last = said.splitlines()[-1]
        assert "3 saves in a row failed" in last and f"resumes at step {stays}" in last
        assert not [name for name in faults.checkpoint_names(workdir) if "tmp" in name]

        filler.unlink()
        command = tiny.command(workdir, **CHANGES, **PATIENT)
        life = faults.Life(command, env, tmp_path / "room.txt")
        life.wait_until(lambda: faults.last_step(workdir) <= stays, "records cut back")
        life.wait_for_step(workdir, 34)
        with life.held():
            filler = fill(disk)
        life.wait_until(lambda: "could not be saved" in life.said(), "a failed save")
        filler.unlink()
        status, _ = life.end()
        assert status == 0 and life.started_at() == stays, life.said()
        assert "Traceback" not in life.said()
        faults.assert_same_run(workdir, alone)
        faults.assert_tidy(workdir, STEPS - 8, STEPS)


@needs_mount
@pytest.mark.slow
def test_a_disk_that_turns_read_only_is_survived(alone, env, tmp_path):
    workdir = tmp_path / "run"
    command = tiny.command(workdir, **CHANGES, **PATIENT)
    life = faults.Life(command, env, tmp_path / "out.txt")
    life.wait_until(lambda: "16" in faults.checkpoint_names(workdir), "checkpoint 16")
    with contextlib.ExitStack() as mounted:
        with life.held():
            mounted.enter_context(read_only(workdir / checkpoint.FOLDER))
        life.wait_until(lambda: "could not be saved" in life.said(), "a failed save")
    status, _ = life.end()
    assert status == 0, life.said()
    assert "could not be saved: Read-only file system" in life.said()
    faults.assert_same_run(workdir, alone)

    with read_only(workdir):
        status, said = faults.run(command, env, tmp_path / "start.txt")
    assert status == 2 and said.count("\n") == 1 and "cannot be written" in said, said
