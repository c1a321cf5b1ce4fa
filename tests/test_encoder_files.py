"""Encoders in files of their own: written and read again, and wrong ones refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
from test_commands_refused import command

from dppmask_jax.errors import InputError
from dppmask_jax.runs import encoder_files
from dppmask_jax.runs.kinds import encoder_options
from dppmask_jax.runs.projection import fingerprint
from dppmask_jax.runs.run import load_encoder, load_run
from dppmask_jax.weights.exporting import export_weights

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def folder(fewer_blocks, tmp_path_factory):
    history = [{"step": 3, "changed": {"mask.tau": [0.5, 0.9]}}]
    return tiny.save_run(tmp_path_factory.mktemp("files") / "run", history=history)


@pytest.fixture(scope="module")
def file(folder):
    path = folder.parent / "encoder.safetensors"
    encoder_files.write(path, load_run(folder))
    return path


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_a_file_stands_for_the_run_that_it_is_of(folder, file):
    run, again = load_run(folder), load_run(file)
    for name, values in run.encode(images()).items():
        np.testing.assert_array_equal(again.encode(images())[name], values)
    assert (again.kind, again.label, again.step, again.history) == (
        "encoder",
        "MAE",
        12,
        run.history,
    )
    assert again.knn_feature == run.knn_feature and again.image_size == (16, 16)
    assert again.config.data.to_dict().items() <= run.config.data.to_dict().items()
    with pytest.raises(InputError, match="this is an encoder alone, which masks nothing"):
        again.masks(images(), None)
    assert load_encoder(file, image_size=(16, 24)).grid == (4, 6)


@pytest.mark.parametrize(
    "method, changes",
    [
        ("ibot", {"data__source": "folder:/home/mine"}),
        ("simmim", {}),
        ("mae", {"data__channels": 2, "data__mean": (0.1, 0.2), "data__std": (0.3, 0.4)}),
    ],
)
def test_all_that_an_encoder_has_comes_back(method, changes, tmp_path):
    run = load_run(tiny.save_run(tmp_path / "run", method=method, **changes))
    encoder_files.write(tmp_path / "a.safetensors", run)
    again = load_run(tmp_path / "a.safetensors")
    assert fingerprint(again) == fingerprint(run) and again.label == run.label
    assert encoder_options(again.config) == encoder_options(run.config)
    assert again.method.encoder.pixels == run.method.encoder.pixels
    source = "" if "data__source" in changes else run.config.data.source
    assert again.config.data.source == source, "no path of this machine"
    encoder_files.write(tmp_path / "b.safetensors", again)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    "source, classes, goes_along",
    [
        ("shapes:size=16", "", True),
        ("tfds:imagenet2012/5.1.0", "imagenet100", True),
        ("folder:images", "", False),
        ("csv:labels.csv", "", False),
        ("tfds:imagenet2012", "mine.txt", False),
    ],
)
def test_a_source_goes_along_unless_it_is_a_path(source, classes, goes_along):
    config = tiny.config(data__source=source, data__classes=classes)
    kept = encoder_files._of_images(config)
    assert kept.get("data.source") == (source if goes_along else None)
    assert ("data.classes" in kept) == goes_along and "data.channels" in kept


def test_half_precision_is_close_and_takes_half_the_space(folder, file):
    half, run = folder.parent / "half.safetensors", load_run(folder)
    encoder_files.write(half, run, "float16")
    assert half.stat().st_size < 0.6 * file.stat().st_size
    # Rounded to 11 bits each; what that does to the output grows with the blocks.
    found, exact = load_run(half).encode(images())["cls"], run.encode(images())["cls"]
    assert 0 < np.abs(found - exact).max() < 0.02 * np.abs(exact).max()
    run.encoder["cls_token"] = np.full((1, 1, 24), 1e6, np.float32)
    with pytest.raises(InputError, match="cls_token has numbers that float16 has not"):
        encoder_files.write(folder.parent / "none.safetensors", run, "float16")
    assert not (folder.parent / "none.safetensors").exists()


def test_other_formats_take_a_file_as_a_run(file, folder, tmp_path):
    for where, name in ((file, "a"), (folder, "b")):
        export_weights(where, tmp_path / f"{name}.safetensors", "timm")
    exported = [safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert exported[0].keys() == exported[1].keys()
    for name, tensor in exported[0].items():
        np.testing.assert_array_equal(tensor, exported[1][name])


def test_wrong_files_are_refused(file, tmp_path):
    whole, path = file.read_bytes(), tmp_path / "wrong.safetensors"
    arrays = safetensors.numpy.load(whole)
    with safetensors.safe_open(file, "np") as opened:
        kept = opened.metadata()

    def written(change, metadata=kept):
        changed = dict(arrays)
        change(changed)
        safetensors.numpy.save_file(changed, path, metadata)

    with pytest.raises(InputError, match=r"there is no file .*wrong\.safetensors"):
        load_encoder(path)
    path.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="is no whole safetensors file"):
        load_encoder(path)
    written(lambda arrays: None, {"format": "pt"})
    with pytest.raises(InputError, match="is no encoder that was exported here; of published"):
        load_encoder(path)
    written(lambda arrays: arrays.pop("norm.bias"))
    with pytest.raises(InputError, match=r"norm\.bias is missing, and its config wants \(24,\)"):
        load_encoder(path)
    written(lambda arrays: arrays.update(more=np.zeros(2, np.float32)))
    with pytest.raises(InputError, match=r"more is \(2,\), and its config wants none"):
        load_encoder(path)
    for about in ("", "[]", json.dumps({"step": 3}), json.dumps({"step": 3, "config": {}})):
        written(lambda arrays: None, dict.fromkeys(kept, about))
        with pytest.raises(InputError, match="does not say what made it"):
            load_encoder(path)


@pytest.mark.slow
def test_the_command_exports_and_refuses(folder, tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    export = command("weights", "export", folder, path, "--format=encoder")
    done = tiny.run(export)
    assert not done.returncode and done.stdout.splitlines()[0] == str(path), done.stderr
    tiny.assert_refused(
        {
            "taken": (export, "exists and is not overwritten"),
            "pth": (command("weights", "export", folder, tmp_path / "b.pth", "--format=encoder"),
                    "is a .safetensors file"),
            "resize": ([*export, "--resize_positions=8,8"], "--resize_positions does not go with"),
            "import": (command("weights", "import", path, "--format=encoder", "--workdir=x"),
                       "needs no import"),
            "precision": (command("weights", "export", folder, tmp_path / "c.safetensors",
                                  "--format=mae", "--precision=float16"), "--precision is for"),
        }
    )  # fmt: skip
