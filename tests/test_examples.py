import importlib.util
import re
import tomllib

import jax
import numpy as np
import optax
import pytest
import tiny

import dppmask_jax
from configs import ibot as ibot_file
from configs import mae as config_file
from dppmask_jax import loop, optim, parallel, workdir
from dppmask_jax.checkpoint import FOLDER, Checkpoints
from dppmask_jax.config import flatten
from dppmask_jax.errors import InputError
from dppmask_jax.methods import mae
from dppmask_jax.pretrained import load_run


def example(name):
    spec = importlib.util.spec_from_file_location(name, tiny.ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A workdir with one checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.config()
    optimizer = optim.Optimizer(optax.sgd(1.0), lambda step: 0.1)
    state = loop.init_state(
        mae.build(config, steps_per_epoch=1, total_steps=1), optimizer, jax.random.key(0)
    )
    checkpoints = Checkpoints(folder / FOLDER)
    checkpoints.save(7, parallel.replicate(state), {"config": workdir.to_json(config)})
    checkpoints.close()
    return folder


def test_masks_are_exported():
    mask = example("export_masks").main()
    assert mask.mask.shape == (8, 196) and isinstance(mask.mask, np.ndarray)
    assert (mask.mask.sum(axis=1) == 147).all() and (mask.count == 49).all()


def test_patches_are_selected():
    visible, masked = example("select_patches").main()
    assert visible.shape == (8, 49) and masked.shape == (8, 147)
    both = np.sort(np.concatenate([visible, masked], axis=1), axis=1)
    assert (both == np.arange(196)).all()


def test_images_are_encoded(run_folder):
    features = example("encode").main(run_folder)
    assert features["cls"].shape == (4, 96) and features["patches"].shape == (4, 16, 96)


def test_encoder_says_what_it_is_and_refuses_other_sizes(run_folder):
    encoder = dppmask_jax.load_encoder(run_folder)
    assert (encoder.image_size, encoder.grid, encoder.width) == ((16, 16), (4, 4), 96)
    with pytest.raises(InputError, match=r"takes \(B, 16, 16, 3\)"):
        encoder(np.zeros((1, 16, 20, 3), np.uint8))
    with pytest.raises(InputError, match="no checkpoint in"):
        dppmask_jax.load_encoder(run_folder / "elsewhere")


def test_encoder_equals_the_method_it_was_saved_from(run_folder):
    run = load_run(run_folder)
    assert run.step == 7 and run.config.image_size == (16, 16)
    config = tiny.config()
    method = mae.build(config, steps_per_epoch=1, total_steps=1)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = jax.jit(method.encode)(params, extra, images)
    out = dppmask_jax.load_encoder(run_folder)(images)
    for name in ("cls", "patches"):
        np.testing.assert_allclose(out[name], expected[name], atol=1e-6)


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["train"]
    lines = (tiny.ROOT / "requirements.txt").read_text().splitlines()
    assert sorted(line for line in lines if not line.startswith("#")) == sorted(needed)


def test_what_the_readme_names_exists():
    text = (tiny.ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", text))
    makefile = (tiny.ROOT / "Makefile").read_text()
    assert {"quickstart", "test"} <= targets
    for target in targets - {"of"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\]\(((?!http)[^)]+)\)|\b((?:configs|docs|examples)/\w+\.\w+)", text):
        assert (tiny.ROOT / (path[0] or path[1])).exists(), path
    extras = set(re.findall(r"\.\[([a-z,]+)\]", text))
    known = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    for extra in {name for names in extras for name in names.split(",")}:
        assert extra in known["optional-dependencies"], extra


def test_fields_in_the_readme_exist():
    fields = flatten(config_file.get_config()) | flatten(ibot_file.get_config())
    text = (tiny.ROOT / "README.md").read_text().partition("\n## Configs\n")[2]
    table = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    named = [name for cell in table for name in re.findall(r"`([a-z_.]+)`", cell)]
    assert len(named) > 10
    for name in named:
        assert name in fields, name
