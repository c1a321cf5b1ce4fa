"""MoCo v3 through the commands: what a run writes, how it goes on, what reads it."""

import json

import jax
import numpy as np
import pytest
import tiny
from test_training import curve, kill_and_resume

import dppmask_jax
from dppmask_jax import evaluate
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.run import load_run

pytestmark = pytest.mark.slow
RUN = {
    "method": "moco",
    "evaluate__figure_images": 2,
    "epochs": 2.0,
    "model__width": 24,
    "model__heads": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("moco") / "run"
    done = tiny.run(tiny.command(workdir, **RUN))
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_a_run_writes_what_it_promises(finished):
    workdir, out = finished
    for words in ("negatives   7 of each query", "moco 24x2x2/4", "k-NN"):
        assert words in out, words
    assert "\nmasks" not in out
    records = [record for record in curve(workdir) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 25))
    for name in (
        "contrast_accuracy", "positive_cosine", "negative_cosine", "spread", "effective_rank",
    ):  # fmt: skip
        assert all(np.isfinite(record[name]) for record in records), name
    probed = [record for record in curve(workdir) if "knn" in record]
    assert [record["step"] for record in probed] == [0, 6, 12, 18, 24]
    assert all(0 < record["val_loss"] < 2 * np.log(8) for record in probed)
    names = sorted(path.name for path in (workdir / "figures").iterdir())
    assert names == ["attention.png", "curves.png"]
    tokens = dppmask_jax.load_encoder(workdir)(np.zeros((2, 16, 16, 3), np.uint8))
    assert tokens["cls"].shape == (2, 24) and tokens["patches"].shape == (2, 16, 24)


def test_nearest_neighbours_are_those_of_the_encoder_that_is_trained(finished, tmp_path):
    workdir, _ = finished
    state = checkpoint.read_newest(workdir)[1]
    images = np.full((1, 16, 16, 3), 99, np.uint8)
    found = dppmask_jax.load_encoder(workdir)(images)["cls"]
    run = load_run(workdir)
    for encoder, same in (
        (state["params"]["encoder"], True), (state["extra"]["momentum"]["encoder"], False)
    ):  # fmt: skip
        tokens = run.method.encoder.encode(encoder, normalize(images))
        assert np.allclose(tokens.cls, found, rtol=1e-4, atol=1e-5) == same
    record = json.loads(
        evaluate.evaluate(tiny.evaluation("task=knn"), workdir, tmp_path).read_text()
    )
    assert 0 < record["score"]["value"] <= 1


def test_a_killed_run_goes_on_with_the_same_numbers(finished, tmp_path):
    workdir, _ = finished
    victim = tmp_path / "run"
    kill_and_resume(tiny.command(victim, **RUN), victim)
    assert curve(victim) == curve(workdir)
    one, other = (checkpoint.read_newest(folder)[1] for folder in (victim, workdir))
    assert "momentum" in one["extra"]
    jax.tree.map(np.testing.assert_array_equal, one, other)
