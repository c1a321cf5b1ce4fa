"""Masks of a user's own: defined in a config file, or listed in an .npy."""

import hashlib
import runpy
import shutil
import sys

import jax
import numpy as np
import pytest
import tiny

import dppmask_jax
from dppmask_jax import announcement, masking
from dppmask_jax import config as config_checks
from dppmask_jax.data import loader
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.figures import run_masks
from dppmask_jax.masking import from_file, own
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import proposed
from dppmask_jax.runs.run import load_run
from dppmask_jax.runs.workdir import to_json
from dppmask_jax.training import resuming

EXAMPLE = tiny.ROOT / "examples" / "own_mask.py"


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """A copy of the example elsewhere; what it adds to MASKERS is gone afterwards."""
    before = dict(masking.MASKERS)
    yield shutil.copy(EXAMPLE, tmp_path / "mine.py")
    masking.MASKERS.clear()
    masking.MASKERS.update(before)


def test_a_config_file_brings_masks_of_its_own(own_file, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 60
    config = runpy.run_path(str(own_file))["get_config"]()
    config_checks.check(config)
    assert config.mask.defined_in == str(own_file) and config.mask.square == 1
    assert config.mask.defined_as == hashlib.sha256(own_file.read_bytes()).hexdigest()
    masker = masking.masker_of(config.mask)
    for count in (8, np.int32([8, 16])):
        mask, _ = jax.jit(lambda c=count: masker.draw(np.zeros(2), c, masking.Seen((4, 4)), 8))()
        board = np.add.outer(np.arange(4), np.arange(4)).ravel() % 2 == 1
        np.testing.assert_array_equal(mask.mask[0], board)
        assert mask.mask[1].any() == (np.size(count) == 1)
    config.mask.square = 0
    with pytest.raises(InputError, match=r"mask.square=0 is not allowed: a whole number from 1 up"):
        config_checks.check(config)


def test_a_run_with_own_masks_is_encoded_without_them_and_names_their_file(own_file, capsys):
    own.load(str(own_file))
    folder = tiny.save_run(own_file.parent / "run", mask__strategy="checkerboard", mask__ratio=0.5)
    build = masking.MASKERS.pop("checkerboard")
    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert dppmask_jax.load_encoder(folder)(images)["cls"].shape == (1, 96)
    with pytest.raises(InputError, match=rf"defined in {own_file}: name it with --masker="):
        own.check(load_run(folder).config.mask)
    masking.MASKERS["checkerboard"] = build
    run = load_run(folder)
    own.check(run.config.mask)
    ((mask, _),) = run_masks.draw(run, images, 0, [run_masks.way(run, "checkerboard", 8)])
    assert mask.mask.sum() == 8
    assert not capsys.readouterr().out
    figures, others = announcement.next_steps(run.config, folder, False, run.method)[:2]
    assert f"--masker={own_file} --images" in figures
    assert f"--masker={own_file} --compare" in others
    # Another file is another config, and figures say so.
    old = to_json(run.config)
    own_file.write_text(own_file.read_text() + "\n")
    own.check(run.config.mask)
    assert "mine.py is not what it was" in capsys.readouterr().out
    new = to_json(tiny.config(mask__strategy="checkerboard", mask__ratio=0.5))
    free = [n for n, field in config_checks.fields_of("mae").items() if field.free]
    assert list(resuming.differences(old, new, free)[0]) == ["mask.defined_as"]


@pytest.mark.parametrize(
    "text, words", [(None, "there is no such file"), ("1 / 0", "ZeroDivisionError: division by")]
)
def test_a_file_that_defines_no_masks_is_one_line(tmp_path, text, words):
    file = tmp_path / "file.py"
    if text:
        file.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        own.load(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_own_masks_through_the_commands(own_file):
    """train.py, the same again, figures, reconstruct, and a sweep; from another folder."""
    folder, one_block = own_file.parent, {"model.depth": 1, "evaluate.knn_images": 0}
    small = [
        f"--config.{name}={value}"
        for name, value in (tiny.OVERRIDES["mae"] | one_block).items()
        if name != "mask.ratio"
    ]

    def python(*words, status=0):
        done = tiny.run([sys.executable, *map(str, words)])
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    run = folder / "run"
    train = ("train.py", f"--config={own_file}", f"--workdir={run}", *small)
    assert "checkerboard of 1: 8 visible, 8 masked" in python(*train)
    assert "nothing is left to do" in python(*train)
    figures = ("-m", "dppmask_jax.figures", f"--workdir={run}", "--num=1")
    assert f"--masker={own_file}" in python(*figures, status=2)
    assert "masks.png" in python(*figures, f"--masker={own_file}")
    task = ("eval.py", "--config=configs/eval.py:task=reconstruct", f"--checkpoint={run}")
    assert f"--masker={own_file}" in python(*task, status=2)
    assert "checkerboard" in python(*task, f"--masker={own_file}")
    python(
        "-m", "dppmask_jax.sweep", f"--config={own_file}", f"--workdir={folder / 'sweep'}", *small,
        "--eval=configs/eval.py:task=knn,dataset=shapes",
        "--grid=mask.strategy=random,checkerboard",
    )  # fmt: skip
    assert (folder / "sweep" / "figures" / "sweep.png").exists()
    own_file.write_text(own_file.read_text() + "\n")
    assert "mask.defined_as" in python(*train, "--config.epochs=3", status=2)


# From a file.


def masks_of(count, num_masked, seed=0):
    order = np.argsort(np.random.default_rng(seed).random((count, 16)), axis=1)
    return order < num_masked


@pytest.mark.parametrize("dtype", [bool, np.uint8])
@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_masks_of_a_file_reach_their_images(tmp_path, method, dtype):
    train, val = opening.open_splits("shapes", val_fraction=0.1)
    rows = masks_of(len(train), 12 if method == "mae" else 5)
    np.save(tmp_path / "masks.npy", rows.astype(dtype))
    ratio = {} if method == "mae" else {"mask__ratio": (0.3,), "mask__ratio_var": (0.05,)}
    config = tiny.config(
        method, mask__strategy="file", mask__path=str(tmp_path / "masks.npy"), **ratio
    )
    config_checks.check(config)
    images, (train, val) = train, proposed.with_masks(config, train, val)
    built = config_checks.METHODS[method].build(config, Plan(1, 1))
    stream = loader.train_stream(
        train, example=built.example, extras=built.extras, batch_size=8, seed=0
    )
    with stream:
        batch = next(stream)
    np.testing.assert_array_equal(batch["proposed"], rows[batch["row"]])
    keys = jax.random.split(jax.random.key(0), 8)
    seen = masking.Seen((4, 4), proposed=lambda: batch["proposed"])
    mask, _ = built.masker.draw(keys, 4 if method == "mae" else np.int32([11] * 7 + [16]), seen, 12)
    wanted = batch["proposed"].copy()
    wanted[7] &= method == "mae"
    np.testing.assert_array_equal(mask.mask, wanted)
    np.testing.assert_array_equal(
        np.take_along_axis(np.asarray(mask.mask), np.asarray(mask.order), axis=1),
        np.arange(16) >= np.asarray(mask.count)[:, None],
    )
    # Another file is other data, where a run goes on.
    identity = train.identity()
    np.save(tmp_path / "masks.npy", rows[::-1].astype(dtype))
    assert len({identity, train.identity(), images.identity()}) == 3
    # Validation images have none in the file: random ones of as many patches, which is said.
    assert "validation images have no mask in" in val.notes[-1]
    assert {int(val.extras(i)["proposed"].sum()) for i in range(9)} == {built.num_hidden[1]}
    assert built.masker.draw(keys, 4, masking.Seen((4, 4)), 4)[0].mask.sum() == 8 * 12


@pytest.mark.parametrize(
    "rows, words",
    [
        (None, "cannot be read: No such file"),
        (b"text", "cannot be read: it is no .npy of numbers"),
        (np.array([{}]), "cannot be read: it is no .npy of numbers"),
        (np.zeros((3, 16)), "holds float64 (3, 16); it takes (images, patches) bool or uint8"),
        (masks_of(3, 12), "is (3, 16); this config has 4 training images of 16 patches"),
        (masks_of(4, 12)[:, :9], "is (4, 9)"),
        (masks_of(4, 12) * np.uint8(255), "holds 255; masks are 0 and 1"),
        (masks_of(4, 11), "row 0 masks 11 of 16 patches, and config.mask.ratio wants 12 masked"),
    ],
)
def test_masks_of_a_file_that_do_not_fit_are_one_line(tmp_path, rows, words):
    path = tmp_path / "masks.npy"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif rows is not None:
        np.save(path, rows, allow_pickle=True)
    with pytest.raises(InputError) as error:
        from_file.check_rows(str(path), 4, 16, 12, 12)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_must_be_named():
    with pytest.raises(InputError, match=r"config\.mask\.path is empty; name the masks"):
        config_checks.check(tiny.config(mask__strategy="file"))
