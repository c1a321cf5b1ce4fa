import gzip
import io
import os
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import cache, identity, opening, packed
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import Pixels


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4 + value % 3, 4), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for i, name in enumerate(
        ["train/cat/b", "train/cat/a", "train/dog/c", "train/dog/é", "val/dog/d", "val/cat/e"]
    ):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    (root / "train/notes.txt").write_text("no image")
    (root / "train/cat/.hidden.png").write_bytes(b"")
    return root


def tar(path, root, name="", **options):
    with tarfile.open(path, "w", **options) as file:
        file.add(root, name or ".")
    return path


def zipped(path, root, method=zipfile.ZIP_DEFLATED, prefix=""):
    with zipfile.ZipFile(path, "w", method) as file:
        for each in sorted(root.rglob("*")):
            file.write(each, prefix + str(each.relative_to(root)))
    return path


def read_all(splits):
    return [[split.read(i) for i in range(len(split))] for split in splits]


@pytest.mark.parametrize("kind", ["tar", "tar in a folder", "gnu", "zip", "stored", "zip in two"])
def test_an_archive_is_the_folder_that_was_packed(folder, tmp_path, kind):
    path = {
        "tar": lambda: tar(tmp_path / "a.tar", folder),
        "tar in a folder": lambda: tar(tmp_path / "a.tar", folder, "set"),
        "gnu": lambda: tar(tmp_path / "a", folder, "x" * 120, format=tarfile.GNU_FORMAT),
        "zip": lambda: zipped(tmp_path / "a.zip", folder),
        "stored": lambda: zipped(tmp_path / "a.zip", folder, zipfile.ZIP_STORED),
        "zip in two": lambda: zipped(tmp_path / "a.zip", folder, prefix="some/set/"),
    }[kind]()
    ours, theirs = (opening.open_splits(f"{p}") for p in (f"archive:{path}", f"folder:{folder}"))
    assert read_all(ours) == read_all(theirs)
    assert identity.of_splits(*ours) == identity.of_splits(*theirs)
    assert ours[0].class_names == theirs[0].class_names == ("cat", "dog")
    assert ours[0].name(0).startswith(str(path)) and ours[0].name(0).endswith("train/cat/a.png")
    assert ours[0].path(0) == "" and theirs[0].path(0) == str(folder / "train/cat/a.png")
    assert [" 1 .txt;" in note for note in ours[0].notes] == [True]
    copy = pickle.loads(pickle.dumps(ours[1]))
    assert copy.read(1) == theirs[1].read(1)


def test_what_is_held_out_is_that_of_the_folder(folder, tmp_path):
    shutil.rmtree(folder / "val")
    (folder / "train/notes.txt").unlink()
    for i in range(20):
        (folder / f"train/cat/{i}.png").write_bytes(png(i))
    path = tar(tmp_path / "a.tar", folder / "train", "classes")
    ours, theirs = (
        opening.open_splits(spec) for spec in (f"archive:{path}", f"folder:{folder / 'train'}")
    )
    assert len(ours[1]) == 4 and read_all(ours) == read_all(theirs)
    assert identity.of_splits(*ours) == identity.of_splits(*theirs)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_folder(folder, tmp_path, workers):
    path = zipped(tmp_path / "a.zip", folder)

    def batches(spec, **options):
        source = opening.open_source(spec, "train")
        example = single_view
        with loader.train_stream(source, example=example, batch_size=4, seed=3, **options) as all_:
            return [next(all_) for _ in range(2)]

    whole = batches(f"folder:{folder}")
    parts = [
        batches(f"archive:{path}", workers=workers, shard=k, num_shards=2, start_step=0)
        for k in range(2)
    ]
    for step in range(2):
        for name in ("image", "label", "row"):
            both = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(both, whole[step][name])


def single_view(data, rng):
    return {"image": crops.random_crop(data, rng, image_size=(4, 4), scale=(0.5, 1.0))}


def test_links_in_a_tar_lead_to_its_members(folder, tmp_path):
    os.link(folder / "train/cat/a.png", folder / "train/cat/hard.png")
    (folder / "train/cat/soft.png").symlink_to("../dog/c.png")
    (folder / "train/cat/gone.png").symlink_to("/nowhere.png")
    path = tar(tmp_path / "a.tar", folder)
    train = opening.open_source(f"archive:{path}", "train")
    of_name = {train.name(i).rpartition("/")[2]: i for i in range(len(train))}
    for name in ("hard", "soft"):
        expected = (folder / f"train/cat/{name}.png").read_bytes()
        assert train.read(of_name[f"{name}.png"])[0] == expected
    with pytest.raises(OSError, match="a link to what the file lacks"):
        train.read(of_name["gone.png"])


