"""Patches that are not square, from the flag to the figure."""

import io
import sys

import jax
import numpy as np
import PIL.Image
import pytest
import tiny
from absl import flags
from ml_collections import config_flags

from configs import simmim
from dppmask_jax import config as pretraining
from dppmask_jax import masking, patches
from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.pretrain import _encoder_of
from dppmask_jax.runs.run import Run, load_run
from dppmask_jax.runs.workdir import from_json, to_json
from dppmask_jax.sweeps.grid import grid_points
from dppmask_jax.targets import hog

SIZE = (8, 4)


def cut_by_hand(images, height, width):
    """(B, N, P), patch by patch."""
    rows, columns = images.shape[1] // height, images.shape[2] // width
    return np.stack(
        [
            images[:, r * height : (r + 1) * height, c * width : (c + 1) * width].reshape(
                len(images), -1
            )
            for r in range(rows)
            for c in range(columns)
        ],
        axis=1,
    )


def config(method):
    if method != "simmim":
        return tiny.config(method, model__patch_size=SIZE)
    built = simmim.get_config("dataset=shapes")
    built.image_size, built.model.patch_size = (16, 16), SIZE
    built.model.width, built.model.depth, built.model.heads = 24, 1, 2
    return built


@pytest.mark.parametrize("size", [(8, 4), (2, 6), (16, 12)])
def test_patchify_is_the_cut_by_hand(size):
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    cut = patches.patchify(images, size)
    np.testing.assert_array_equal(cut, cut_by_hand(images, *size))
    grid = patches.grid_shape((16, 24), size)
    assert grid == (16 // size[0], 24 // size[1])
    np.testing.assert_array_equal(patches.unpatchify(cut, grid, size), images)


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (0, 4), (4,), (4, 4, 4), 4.0, "4"])
def test_a_size_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="patch size"):
        patches.grid_shape((16, 24), size)


@pytest.mark.parametrize("word,value", [("8", 8), ("(8, 4)", SIZE), ("8,4", SIZE), ("x", "x")])
def test_a_flag_takes_one_side_or_two(word, value, monkeypatch):
    argv = ["train.py", f"--config.model.patch_size={word}"]
    monkeypatch.setattr(sys, "argv", argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", tiny.config(), flag_values=values, lock_config=True)
    values(argv)
    assert values.config.model.patch_size == value
    assert from_json(to_json(values.config)).model.patch_size == value
    if value == "x":
        with pytest.raises(InputError, match=r"patch_size='x' is not allowed: .*two such as"):
            pretraining.check(values.config)
    else:
        pretraining.check(values.config)


def test_a_sweep_goes_over_both_kinds():
    points = grid_points(tiny.config().lock(), "model.patch_size=8,(8,4)")
    assert [point.name for point in points] == ["patch_size-8", "patch_size-8-4"]
    assert [point.config.model.patch_size for point in points] == [8, (8, 4)]


@pytest.mark.parametrize(
    "method", ["simmim", *(pytest.param(m, marks=pytest.mark.slow) for m in ("mae", "ibot"))]
)
def test_methods_train_with_them(method):
    """Shapes of a loss; numbers are compared in test_mae_method."""
    built = config(method)
    pretraining.check(built)
    made = METHODS[method].build(built, Plan(5, 10))
    params, extra = jax.eval_shape(made.init, jax.random.key(0))
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(file, "PNG")
    example = made.example(file.getvalue(), np.random.default_rng(0))
    example |= {"index": np.int32(0), "row": np.int32(0)}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), example)
    value, _ = jax.eval_shape(made.turns[0].loss, params, extra, batch, jax.random.key(0), 0)
    assert value.shape == () and made.encoder.grid == (2, 4)
    assert made.encoder_of(params, extra)["patch_embed"]["proj"]["kernel"].shape[0] == 3 * 8 * 4


def test_hog_of_them_is_made_of_the_same_cells():
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 24, 3), dtype=np.uint8)
    cells = np.asarray(hog.features(image, patch_size=8)).reshape(4, 3, 3, 9)
    found = np.asarray(hog.features(image, patch_size=(16, 8)))
    assert found.shape == (1, 6, 3 * 9 * 2)
    for n, patch in enumerate(found[0]):
        row, column = divmod(n, 3)
        expected = cells[2 * row : 2 * row + 2, column].transpose(1, 2, 0)
        np.testing.assert_array_equal(patch.reshape(3, 9, 2), expected)
    with pytest.raises(ValueError, match="multiple of 8"):
        hog.features(image, patch_size=(16, 4))
    with pytest.raises(InputError, match=r"patch_size=\(8, 4\) is no multiple of 8"):
        pretraining.check(tiny.config(model__patch_size=SIZE, loss__target="hog"))


def test_masks_are_exported_of_them():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = cut_by_hand(((images / 255 - mean) / std).astype(np.float32), 16, 4)
    found = masking.export_masks(images, patch_size=(16, 4), features="pixels", tau=0.2)
    wanted = masking.export_masks(images, patch_size=(16, 4), features=pixels, tau=0.2)
    np.testing.assert_array_equal(found.order, wanted.order)
    assert found.mask.shape == (3, 16)


def test_a_panel_outlines_them():
    image = np.full((16, 8, 3), 200, np.uint8)
    mask = np.array([True, False, True, True])
    red = (255, 0, 0)
    panel = panels.mask_panel(image, mask, (8, 4), [(red, ~mask)], scale=2)
    line = panels.outline_width(8)
    border = np.zeros((32, 16), bool)
    border[:16, 8:] = True
    border[line : 16 - line, 8 + line : 16 - line] = False
    np.testing.assert_array_equal((panel == red).all(axis=-1), border)
    weights = panels.attention_panel(np.array([0.0, 1.0, 0.0, 0.0]), (2, 2), (8, 4))
    assert weights.shape == (16, 8, 3) and (weights[:8, 4:] > 100).any(axis=-1).all()
    assert (weights[8:] < 10).all()


def test_a_run_is_used_at_another_size_and_starts_others_of_its_patches(tmp_path):
    folder = tiny.save_run(tmp_path / "run", model__patch_size=SIZE)
    run = load_run(folder, image_size=(24, 12))
    assert run.config.model.patch_size == SIZE and run.method.encoder.grid == (3, 3)
    assert run.encoder["positions"].shape == (1, 10, 96)
    with pytest.raises(InputError, match=r"of 8x4 pixels; the nearest is \(16, 16\)"):
        load_run(folder, image_size=(12, 16))
    turned = tiny.config(model__patch_size=(4, 8), init_from=str(folder))
    method = METHODS["mae"].build(turned, Plan(1, 1))
    with pytest.raises(InputError, match="encoder, Pi/8x4 for"):
        _encoder_of(turned, method)


def test_relative_positions_belong_to_the_size_of_the_training():
    built = config("simmim")
    assert built.model.relative != "none"
    with pytest.raises(InputError, match=r"relative positions.* takes images of 16x16"):
        Run(built, {}, {}, 1, image_size=(24, 16))
