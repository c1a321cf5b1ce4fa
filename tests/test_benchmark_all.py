"""The command that runs every benchmark of speed, with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from benchmarks import all_table, marked
from benchmarks.all import commands as benchmarks

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
    step = figures("train_step")["contestants"]["ours"]
    assert step["ms"]["min"] <= step["ms"]["median"] <= step["ms"]["max"]
    for name in ("train_step_dpp", "ibot_step", "attention", "input"):
        assert figures(name)
    layers = json.loads((out / "attention.json").read_text())["layers"]
    assert layers.keys() == {"encoder", "decoder"}
    for rivals in layers.values():
        assert rivals.keys() == {"ours", "XLA"}
        assert all(one["error"] < 1e-5 for one in rivals.values())
    table = (out / "table.md").read_text()
    for measured in ("random masks: ours", "dpp masks: ours", "iBOT", "3,136 patches", "input, "):
        assert measured in table


def test_the_table_says_what_was_measured():
    def times(median):
        return {"median": median, "min": median / 2, "max": 2 * median}

    def step(mask, **ms):
        return {
            "size": "B", "batch": 256, "dtype": "bfloat16", "mask": mask,
            "contestants": {
                name: {"images_per_sec": 256e3 / one, "ms": times(one)} for name, one in ms.items()
            },
            "times_faster": 1.5 if "PyTorch" in ms else None,
            "matmul_flop_per_sec": 6e14, "share_of_matmul_rate": 0.42,
        }  # fmt: skip

    found = {
        "hardware": {
            "devices": 1, "device_kind": "a GPU", "cpu": "a CPU", "cores": 16,
            "load_average": 0.5, "versions": {"jax": "0.11", "torch": None},
        },
        "train_step": step("random", ours=50.0, PyTorch=75.0),
        "train_step_dpp": step("dpp", ours=51.2),
        "selector": {"batch": 1024, "ms_per_image": {"select, tau 0.9": times(0.001)}},
        "attention": {
            "batch": 256, "dtype": "bfloat16",
            "layers": {"decoder": {
                "ours": {"ms": times(2.0), "error": 1e-3},
                "cuDNN": {"ms": times(1.0), "error": 2e-3},
            }},
        },
    }  # fmt: skip
    sentence, _, _, _, *rows = all_table.table(found).splitlines()
    assert sentence == "1 x a GPU; a CPU, 16 cores, load average 0.5; jax 0.11."
    title = "MAE ViT-B/16, batch 256, bfloat16"
    product = "42% of the rate of a large product, 600 TFLOP/s"
    attention = "attention of MAE's decoder, batch 256, bfloat16"
    assert [tuple(row.strip("| ").split(" | ")) for row in rows] == [
        (
            f"{title}, random masks: ours", "5,120 (2,560 to 10,240) images/s",
            f"1.50 times the better of PyTorch; {product}",
        ),
        (f"{title}, random masks: PyTorch", "3,413 (1,707 to 6,827) images/s"),
        (
            f"{title}, dpp masks: ours", "5,000 (2,500 to 10,000) images/s", product
        ),
        (
            "selection, 196 patches, tau 0.9, batch 1024",
            "1,000,000 (500,000 to 2,000,000) images/s",
            "0.50% of MAE's step with DPP masks, batch 256",
        ),
        (f"{attention}: ours", "2 (1 to 4) ms", "error 1.0e-03"),
        (f"{attention}: cuDNN", "1 (0.5 to 2) ms", "0.50 times as long as ours; error 2.0e-03"),
    ]  # fmt: skip


def test_every_benchmark_of_an_accelerator_has_a_tiny_form():
    for backend in ("cpu", "gpu"):
        found = benchmarks(backend, None, None, True)
        assert {name for name, command in found.items() if "--alone" in command} == {
            "train_step_dpp"
        }
    assert found.keys() == {
        "selector", "selector_sizes", "train_step", "train_step_512", "train_step_dpp",
        "ibot_step", "attention", "input",
    }  # fmt: skip


def test_a_table_takes_the_place_between_its_marks(tmp_path):
    page, first, last = tmp_path / "page.md", "<!-- speed: a.py -->", "<!-- end of speed -->"
    page.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    table = marked.markdown(("a", r"b\1"), [("1", "2")])
    for _ in range(2):
        marked.write(page, "a.py", {"speed": table})
        lines = page.read_text().splitlines()
        assert lines == [
            "before",
            first,
            r"| a | b\1 |",
            "| --- | --- |",
            "| 1 | 2 |",
            last,
            "after",
        ]
    for path, words in ((page, "has not the lines"), (tmp_path / "none.md", "is no file")):
        with pytest.raises(SystemExit, match=words):
            marked.write(path, "b.py", {"speed": table})
    assert page.read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("flags", "words"),
    [(["--tiny", "--page=x.md"], "--tiny makes none"), (["--page=x.md"], "x.md is no file")],
)
def test_a_page_that_cannot_be_filled_is_refused(flags, words, tmp_path):
    done = subprocess.run(
        [sys.executable, COMMAND, tmp_path / "out", *flags], capture_output=True, text=True
    )
    assert done.returncode != 0 and words in done.stderr
    assert not (tmp_path / "out").exists()
