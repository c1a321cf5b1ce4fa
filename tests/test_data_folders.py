"""Folders as people lay them out: splits, classes, and what is said of the rest."""

import pytest
from PIL import Image
from test_data_sources import names, open_both, write

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import folder, opening
from dppmask_jax.data.sources.base import notes_of
from dppmask_jax.errors import InputError


def lay_out(root, *files):
    for number, name in enumerate(files):
        write(root / f"{name}.png", number)
    return open_both(root)


def held(train, val, root):
    """The folders that a data set's images lie in, for training and for validation."""
    return tuple({name.rpartition("/")[0] for name in names(s, root)} for s in (train, val))


CLASSES = ("cat/1", "cat/2", "dog/3")


@pytest.mark.parametrize(
    "train_name, val_name",
    [
        ("train", "validation"), ("Train", "Val"), ("training", "valid"), ("TRAIN", "VALID"),
        ("train2017", "val2017"), ("train_set", "val_set"), ("train", "test"),
    ],
)  # fmt: skip
def test_folders_that_mean_splits_are_splits(train_name, val_name, tmp_path):
    train, val = lay_out(tmp_path, *(f"{s}/{c}" for s in (train_name, val_name) for c in CLASSES))
    assert len(train) == len(val) == 3 and train.class_names == val.class_names == ("cat", "dog")
    assert held(train, val, tmp_path) == tuple(
        {f"{split}/cat", f"{split}/dog"} for split in (train_name, val_name)
    )
    (note,) = notes_of(train, val)
    assert f"training images from {train_name}" in note and f"from {val_name}" in note


def test_parts_of_a_split_are_put_together(tmp_path):
    train, val = lay_out(
        tmp_path, "train.X2/a/1", "train.X1/b/1", "train.X1/c/1", "train.X2/c/2", "val.X/a/1"
    )
    assert train.class_names == ("a", "b", "c") and len(train) == 4
    assert [name.split("/")[1] for name in names(train, tmp_path)] == ["b", "c", "a", "c"]
    assert train.labels().tolist() == [1, 2, 0, 2] and val.labels().tolist() == [0]
    assert "train.X1, train.X2" in train.notes[0]


def test_what_is_beside_the_splits_is_said(tmp_path):
    train, val = lay_out(
        tmp_path, "train/a/1", "train/b/1", "val/a/1", "test/1", "validation/2", "3"
    )
    assert (len(train), len(val)) == (2, 1)
    (note,) = notes_of(train, val)
    assert note == f"not used in {tmp_path}: test, validation and 1 image"


def test_folders_that_may_mean_one_split_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Validation, valid, any of which may be val; call"):
        lay_out(tmp_path, "train/1", "Validation/1", "valid/2")
    write(tmp_path / "val/1.png")  # the plain name goes first, and no other split is asked for
    train, val = lay_out(tmp_path, "Test/1", "testing/1")
    assert held(train, val, tmp_path) == ({"train"}, {"val"})


def test_a_test_folder_without_the_labels_is_not_for_validation(tmp_path):
    images = [f"train/{name}/{i}" for name in ("cat", "dog") for i in range(5)]
    train, val = lay_out(tmp_path, *images, "test/1", "test/2")
    assert (len(train), len(val)) == (8, 2) and val.labelled
    assert train.notes[0] == f"not used in {tmp_path}: test"
    assert "for validation, since 1.png does not lie" in train.notes[1]


def test_a_class_may_be_called_like_a_split(tmp_path):
    train, _ = lay_out(tmp_path, "Train/1", "Train/2", "bus/1", "bus/2", "car/1", "car/2")
    assert train.class_names == ("Train", "bus", "car")
    assert "Train too: none is for validation" in train.notes[0]


def test_validation_without_training_is_said(tmp_path):
    train, _ = lay_out(tmp_path, "images/1", "images/2", "Valid/1", "Valid/2")
    assert train.class_names == ("Valid", "images")
    assert "Valid too: none is for training" in train.notes[0]


