import collections
import io
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_data_loader import stream

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import opening, shapes, tfds_records
from dppmask_jax.data.sources.base import only_classes, with_targets
from dppmask_jax.data.sources.classes import class_list
from dppmask_jax.errors import InputError
from dppmask_jax.runs import run

REAL = os.environ.get("DPPMASK_TEST_DATA", "")


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value % 256, 0, 0)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return path


def names(source, root):
    return [os.path.relpath(source.name(i), root) for i in range(len(source))]


def open_both(path, **options):
    return opening.open_splits(f"folder:{path}", **options)


def test_train_and_val_folders(tmp_path):
    for i, name in enumerate(["train/cat/b", "train/cat/a", "train/dog/c", "val/dog/d"]):
        write(tmp_path / f"{name}.png", i)
    train, val = open_both(tmp_path)
    assert names(train, tmp_path) == ["train/cat/a.png", "train/cat/b.png", "train/dog/c.png"]
    assert train.labelled and val.labelled and train.num_classes == 2
    assert train.class_names == val.class_names == ("cat", "dog")
    assert [train.read(i)[1] for i in range(3)] == [0, 0, 1]
    data, label = val.read(0)
    assert label == 1 and decode.decode(data)[0, 0, 0] == 3
    assert names(val, tmp_path) == ["val/dog/d.png"]
    assert train.unlabelled_because == "" and train.extras(0) == {}
    np.testing.assert_array_equal(train.labels(), [0, 0, 1])
    assert train.targets is None and train.label_shape == ()


def test_one_split_alone(tmp_path):
    for name in ("train/a/1", "train/b/2", "val/a/3"):
        write(tmp_path / f"{name}.png")
    train = opening.open_source(f"folder:{tmp_path}", "train")
    val = opening.open_source(f"folder:{tmp_path}", "val")
    assert (len(train), len(val)) == (2, 1)


def test_classes_without_splits_hold_out_a_share_of_each(tmp_path):
    for i in range(40):
        write(tmp_path / f"{'cat' if i < 30 else 'dog'}/{i:02d}.png")
    train, val = open_both(tmp_path)
    assert train.labelled and val.labelled
    labels = [val.read(i)[1] for i in range(len(val))]
    assert collections.Counter(labels) == {0: 3, 1: 1}
    both = names(train, tmp_path) + names(val, tmp_path)
    assert len(both) == 40 and len(set(both)) == 40
    assert names(val, tmp_path) != sorted(both)[:4]  # spread, not the first ones
    for i in range(len(train)):
        assert train.class_names[train.read(i)[1]] == names(train, tmp_path)[i].split(os.sep)[0]


def test_held_out_images_depend_on_relative_paths_alone(tmp_path):
    for root in ("one", "two"):
        for i in range(30):
            write(tmp_path / root / f"{i}.png")
    one, two = (names(open_both(tmp_path / root)[1], tmp_path / root) for root in ("one", "two"))
    assert one == two == ["0.png", "18.png", "3.png"]  # for ever: else runs do not compare


def test_class_of_one_image_stays_in_training(tmp_path):
    for name in ("a/1", "b/1", "b/2"):
        write(tmp_path / f"{name}.png")
    train, val = open_both(tmp_path)
    assert {train.read(i)[1] for i in range(len(train))} == {0, 1}
    assert [val.read(i)[1] for i in range(len(val))] == [1]


