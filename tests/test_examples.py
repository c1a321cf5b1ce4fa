import functools
import importlib.util
import re
import tomllib

import jax
import numpy as np
import pytest
import tiny
from reference_ibot import resize_positions

import dppmask_jax
from configs import ibot as ibot_file
from configs import mae as config_file
from dppmask_jax import parallel, patches
from dppmask_jax.config import flatten
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.methods import mae
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import encoders, vit
from dppmask_jax.runs import workdir
from dppmask_jax.runs.checkpoint import FOLDER, Checkpoints
from dppmask_jax.runs.run import Encoder, load_run
from dppmask_jax.training.step import init_state


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
    state = init_state(mae.build(config, Plan(1, 1)), jax.random.key(0))
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
    features = example("encode").main()
    assert features["cls"].shape == (4, 96) and features["patches"].shape == (4, 64, 96)


def test_encoder_says_what_it_is_and_refuses_other_sizes(run_folder):
    encoder = dppmask_jax.load_encoder(run_folder)
    assert (encoder.image_size, encoder.grid, encoder.width) == ((16, 16), (4, 4), 96)
    with pytest.raises(InputError, match=r"takes \(B, 16, 16, 3\)"):
        encoder(np.zeros((1, 16, 20, 3), np.uint8))
    with pytest.raises(InputError, match="no checkpoint in"):
        dppmask_jax.load_encoder(run_folder / "elsewhere")


PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "images, words",
    [
        (PIXELS.astype(np.float32), "these go from 0 to 255"),
        ((PIXELS / 127.5 - 1).astype(np.float32), "these go from -1 to 1"),
        (np.asarray(normalize(PIXELS)), "undo any normalisation"),
        (normalize(PIXELS), "undo any normalisation"),
        (np.where(PIXELS > 254, np.nan, PIXELS / 255), "these go from nan to nan"),
        (PIXELS.astype(np.int32), "images are int32; pass uint8"),
        (PIXELS > 9, "images are bool; pass uint8"),
    ],
    ids=["uint8 as float", "-1 to 1", "normalised", "on the device", "nan", "int32", "bool"],
)
def test_floats_of_another_range_are_refused_everywhere(run_folder, images, words):
    run, order = load_run(run_folder), np.zeros((2, 16), np.int32)
    calls = (
        Encoder(run),
        run.encode,
        run.features,
        run.attention,
        lambda images: run.reconstruct(images, order),
    )
    for call in calls:
        with pytest.raises(InputError) as error:
            call(images)
        assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("order", [np.arange(16), np.zeros((2, 4), int), np.zeros((2, 16))])
def test_an_order_of_another_shape_or_type_is_refused(run_folder, order):
    with pytest.raises(InputError, match=r"it is int32 \(2, 16\)"):
        load_run(run_folder).reconstruct(PIXELS, order)


def test_attention_of_an_mae_is_its_encoders(run_folder):
    """The class token's to the patches, in the last block; what is left is to itself."""
    run = load_run(run_folder)
    found = np.asarray(run.attention(PIXELS))
    encoder = run.method.encoder
    images = normalize(PIXELS)
    last = encoder.trace(run.encoder, images).blocks[-1].attention
    np.testing.assert_allclose(found, last[:, :, 0, 1:], atol=1e-5)


def test_a_dtype_is_by_choice_and_values_under_a_trace_are_not_looked_at(run_folder):
    """The run is bfloat16's; whatever the matrix products run in, features are float32."""
    for dtype, has in ((None, False), ("bfloat16", True), ("float32", False)):
        encoder = dppmask_jax.load_encoder(run_folder, dtype=dtype)
        traced = jax.make_jaxpr(encoder)(PIXELS.astype(np.float32))
        assert ("bf16" in str(traced)) == has, dtype
        assert {str(value.dtype) for value in traced.out_avals} == {"float32"}
    with pytest.raises(InputError, match=r"dtype='float16' is not allowed: float32 \| bfloat16"):
        dppmask_jax.load_encoder(run_folder, dtype="float16")


@pytest.mark.parametrize(
    "size, words",
    [
        ((16, 18), r"image_size=\(16, 18\) is no multiple .* 4 pixels; the nearest is \(16, 16\)"),
        ((0, 16), "the nearest is"),
        ((16,), "must be"),
        (16, "must be"),
        ((16.0, 16.0), "must be"),
        ((4, 8), "leaves no visible patch of 2"),
    ],
)
def test_sizes_that_do_not_go_are_refused(run_folder, size, words):
    with pytest.raises(InputError, match=words):
        dppmask_jax.load_encoder(run_folder, image_size=size)


def test_an_mae_takes_images_of_another_size(run_folder, monkeypatch):
    run = load_run(run_folder, image_size=(16, 24))
    assert run.config.image_size == (16, 16) and run.image_size == (16, 24)
    assert run.num_hidden == (18, 18) and "fixed positions resized" in run.resized
    encoder = Encoder(run)
    assert encoder.image_size == (16, 24) and encoder.grid == (4, 6)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    order = np.tile(np.arange(24), (2, 1))
    out, rebuilt = encoder(images / 255), run.reconstruct(images, order)

    # A model whose table is the trained grid's, interpolated by independent code.
    trained = patches.sincos_positions

    def table(grid, width, first_axis):
        old = np.concatenate([np.zeros((1, width)), trained((4, 4), width, first_axis)])
        return resize_positions(old[None], (4, 4), grid, offset=0.0)[0, 1:]

    monkeypatch.setattr(vit.patches, "sincos_positions", table)
    method = mae.build(tiny.config(image_size=(16, 24)), Plan(1, 1))
    own = load_run(run_folder)
    assert "positions" not in own.encoder, "at its own size a run has its own table"
    expected, pixels = jax.jit(
        lambda params: (
            encoded(method, params, images),
            method.reconstruct(params, {}, images, order),
        )
    )(own.params)
    np.testing.assert_allclose(out["cls"], expected["cls"], atol=1e-5)
    np.testing.assert_allclose(out["patches"], expected["patches"], atol=1e-5)
    np.testing.assert_allclose(rebuilt, pixels, atol=1e-5)
    with pytest.raises(InputError, match=r"takes \(B, 16, 24, 3\)"):
        encoder(PIXELS)


def encoded(method, params, images):
    tokens = method.encoder.encode(params["encoder"], normalize(images))
    return encoders.as_dict(tokens)


def test_encoder_equals_the_method_it_was_saved_from(run_folder):
    run = load_run(run_folder)
    assert run.step == 7 and run.config.image_size == (16, 16)
    config = tiny.config()
    method = mae.build(config, Plan(1, 1))
    params, _ = jax.jit(method.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    expected = jax.jit(functools.partial(encoded, method))(params, images)
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
    targets = set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE))
    makefile = (tiny.ROOT / "Makefile").read_text()
    assert {"quickstart", "test"} <= targets
    for target in targets:
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
