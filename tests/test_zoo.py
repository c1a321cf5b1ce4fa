"""The encoders that come with the package."""

import json
import re
import tomllib

import numpy as np
import pytest
import tiny
from PIL import Image
from test_commands_refused import command

import dppmask_jax
from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.runs import encoder_files
from dppmask_jax.runs.projection import fingerprint
from dppmask_jax.runs.run import load_run

NAMES = encoder_files.names()
MOST_BYTES = 3_000_000
SECTIONS = ("Use", "Data", "Recipe", "Figures", "Terms")
# Of two images of noise, from the run that was exported.
CLS = [[0.19289, -1.48814, -2.4076], [0.15517, -1.6013, -2.08606]]
PATCHES = [-0.0902, -0.74996, 1.14895, 0.21908]


def card(name):
    return (encoder_files.ZOO / f"{name}.md").read_text()


def test_the_zoo_has_what_the_documents_name():
    assert NAMES == ["mae-dpp-pi8-shapes", "mae-random-pi8-shapes"]
    page = (tiny.ROOT / "docs" / "weights.md").read_text()
    assert all(f"`{name}`" in page and f"zoo/{name}.md" in page for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_is_the_one_of_its_card(name):
    path = encoder_files.ZOO / f"{name}.safetensors"
    assert path.stat().st_size <= MOST_BYTES
    run = load_run(f"zoo:{name}")
    assert f"`{fingerprint(run)}`" in card(name), "parameters are those that were measured"
    assert re.findall(r"^## (.*)$", card(name), re.M) == list(SECTIONS)
    assert f"zoo:{name}" in card(name) and f"{run.step} steps" in card(name)


def test_images_become_tokens_of_the_known_shapes():
    encoder = dppmask_jax.load_encoder("zoo:mae-dpp-pi8-shapes")
    assert (encoder.image_size, encoder.grid, encoder.width) == ((64, 64), (8, 8), 96)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    features = encoder(images)
    assert features["cls"].shape == (2, 96) and features["patches"].shape == (2, 64, 96)
    np.testing.assert_allclose(features["cls"][:, :3], CLS, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features["patches"][0, ::21, 0], PATCHES, rtol=1e-4, atol=1e-4)


def test_a_wheel_has_all_of_it():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["dppmask_jax.weights"]
    listed = {path for pattern in patterns for path in encoder_files.ZOO.parent.glob(pattern)}
    assert listed == set(encoder_files.ZOO.iterdir())
    assert {path.stem for path in listed if path.suffix == ".md"} == set(NAMES)


def test_an_unknown_name_is_answered_with_those_that_there_are():
    both = "it has mae-dpp-pi8-shapes, mae-random-pi8-shapes"
    for name, more in (("mae-dpp-pi8", r" \(did you mean mae-dpp-pi8-shapes\?\)"), ("../x", "")):
        with pytest.raises(InputError, match=f"^zoo:{name}: .* no such encoder{more}; {both}$"):
            dppmask_jax.load_encoder(f"zoo:{name}")


def test_evaluations_take_them_and_write_into_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, base in (("dark", 40), ("light", 150)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = (base + rng.integers(0, 60, (64, 64, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    config = tiny.evaluation("task=knn", data__source=f"folder:{tmp_path / 'images'}", k=(1,))
    path = evaluate.evaluate(config, f"zoo:{NAMES[0]}")
    assert path.as_posix() == f"runs/zoo/{NAMES[0]}/eval_knn.json"
    record = json.loads(path.read_text())
    assert record["score"]["value"] == 1.0
    assert record["checkpoint"]["workdir"] == f"zoo:{NAMES[0]}"
    assert record["checkpoint"]["step"] == 744
    with pytest.raises(InputError, match="zoo:none: the zoo has no such encoder"):
        evaluate.evaluate(config, "zoo:none")
    with pytest.raises(InputError, match=r"^an encoder alone reconstructs no pixels"):
        evaluate.evaluate(tiny.evaluation("task=reconstruct"), f"zoo:{NAMES[0]}")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if i else [pytest.mark.slow])
     for i, name in enumerate(NAMES)],
)  # fmt: skip
def test_the_figures_of_a_card_are_found_again(name, tmp_path):
    cells = dict(re.findall(r"^\| (k-NN|ridge)[^|]*\| ([0-9.]+) %", card(name), re.M))
    for task, measure in (("task=knn", "k-NN"), ("task=linear", "ridge")):
        config = tiny.evaluation(task, **({"solver": "ridge"} if measure == "ridge" else {}))
        record = json.loads(evaluate.evaluate(config, f"zoo:{name}", tmp_path).read_text())
        # A few images of a thousand turn with the rounding of another machine.
        assert 100 * record["score"]["value"] == pytest.approx(float(cells[measure]), abs=1.0)
        assert record["score"]["value"] > 3 * record["baselines"]["chance"]


@pytest.mark.slow
def test_the_command_answers_a_wrong_name_in_one_line():
    evaluated = [*command("x")[:1], "eval.py", "--config=configs/eval.py:task=knn"]
    tiny.assert_refused(
        {
            "eval": ([*evaluated, "--checkpoint=zoo:mae"], "the zoo has no such encoder"),
            "figures": (command("figures", "--workdir=zoo:mae"), "the zoo has no such encoder"),
        }
    )