def test_nothing_held_out(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    train, val = open_both(tmp_path, val_fraction=0.0)
    assert len(train) == 2 and val is None
    assert opening.open_source(f"folder:{tmp_path}", "val", val_fraction=0.0) is None


def test_train_folder_without_val_holds_out_of_it(tmp_path):
    for i in range(20):
        write(tmp_path / f"train/{'ab'[i % 2]}/{i}.png")
    write(tmp_path / "other/x.png")
    train, val = open_both(tmp_path)
    assert (len(train), len(val)) == (18, 2) and train.class_names == ("a", "b")


@pytest.mark.parametrize(
    "layout, culprit",
    [
        (["1.png", "2.png"], "1.png"),
        (["a/1.png", "b/2.png", "3.png"], "3.png"),
        (["a/1.png", "b/c/2.png"], "b/c/2.png"),
        (["a/1.png", "a/2.png"], "one folder"),
    ],
)
def test_irregular_folders_are_unlabelled(layout, culprit, tmp_path):
    for name in layout:
        write(tmp_path / name)
    train, val = open_both(tmp_path, val_fraction=0.4)
    assert len(train) + len(val) == len(layout)
    for source in (train, val):
        assert not source.labelled and source.num_classes == 0
        assert source.read(0)[1] == -1 and culprit in source.unlabelled_because
        assert source.labels is None


def test_a_single_class_is_none(tmp_path):
    for name in ("train/a/1", "val/a/2"):
        write(tmp_path / f"{name}.png")
    train, val = open_both(tmp_path)
    assert not train.labelled and not val.labelled


def test_unlabelled_training_makes_validation_unlabelled(tmp_path):
    for name in ("train/1", "val/a/1", "val/b/2"):
        write(tmp_path / f"{name}.png")
    train, val = open_both(tmp_path)
    assert not train.labelled and not val.labelled and val.read(0)[1] == -1


def test_class_only_in_val(tmp_path):
    for name in ("train/a/1", "train/b/2", "val/a/3", "val/lion/4"):
        write(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match="'lion' is in"):
        open_both(tmp_path)


def test_what_counts_as_an_image(tmp_path):
    for name in ("A.PNG", "b.JpEg", "c.webp", ".hidden.png", ".folder/d.png", "noextension"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    train, _ = open_both(tmp_path, val_fraction=0.0)
    assert names(train, tmp_path) == ["A.PNG", "b.JpEg", "c.webp"]


def test_symbolic_links(tmp_path):
    real = tmp_path / "real"
    write(real / "a/1.png")
    write(real / "b/2.png")
    subset = tmp_path / "subset"
    subset.mkdir()
    (subset / "a").symlink_to(real / "a")
    (subset / "b").symlink_to(real / "b")
    (real / "a/loop").symlink_to(real / "a")
    (real / "b/up").symlink_to(tmp_path)
    (subset / "c").symlink_to(subset)
    train, _ = open_both(subset, val_fraction=0.0)
    found = names(train, subset)
    assert len(found) < 20 and found[0] == "a/1.png" and "b/2.png" in found


def test_linked_class_folders_are_classes(tmp_path):
    write(tmp_path / "real/a/1.png")
    write(tmp_path / "real/b/2.png")
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "set" / split / name).symlink_to(tmp_path / "real" / name)
    train, val = open_both(tmp_path / "set")
    assert train.labelled and val.labelled and len(train) == len(val) == 2


def test_dangling_link_is_an_unreadable_image(tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    train, _ = open_both(tmp_path, val_fraction=0.0)
    assert names(train, tmp_path) == ["a.png", "b.png"]
    with pytest.raises(OSError):
        train.read(1)


def test_unusual_names(tmp_path):
    for name in ("ä ö.png", "日本/图 像.png", "a=b,c.png"):
        write(tmp_path / name)
    write(tmp_path / os.fsdecode(b"bad\xff.png"))
    train, _ = open_both(tmp_path, val_fraction=0.0)
    assert sorted(os.fsencode(name) for name in names(train, tmp_path)) == sorted(
        os.fsencode(name) for name in ("ä ö.png", "日本/图 像.png", "a=b,c.png", "bad\udcff.png")
    )
    assert all(train.read(i)[0][:4] == b"\x89PNG" for i in range(4))


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "pictures/a.png")
    assert len(opening.open_source("folder:~/pictures", "train")) == 1


def test_folder_source_can_be_pickled(tmp_path):
    for name in ("a/1", "b/2", "b/3"):
        write(tmp_path / f"{name}.png")
    train, _ = open_both(tmp_path, val_fraction=0.0)
    copy = pickle.loads(pickle.dumps(train))
    assert [copy.read(i) for i in range(3)] == [train.read(i) for i in range(3)]
    assert names(copy, tmp_path) == names(train, tmp_path)


def test_many_files_stay_compact(tmp_path):
    for folder in range(10):
        (tmp_path / f"{folder}").mkdir()
        for i in range(300):
            (tmp_path / f"{folder}/some_name_{i:06d}.jpg").touch()
    write(tmp_path / "0/some_name_000000.jpg")
    train, _ = open_both(tmp_path)
    assert len(pickle.dumps(train)) < 60 * 3000


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*gone"):
        open_both(tmp_path / "gone")
    with pytest.raises(InputError, match="no folder"):
        open_both(write(tmp_path / "file.png"))
    (tmp_path / "empty/inner").mkdir(parents=True)
    (tmp_path / "empty/readme.txt").write_text("")
    with pytest.raises(InputError, match=r"no image below .*empty"):
        open_both(tmp_path / "empty")
    write(tmp_path / "half/val/a/1.png")
    with pytest.raises(InputError, match="no folder train"):
        open_both(tmp_path / "half")
    write(tmp_path / "other/train/1.png")
    (tmp_path / "other/val").mkdir()
    with pytest.raises(InputError, match=r"no image below .*other/val"):
        open_both(tmp_path / "other")


def test_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    write(tmp_path / "a/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot list .*Permission denied"):
        open_both(tmp_path)


@pytest.mark.parametrize("count", [3, 100])
def test_folder_without_a_readable_image(count, tmp_path):
    for i in range(count):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of .*000\.jpg"):
        open_both(tmp_path)


def test_some_readable_image_is_enough(tmp_path):
    for i in range(50):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"no image")
    write(tmp_path / "049.jpg")
    assert len(open_both(tmp_path, val_fraction=0.0)[0]) == 50


