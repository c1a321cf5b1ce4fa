"""Recipes of generated images as they are, ended early: what is learned shows in k-NN accuracy."""

import signal
import sys

import faults
import pytest
import tiny
from test_training import curve

pytestmark = pytest.mark.slow


# iBOT, DINO and ADIOS take minutes; the hybrid is MoCo and MAE, which have runs of their own.
@pytest.mark.parametrize(
    ("recipe", "epochs", "least_gain"),
    [
        pytest.param("configs/ibot.py:dataset=shapes", 4.0, 0.03, marks=pytest.mark.long),
        ("configs/moco.py:dataset=shapes", 1.5, 0.05),
        pytest.param(
            "configs/hybrid.py:dataset=shapes,mask=dpp", 2.0, 0.08, marks=pytest.mark.long
        ),
        pytest.param("configs/dino.py:dataset=shapes", 4.0, 0.03, marks=pytest.mark.long),
        pytest.param("configs/adios.py:dataset=shapes", 1.0, 0.08, marks=pytest.mark.long),
    ],
    ids=lambda value: value.split("/")[1].split(".")[0] if isinstance(value, str) else "",
)
def test_a_part_of_a_recipe_raises_knn(recipe, epochs, least_gain, tmp_path):
    run = tmp_path / "run"
    life = faults.Life(
        [
            sys.executable, "train.py", f"--config={recipe}", f"--workdir={run}",
            f"--config.evaluate.every_epochs={epochs}", "--config.evaluate.loss_images=0",
            "--config.evaluate.knn_images=1000",
        ],
        tiny.environment(1) | {"XLA_FLAGS": ""},  # the tests' own flags make the code slow
        tmp_path / "said.txt",
    )  # fmt: skip

    def accuracies():
        return [record["knn"] for record in curve(run) if "knn" in record]

    life.wait_until(lambda: len(accuracies()) == 2, "the probe after some epochs", poll=0.5)
    life.send(signal.SIGKILL)
    life.end()
    untrained, trained = accuracies()
    assert trained > untrained + least_gain
