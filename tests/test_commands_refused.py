"""Weights and figures as commands: bad input ends them in one line, with status 2."""

import sys

import exported
import pytest
import tiny

from dppmask_jax.weights.exporting import export_weights


def command(module, *arguments):
    return [sys.executable, "-m", f"dppmask_jax.{module}", *map(str, arguments)]


def test_bad_input_is_one_line_and_status_2(tmp_path):
    path = export_weights(exported.run(tmp_path / "mae"), tmp_path / "a.safetensors", "mae")
    run = tmp_path / "run"
    tiny.assert_refused(
        {
            "weights": (
                command("weights", "import", path, "--format=mae", f"--workdir={run}"),
                "add --image_size",
            ),
            "figures": (command("figures", "--workdir=/nowhere/at/all"), "/nowhere/at/all"),
        }
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "mae"]


WRONG = [
    ((), "say import FILE"),
    (("import", "a.safetensors", "b"), "takes other arguments"),
    (("import", "a.safetensors", "--workdir=x"), "--format= is not allowed: mae |"),
    (("import", "a.safetensors", "--format=mae"), "--workdir is missing"),
    (("export", "runs/none", "--format=mae"), "takes other arguments"),
    (
        ("export", "runs/none", "b.safetensors", "--format=mae", "--allow-missing=norm"),
        "--allow_missing is for",
    ),
    (("export", "runs/none", "b.safetensors", "--format=mae"), "there is no checkpoint"),
    (("import", "a", "--format=mae", "--workdir=x", "--image_size=16"), "not 2 whole numbers"),
    (("import", "a", "--format=mae", "--workdir=x", "--config=none.py"), "no config file none.py"),
    (("import", "a", "--format=mae", "--workdir=x", "--config=configs/eval.py"), "mae or ibot"),
]


@pytest.mark.slow
def test_wrong_arguments_are_named():
    cases = {" ".join(words): (command("weights", *words), say) for words, say in WRONG}
    tiny.assert_refused(cases | {"figures": (command("figures"), "--workdir")})