@pytest.mark.parametrize("spec", ["", "folder", "folder:", "tfds:", "csv:", "coco", "webdataset:x"])
def test_unknown_spec(spec):
    with pytest.raises(InputError, match=r"shapes \| folder:PATH \| .*csv:FILE"):
        opening.open_source(spec, "train")


# Shapes and TFDS.

OPTIONS = "size=16,train=12,val=5,seed=1"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    opening.open_source(f"shapes:{OPTIONS}", "train", data_dir=str(folder))
    return str(folder)


def test_shapes(cache):
    train, val = opening.open_splits(f"shapes:{OPTIONS}", data_dir=cache)
    assert (len(train), len(val)) == (12, 5) and train.class_names == shapes.CLASSES
    scene = shapes.draw(shapes.Options(16, 12, 5, 1), "val", 3)
    data, label = val.read(3)
    assert label == scene.label
    np.testing.assert_array_equal(decode.decode(data), scene.image)
    extras = val.extras(3)
    np.testing.assert_array_equal(extras["mask"], scene.mask)
    np.testing.assert_array_equal(extras["attributes"], scene.attributes)
    assert extras["background"] == scene.background
    assert val.name(3) == "shapes val record 3"
    copy = pickle.loads(pickle.dumps(val))
    assert copy.read(3) == val.read(3)
    scenes = [shapes.draw(shapes.Options(16, 12, 5, 1), "val", i) for i in range(5)]
    np.testing.assert_array_equal(copy.labels(), [scene.label for scene in scenes])
    np.testing.assert_array_equal(copy.targets(), [scene.attributes for scene in scenes])
    assert copy.labels().dtype == np.int32 and copy.targets().dtype == np.uint8
    assert val.target_names == shapes.ATTRIBUTES