def test_pixels_are_kept_in_an_archive_as_in_a_folder(tmp_path):
    for i in range(4):
        path = tmp_path / f"set/{'ab'[i % 2]}/{i}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full((5, 6, 4), 100 * i, np.uint16))
    path = zipped(tmp_path / "a.zip", tmp_path / "set")
    pixels = Pixels(4, range=(0.0, 500.0), kept=True)
    ours, theirs = (
        opening.open_splits(spec, pixels=pixels)[0]
        for spec in (f"archive:{path}", f"folder:{tmp_path / 'set'}")
    )
    for i in range(len(theirs)):
        np.testing.assert_array_equal(ours.read(i)[0], theirs.read(i)[0])


def broken_archives(folder, tmp_path):
    """{name: (path, words of the message)}"""
    whole = tar(tmp_path / "whole.tar", folder).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as file:
        starts = {member.name: member.offset for member in file}
    start = starts["./train/dog/c.png"]
    packed_zip = zipped(tmp_path / "whole.zip", folder).read_bytes()
    damaged = bytearray(whole)
    damaged[start + 10 : start + 200] = b"?" * 190
    (tmp_path / "folder.tar").mkdir()
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a/b.png", png(1))
    files = {
        "missing": (None, "cannot read .*: No such file"),
        "empty.tar": (b"", "cut short or no tar file"),
        "text.tar": (b"no tar" * 500, "cut short or no tar file"),
        "cut.tar": (whole[: start + 600], "cut short or no tar file"),
        "cut_header.tar": (whole[: start + 100], "cut short or no tar file"),
        "cut_between.tar": (whole[:start], "no end mark"),
        "damaged.tar": (bytes(damaged), f"no end mark at byte {start}"),
        "a.tar.gz": (gzip.compress(whole), "compressed as a whole.*gzip -d"),
        "cut.zip": (packed_zip[:-40], "cut short or no zip file"),
    }
    for name, (data, _) in files.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    words = {name: words for name, (_, words) in files.items()}
    return words | {"lzma.zip": "packed by method 14.*zip -0 -r", "folder.tar": "is a folder; give"}


def test_archives_that_cannot_be_read_are_refused_in_a_line(folder, tmp_path):
    for name, words in broken_archives(folder, tmp_path).items():
        with pytest.raises(InputError, match=words) as raised:
            opening.open_splits(f"archive:{tmp_path / name}")
        assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"data\.source=archive:"):
        opening.open_splits(f"folder:{tmp_path / 'whole.tar'}")
    with pytest.raises(InputError, match="there is no image below"):
        opening.open_splits(f"archive:{tar(tmp_path / 'none.tar', tmp_path / 'folder.tar')}")


def test_a_class_of_validation_that_training_lacks_is_refused(folder, tmp_path):
    (folder / "val/cow").mkdir()
    (folder / "val/cow/x.png").write_bytes(png(1))
    with pytest.raises(InputError, match=r"class 'cow' is in .*a.tar/val but not in"):
        opening.open_splits(f"archive:{tar(tmp_path / 'a.tar', folder)}")


def test_damaged_members_are_unreadable_images(folder, tmp_path):
    path = zipped(tmp_path / "a.zip", folder, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    place = data.index(png(1))
    data[place + 30] ^= 255
    path.write_bytes(data)
    train = opening.open_source(f"archive:{path}", "train")
    with pytest.raises(OSError, match="its checksum differs"):
        train.read(0)
    os.utime(path, (1, 1))
    with pytest.raises(OSError, match="changed after it was opened"):
        train.read(1)


def test_a_name_that_stands_twice_is_its_last(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for value in (1, 2, 3):
            info = tarfile.TarInfo(f"{'ab'[value == 3]}/x.png")
            info.size = len(png(value))
            file.addfile(info, io.BytesIO(png(value)))
    train = opening.open_source(f"archive:{tmp_path / 'a.tar'}", "train", val_fraction=0.0)
    assert [train.read(i) for i in range(len(train))] == [(png(2), 0), (png(3), 1)]


def test_the_index_of_many_members_is_kept_until_the_file_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_KEPT_FROM", 3)
    path = tar(tmp_path / "a.tar", folder)
    first = read_all(opening.open_splits(f"archive:{path}"))
    (kept,) = (tmp_path / "cache/files").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_of_tar", None)  # not called
        assert read_all(opening.open_splits(f"archive:{path}")) == first
    kept.write_bytes(kept.read_bytes()[:-30])
    assert read_all(opening.open_splits(f"archive:{path}")) == first
    assert cache.load(kept) is not None
    (folder / "train/cat/new.png").write_bytes(png(9))
    tar(path, folder)
    assert len(opening.open_source(f"archive:{path}", "train")) == len(first[0]) + 1