@pytest.mark.parametrize("split", ["{}_images", "photos-{}", "{}A"])
def test_other_names_with_a_split_in_them_are_said(split, tmp_path):
    said = [split.format(name) for name in ("train", "val")]
    train, _ = lay_out(tmp_path, *(f"{name}/{i}" for name in said for i in range(2)))
    assert len(train.class_names) == 2
    (note,) = train.notes
    assert f"{', '.join(sorted(said))} too: if these are for training" in note


def test_names_of_classes_are_no_splits(tmp_path):
    train, _ = lay_out(tmp_path, *(f"{name}/1" for name in ("train station", "valley", "contest")))
    assert train.notes == ()


def test_splits_one_folder_down_are_refused_by_their_path(tmp_path):
    with pytest.raises(InputError, match=rf"give data\.source=folder:{tmp_path}/set$"):
        lay_out(tmp_path, "set/train/a/1", "set/train/b/1", "set/val/a/1")
    (tmp_path / "more").mkdir()
    train, val = lay_out(tmp_path, "more/1")
    assert len(train) + len(val) == 4
    assert any("those for validation or testing in set as well" in note for note in train.notes)


def test_strays_are_left_out_of_the_classes_and_counted(tmp_path):
    train, val = lay_out(tmp_path, *CLASSES, "dog/4", "5")
    assert train.class_names == ("cat", "dog") and len(train) + len(val) == 4
    assert train.notes == (
        f"1 of 5 images are left out: they lie directly in {tmp_path}, the others in folders "
        "of 2 classes",
    )
    train, val = lay_out(tmp_path, "6")  # as many as a class has: they may be what is meant
    assert not train.labelled and len(train) + len(val) == 6 and train.notes == ()
    assert "5.png does not lie" in train.unlabelled_because


def test_images_in_a_folder_of_each_class(tmp_path):
    """As tiny-imagenet has them, where those for validation have no folders."""
    train, val = lay_out(
        tmp_path, "train/n1/images/a", "train/n2/images/b", "train/n2/images/c", "val/images/d"
    )
    assert train.class_names == ("n1", "n2") and train.labels().tolist() == [0, 1, 1]
    assert not val.labelled and "(images) is a class of" in val.unlabelled_because


def test_files_that_are_ignored_are_counted(tmp_path):
    for name in ("b.heic", "c.HEIC", "d.txt", "none", ".hidden"):
        (tmp_path / name).write_text("x")
    train, val = lay_out(tmp_path, "a", "b")
    assert notes_of(train, val) == (
        f"ignored below {tmp_path}: 2 .heic, 1 without an extension, 1 .txt; images are "
        + " ".join(folder.EXTENSIONS),
    )
    with pytest.raises(InputError, match=r"no image below .*: 1 \.md; known are \.jpg"):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "x.md").write_text("x")
        open_both(tmp_path)


@pytest.mark.skipif(not decode.READS_AVIF, reason="this Pillow reads no AVIF")
def test_jfif_and_avif_are_read(tmp_path):
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    picture.save(tmp_path / "a.jfif", "JPEG")
    picture.save(tmp_path / "b.avif", "AVIF")
    picture.save(tmp_path / "c.jpg", "AVIF")
    train = opening.open_source(f"folder:{tmp_path}", "train", val_fraction=0.0)
    assert len(train) == 3 and train.notes == ()
    for i in range(3):
        assert abs(decode.decode(train.read(i)[0])[4, 4].astype(int) - (200, 100, 50)).max() < 8


def test_a_file_that_this_pillow_does_not_read_is_named_for_what_it_is(monkeypatch):
    monkeypatch.setattr(decode, "READS_AVIF", False)
    monkeypatch.setattr(decode, "FORMATS", tuple(set(decode.FORMATS) - {"AVIF"}))
    for brand, words in ((b"avif", "AVIF, which .* Pillow 11.3"), (b"heic", "HEIC; convert it")):
        with pytest.raises(decode.DecodeError, match=words):
            decode.decode(b"\0\0\0\x20ftyp" + brand + bytes(100))