def test_labels_are_read_in_pieces(cache, monkeypatch):
    train = opening.open_source(f"shapes:{OPTIONS}", "train", data_dir=cache)
    whole = train.targets()
    for size in (1, 5, 12):
        monkeypatch.setattr(tfds_records, "_RECORDS_AT_ONCE", size)
        np.testing.assert_array_equal(train.targets(), whole)


@pytest.mark.parametrize("options", ["sise=16", "size", "size=x", "size=-3", "size=64;train=3"])
def test_wrong_shapes_options(options):
    with pytest.raises(InputError, match="unknown option"):
        opening.open_source(f"shapes:{options}", "train")
    with pytest.raises(InputError, match="size=1 is out of range"):
        opening.open_source("shapes:size=1", "train")


def tfds_name():
    return "shapes/" + OPTIONS.replace("=", "").replace(",", "-")


def test_prepared_tfds_data_set(cache):
    train, val = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache)
    assert (len(train), len(val)) == (12, 5)
    ours = opening.open_source(f"shapes:{OPTIONS}", "val", data_dir=cache)
    assert [val.read(i) for i in range(5)] == [ours.read(i) for i in range(5)]
    assert val.class_names == shapes.CLASSES and val.labelled
    copy = pickle.loads(pickle.dumps(train))
    assert copy.read(2) == train.read(2)


def test_tfds_data_set_without_validation_split(cache, monkeypatch):
    monkeypatch.setattr(tfds_records, "TFDS_VALIDATION", ())
    whole, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache, val_fraction=0.0)
    train, val = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache, val_fraction=0.25)
    assert _ is None and (len(whole), len(train), len(val)) == (12, 9, 3)
    parts = [source.read(i) for source in (train, val) for i in range(len(source))]
    assert sorted(parts) == sorted(whole.read(i) for i in range(12))
    number = int(val.name(0).rsplit(" ", 1)[1])
    assert whole.read(number) == val.read(0)


def test_labels_of_a_tfds_data_set_are_kept(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path))
    monkeypatch.setattr(tfds_records, "TFDS_VALIDATION", ())
    train, val = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache, val_fraction=0.25)
    assert not list(tmp_path.iterdir())  # they are read when they are asked for
    for source in (train, val):
        labels = pickle.loads(pickle.dumps(source)).labels()
        np.testing.assert_array_equal(labels, [source.read(i)[1] for i in range(len(source))])
        assert labels.dtype == np.int32
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept.parent == tmp_path / "labels"
    assert kept.name.startswith(f"{tfds_name().replace('/', '_')}_1.2.0_train-12-")
    np.save(kept, np.arange(12, dtype=np.int32))
    np.testing.assert_array_equal(np.sort([*train.labels(), *val.labels()]), np.arange(12))


@pytest.mark.parametrize("damage", ["cut", "empty", "short", "other", "pickle"])
def test_damaged_labels_are_read_again(damage, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path))
    train, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache)
    expected = train.labels()
    (kept,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    whole = kept.read_bytes()
    if damage in ("cut", "empty"):
        kept.write_bytes(whole[: len(whole) - 5 if damage == "cut" else 0])
    elif damage == "short":
        np.save(kept, np.arange(3, dtype=np.int32))
    elif damage == "other":
        kept.write_text("labels")
    else:
        np.save(kept, np.array([print] * 12), allow_pickle=True)
    np.testing.assert_array_equal(train.labels(), expected)
    assert kept.read_bytes() == whole


def test_labels_that_cannot_be_kept(cache, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "file"))
    train, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache)
    with pytest.raises(InputError, match="set DPPMASK_CACHE"):
        train.labels()


