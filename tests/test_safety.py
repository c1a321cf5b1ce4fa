"""Data is never run or unpickled, and no name in it leads out of the folder it belongs to."""

import ast
import functools
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from test_data_annotations import coco_document, write_coco
from test_data_loader import BROKEN, stream

from dppmask_jax import command, errors
from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import base, cache, mixed_backgrounds, opening, tfds_records
from dppmask_jax.errors import InputError
from dppmask_jax.runs import workdir

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNPACKS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "tarfile"}
ATTRIBUTES = {"extractall", "system", "popen", "import_module", "unpack_archive", "read_pickle"}
FILES = sorted(
    path
    for part in ("dppmask_jax", "configs", "examples", "benchmarks", "train.py", "eval.py")
    for path in ([tiny.ROOT / part] if part.endswith(".py") else (tiny.ROOT / part).rglob("*.py"))
)


def dangers(tree):
    """What a file does that could run what it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in UNPACKS | {"runpy"})
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in UNPACKS | {"runpy"}:
                yield node.module
        elif isinstance(node, ast.Call):
            function, words = node.func, {k.arg: ast.unparse(k.value) for k in node.keywords}
            if isinstance(function, ast.Name) and function.id in RUNS_CODE:
                yield function.id
            if isinstance(function, ast.Attribute):
                full = ast.unparse(function)
                if function.attr in ATTRIBUTES:
                    yield full
                if full == "torch.load" and words.get("weights_only") != "True":
                    yield full
                if full == "np.load" and words.get("allow_pickle") != "False":
                    yield full
            if words.get("shell", "False") != "False":
                yield "shell"


def test_nothing_runs_or_unpickles_what_it_reads():
    found = {
        (path.relative_to(tiny.ROOT).as_posix(), danger)
        for path in FILES
        for danger in dangers(ast.parse(path.read_text()))
    }
    # A config file is Python: it is run once more to name the field next to a mistyped one, and
    # where a flag names it because it defines masks of a run. Of tar files the headers are read,
    # and nothing is unpacked into the file system.
    assert found == {
        ("dppmask_jax/config_faults.py", "runpy"),
        ("dppmask_jax/data/sources/packed.py", "tarfile"),
        ("dppmask_jax/masking/own.py", "runpy"),
    }


@pytest.mark.parametrize(
    "code",
    [
        *("eval('1')", "np.load(p)", "np.load(p, allow_pickle=True)", "import pickle"),
        *("from yaml import load", "archive.extractall(p)", "os.system(c)", "run(c, shell=True)"),
        "torch.load(p)",
    ],
)
def test_the_search_finds_what_it_is_for(code):
    assert list(dangers(ast.parse(code)))


class Trap:
    """Makes a file if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_among_the_images_are_unreadable_images(tmp_path):
    marker, folder = tmp_path / "marker", tmp_path / "images"
    folder.mkdir()
    (folder / "pickle.jpg").write_bytes(pickle.dumps(Trap(marker)))
    with (folder / "objects.npy").open("wb") as file:
        np.save(file, np.array([Trap(marker)]), allow_pickle=True)
    (folder / "objects.png").write_bytes((folder / "objects.npy").read_bytes())
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    train = opening.open_source(f"folder:{folder}", "train", val_fraction=0.0)
    lines = []
    stream(train, 1, batch_size=3, log=lines.append)
    assert len(train) == 3 and sorted(lines) == [
        f"unreadable image: {folder}/objects.png: {BROKEN}",
        f"unreadable image: {folder}/pickle.jpg: {BROKEN}",
    ]
    assert not marker.exists()
    pickle.loads((folder / "pickle.jpg").read_bytes()).close()
    assert marker.exists(), "the trap must work"


def test_kept_labels_that_are_a_pickle_are_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "labels.npy"
    np.save(path, np.array([Trap(tmp_path / "marker")] * 3), allow_pickle=True)
    assert cache.load(path) is None
    assert not (tmp_path / "marker").exists()


def test_the_name_of_a_tfds_data_set_is_no_path(tmp_path, monkeypatch):
    """dataset_info.json, a file of the data set, says how it is called."""
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tfds_records, "_column", lambda *_: np.arange(3, dtype=np.int32))
    for name in ("../../evil/train-3", "/abs/evil/train-3", "a\nb/train", ".."):
        tfds_records._cached_labels(name, range(3), "a set", "label", None)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["labels"]
    assert all(p.is_file() for p in (tmp_path / "cache" / "labels").iterdir())


