"""The command that runs every benchmark of speed, with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

COMMAND = Path(__file__).parent.parent / "benchmarks" / "all.py"


@pytest.mark.long  # five minutes of a core
def test_every_benchmark_runs_and_leaves_its_figures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (300, 280, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.jpg")
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, COMMAND, out, "--tiny", f"--images={tmp_path / 'images'}"],
        env=tiny.environment(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-1000:]

    def figures(name):
        assert (out / f"{name}.txt").read_text().strip()
        return json.loads((out / f"{name}.json").read_text())

    assert json.loads((out / "hardware.json").read_text())["backend"] == "cpu"
    assert figures("selector")["ms_per_image"]["select, tau 0.9"]["median"] > 0
    assert {one["patches"] for one in figures("selector_sizes")} == {196, 784, 1024, 3136}
    for name in ("train_step", "train_step_dpp", "ibot_step", "input"):
        assert figures(name)