def test_interrupted_reading_of_labels_leaves_nothing(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path))

    def interrupt(*_):
        raise KeyboardInterrupt

    train, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=cache)
    monkeypatch.setattr(tfds_records, "_column", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.labels()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_record_of_tfds_is_an_image_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "kept"))
    opening.open_splits(f"shapes:{OPTIONS}", data_dir=str(tmp_path))
    (file,) = tmp_path.rglob("*-train.array_record-*")
    data = bytearray(file.read_bytes())
    starts = [found.start() for found in re.finditer(b"\x89PNG", data)]
    data[starts[5] + 20 : starts[5] + 28] = bytes(8)
    file.write_bytes(data)
    train, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=str(tmp_path))
    lines = []
    (batch,) = stream(train, 1, batch_size=12, log=lines.append)
    assert batch["bad"].sum() == 1 and len(lines) == 1
    name = rf"tfds:{tfds_name()} train record \d+"
    assert re.match(rf"unreadable image: {name}: the record cannot be read: .*mismatch", lines[0])
    ours = opening.open_source(f"shapes:{OPTIONS}", "train", data_dir=str(tmp_path))
    for read in (train.labels, ours.targets):
        with pytest.raises(InputError, match=r"train record \d+: the record.*; prepare the data"):
            read()
    file.unlink()
    train, _ = opening.open_splits(f"tfds:{tfds_name()}", data_dir=str(tmp_path))
    with pytest.raises(OSError, match="No such file"):
        train.read(0)


# Views of a source.


def test_targets_for_labels(cache):
    val = opening.open_source(f"shapes:{OPTIONS}", "val", data_dir=cache)
    several = pickle.loads(pickle.dumps(with_targets(val)))
    assert several.label_shape == (24,) and several.target_names == shapes.ATTRIBUTES
    assert not several.labelled and several.labels is None
    for i in range(5):
        data, label = several.read(i)
        assert data == val.read(i)[0] and several.name(i) == val.name(i)
        np.testing.assert_array_equal(label, val.extras(i)["attributes"])
    np.testing.assert_array_equal(several.targets(), val.targets())


def test_folders_have_no_targets(tmp_path):
    write(tmp_path / "a.png")
    train, _ = open_both(tmp_path, val_fraction=0.0)
    with pytest.raises(InputError, match=r"a\.png does not have several labels"):
        with_targets(train)


def test_only_some_classes(tmp_path):
    for i, name in enumerate(["ant/a", "bee/b", "bee/c", "cat/d", "dog/e"]):
        write(tmp_path / f"{name}.png", i)
    train, _ = open_both(tmp_path, val_fraction=0.0)
    few = pickle.loads(pickle.dumps(only_classes(train, ("dog", "bee"), "here")))
    assert few.class_names == ("dog", "bee") and few.num_classes == 2
    assert names(few, tmp_path) == ["bee/b.png", "bee/c.png", "dog/e.png"]
    assert [few.read(i)[1] for i in range(3)] == [1, 1, 0]
    assert [decode.decode(few.read(i)[0])[0, 0, 0] for i in range(3)] == [1, 2, 4]
    np.testing.assert_array_equal(few.labels(), [1, 1, 0])
    assert few.extras(2) == {} and few.targets is None
    fewer = only_classes(few, ("bee",), "here")
    assert names(fewer, tmp_path) == ["bee/b.png", "bee/c.png"] and fewer.read(1)[1] == 0


def test_only_some_classes_of_shapes(cache):
    train = opening.open_source(f"shapes:{OPTIONS}", "train", data_dir=cache)
    few = only_classes(train, shapes.CLASSES[4:7], "here")
    kept = [i for i in range(12) if 4 <= train.read(i)[1] < 7]
    assert 0 < len(kept) == len(few) < 12
    np.testing.assert_array_equal(few.targets(), train.targets()[kept])
    for i, row in enumerate(kept):
        assert few.read(i) == (train.read(row)[0], train.read(row)[1] - 4)
        np.testing.assert_array_equal(few.extras(i)["mask"], train.extras(row)["mask"])


