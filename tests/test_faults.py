"""Whole runs of train.py that meet numbers that are not finite, or files that cannot be read."""

import jax
import numpy as np
import pytest
import tiny

from dppmask_jax import checkpoint, metrics


def records(workdir):
    return metrics.read_metrics(workdir / "metrics.jsonl")


def assert_one_line(done, status):
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", "ibot"])
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
