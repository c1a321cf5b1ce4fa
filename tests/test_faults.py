"""Whole runs of train.py that meet numbers that are not finite, or files that cannot be read."""

import subprocess
import time

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax.runs import checkpoint, metrics


def records(workdir):
    return metrics.read_metrics(workdir / "metrics.jsonl")


def assert_one_line(done, status):
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", pytest.param("ibot", marks=pytest.mark.long)])
def test_a_run_that_diverges_stops_with_the_cures_and_keeps_a_finite_checkpoint(method, tmp_path):
    """An absurd learning rate: after a few steps all are skipped."""
    command = tiny.command(
        tmp_path, "--config.optim.base_lr=1e6", method=method, epochs=4.0, log_every=20,
        checkpoint__every=2, checkpoint__keep=9, optim__max_bad_steps=5, optim__warmup_epochs=0.0,
        optim__freeze_last_layer_epochs=0.0, evaluate__every_epochs=9.0, evaluate__knn_images=0,
    )  # fmt: skip
    command = [word for word in command if method == "ibot" or "freeze" not in word]
    error = assert_one_line(tiny.run(command), 3)
    assert "6 steps in a row" in error and "lower optim.base_lr" in error
    skipped = [record for record in records(tmp_path) if "bad_steps" in record]
    assert [record["bad_steps"] for record in skipped[-6:]] == [1, 2, 3, 4, 5, 6]
    assert all(record["loss"] is None or record["grad_norm"] is None for record in skipped)
    _, saved, step = checkpoint.read_newest(tmp_path)
    assert step < skipped[-1]["step"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved))

    # The count goes on from the checkpoint, and the record of each step stands there once.
    again = assert_one_line(tiny.run(command), 3)
    assert again == error
    assert [record for record in records(tmp_path) if "bad_steps" in record] == skipped


def images_in(folder, count):
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3))):
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")


@pytest.mark.slow
def test_images_that_go_while_a_run_trains_are_counted_named_and_at_last_too_many(tmp_path):
    images, workdir = tmp_path / "images", tmp_path / "run"
    images_in(images, 40)
    command = tiny.command(
        workdir, data__source=f"folder:{images}", data__val_fraction=0.1, epochs=4000.0,
        data__max_bad_frac=0.2, evaluate__knn_images=0, evaluate__loss_images=0,
        checkpoint__every=1000, log_every=5, evaluate__every_epochs=4000.0,
    )  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tiny.ROOT, env=tiny.environment(1), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() or len(records(workdir)) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    before = records(workdir)[-1]["step"]
    for path in sorted(images.iterdir())[::3]:
        path.unlink()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 2 and "Traceback" not in err, err
    error = err.splitlines()[-1]
    assert "were unreadable, more than data.max_bad_frac=0.2" in error
    named = {line for line in out.splitlines() if line.startswith("unreadable image: ")}
    gone = {
        f"unreadable image: {images}/{i:02}.png: No such file or directory" for i in range(0, 40, 3)
    }
    assert named and named <= gone and out.count("unreadable image") == len(named)
    counts = [record.get("bad_images", 0) for record in records(workdir) if "loss" in record]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] > 0.2 * 36
    assert f"{counts[-1]} of the" in error
    assert all(r.get("bad_images", 0) == 0 for r in records(workdir) if r["step"] <= before)