def test_classes_that_are_not_there(tmp_path):
    for name in ("train/ant/1", "train/bee/2", "val/ant/3"):
        write(tmp_path / f"{name}.png")
    train, val = open_both(tmp_path)
    with pytest.raises(InputError, match=r"^here: .* lacks 1 of the 2 classes: cow; .*'ant'"):
        only_classes(train, ("ant", "cow"), "here")
    with pytest.raises(InputError, match=r"lacks 7 of the 7 classes: 0, 1, 2, 3, 4 and 2 more"):
        only_classes(train, "0123456", "here")
    with pytest.raises(InputError, match="no image of these classes"):
        only_classes(val, ("bee",), "here")
    write(tmp_path / "train/3.png")
    with pytest.raises(InputError, match=r"here: the images have no labels: 3\.png does not"):
        only_classes(open_both(tmp_path)[0], ("ant",), "here")


def test_class_lists(tmp_path):
    hundred = class_list("imagenet100")
    assert len(hundred) == 100 and hundred == tuple(sorted(set(hundred)))
    assert hundred[0] == "n01558993" and all(len(name) == 9 for name in hundred)
    path = tmp_path / "list.txt"
    path.write_text(" dog\n\nbee \n")
    assert class_list(str(path)) == ("dog", "bee")
    for text, words in (("\n", "lists no class"), ("a\nb\na\n", "lists 'a' twice")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            class_list(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text in UTF-8"):
        class_list(str(path))
    with pytest.raises(InputError, match=r"gone\.txt: No such file"):
        class_list(str(tmp_path / "gone.txt"))


def test_data_of_a_config_with_classes(tmp_path):
    for name in ("train/ant/1", "train/bee/2", "train/cow/3", "val/ant/4", "val/bee/5"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "few.txt").write_text("bee\nant\n")
    data = {"source": f"folder:{tmp_path}", "dir": "", "val_fraction": 0.1, "range": "auto"}

    def open_data(classes):
        return run.open_data(ConfigDict({"data": {**data, "classes": classes}}))

    assert [len(split) for split in open_data("")] == [3, 2]
    train, val = open_data(str(tmp_path / "few.txt"))
    assert train.class_names == val.class_names == ("bee", "ant")
    assert [train.read(i)[1] for i in range(2)] == [val.read(i)[1] for i in range(2)] == [1, 0]
    with pytest.raises(InputError, match=r"config\.data\.classes=imagenet100: .*lacks 100"):
        open_data("imagenet100")
    data |= {"source": f"folder:{tmp_path}/train", "val_fraction": 0.0}
    assert open_data(str(tmp_path / "few.txt"))[1] is None


def test_unprepared_tfds_data_set(tmp_path):
    with pytest.raises(InputError) as caught:
        opening.open_source("tfds:cifar10", "train", data_dir=str(tmp_path))
    message = str(caught.value)
    assert "tfds build cifar10 --file_format=array_record" in message
    assert "dppmask-jax[prepare]" in message and str(tmp_path) in message
    assert not list(tmp_path.rglob("*"))


def test_unknown_tfds_data_set(tmp_path):
    with pytest.raises(InputError, match="no_such_set") as caught:
        opening.open_source("tfds:no_such_set", "train", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_no_tensorflow():
    code = (
        "import sys; from dppmask_jax.data import loader, sources;"
        "from dppmask_jax.data.images import augment, classify, crops, views;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
@pytest.mark.parametrize("name, labelled", [("imagenette128", True), ("photos", False)])
def test_real_folders(name, labelled):
    path = os.path.join(REAL, name)
    if not os.path.isdir(path):
        pytest.skip(f"no folder {path}")
    train, val = open_both(path)
    assert train.labelled == val.labelled == labelled and len(train) > len(val) > 0
    for i in range(0, len(train), max(1, len(train) // 20)):
        data, label = train.read(i)
        assert decode.decode(data).shape[2] == 3
        assert label == -1 or train.class_names[label] in train.name(i)