HOSTILE = "__import__('os').system('touch marker')"


def test_config_json_of_a_workdir_is_only_written(tmp_path):
    """Whatever stands there, even a link elsewhere, is replaced and not followed."""
    outside = tmp_path / "outside"
    outside.write_text(HOSTILE)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").symlink_to(outside)
    config = tiny.config()
    workdir.check_begins(run, [])
    workdir.write_config(config, run)
    assert outside.read_text() == HOSTILE and not (run / "config.json").is_symlink()
    assert json.loads((run / "config.json").read_text())["method"] == "mae"


@pytest.mark.parametrize("value", [HOSTILE, {"!!python/object": HOSTILE}, [["x"] * 3], None])
def test_a_config_in_a_checkpoint_is_plain_values(value):
    restored = workdir.from_json({"method": value})
    assert json.loads(json.dumps(restored.to_dict())) == {"method": value}


OUTSIDE = ["../secret.png", "/secret.png", "a/../../secret.png", "..", "\ud800", "a\0.png", 5]


@pytest.mark.parametrize("name", OUTSIDE)
def test_downloaded_annotations_name_no_file_outside_of_their_folder(name, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    document = coco_document()
    document["images"][1]["file_name"] = name
    with pytest.raises(InputError, match="has not the format of COCO's instances") as error:
        opening.open_splits(write_coco(tmp_path / "coco", train=document))
    assert "\n" not in str(error.value)
    root = tmp_path / "clevr"
    (root / "scenes").mkdir(parents=True)
    (root / "images").mkdir()
    scene = {"image_filename": name, "objects": [{"color": "red", "shape": "cube"}]}
    (root / "scenes" / "all.json").write_text(json.dumps({"scenes": [scene]}))
    with pytest.raises(InputError, match="has not the format of CLEVR's scenes"):
        opening.open_splits(f"clevr:{root}")


def test_a_csv_file_may_name_images_elsewhere(tmp_path):
    """It is the user's own, and says so in the docs."""
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    (tmp_path / "set").mkdir()
    csv = tmp_path / "set" / "images.csv"
    csv.write_text(f"path\n../elsewhere.png\n{tmp_path}/elsewhere.png\n")
    train, _ = opening.open_splits(f"csv:{csv}", val_fraction=0.0)
    assert train.read(0)[0] == train.read(1)[0]


UGLY = [b"line\nbreak", b"\x1b[2Jclear", b"back\x08space", b"not\xffutf8", b"carriage\rreturn"]


@pytest.mark.parametrize("name", UGLY)
def test_names_cannot_move_the_cursor_or_start_a_line(name, tmp_path, capsys):
    for folder in (b"a" + name, b"b" + name):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
        path.mkdir()
        Image.new("RGB", (8, 8)).save(path / "good.png")
        (path / os.fsdecode(name + b".png")).write_bytes(b"broken")
    train = opening.open_source(f"folder:{tmp_path}", "train", val_fraction=0.0)
    assert train.num_classes == 2
    lines = []
    stream(train, 1, batch_size=4, log=lines.append)
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    for line in lines:
        line.encode("utf-8")  # standard output would refuse what is no character
    with pytest.raises(SystemExit):
        command.fail(InputError(f"no {os.fsdecode(name)}"))
    err = capsys.readouterr().err
    assert err.endswith("\n") and err[:-1].isprintable()


def test_one_line():
    assert errors.one_line("plain, é and 日本") == "plain, é and 日本"
    assert errors.one_line("a\nb\x1b\udcff") == "a\\nb\\x1b\\udcff"


def _read(data, i):
    return data, i


def _extras(i):
    return {"image": i}


def test_class_names_make_no_folder_outside_of_the_target(tmp_path):
    """ImageNet-9's layout has a folder a class; a CSV file calls its classes what it likes."""
    names = ("../../evil", "/evil", "..", ".", "a\nb", "", "~", "x" * 300)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    variant = base.Source(
        len(names),
        functools.partial(_read, buffer.getvalue()),
        str,
        class_names=names,
        extras=_extras,
    )
    target = tmp_path / "in9" / "original" / "val"
    mixed_backgrounds._write_variant(variant, str(target))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(names)
    assert all(path.parent.parent == target for path in written)
    for path in written:
        decode.decode(path.read_bytes())
