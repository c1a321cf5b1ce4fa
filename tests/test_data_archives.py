import gzip
import io
import os
import pickle
import shutil
import signal
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from unittest import mock

import numpy as np
import pytest
from absl import logging
from small_sources import png, single_view

from dppmask_jax.data import loader
from dppmask_jax.data.sources import cache, identity, links, opening, packed
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import Pixels


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


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
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


def test_links_to_links_and_to_folders_are_followed_as_on_disk(folder, tmp_path):
    cat = folder / "train/cat"
    (cat / "one.png").symlink_to("two.png")
    (cat / "two.png").symlink_to("../../val/dog/d.png")
    (cat / "round.png").symlink_to("round.png")
    (cat / "longer.png").symlink_to("longer.png/x")
    (cat / "above").symlink_to("..")
    (folder / "train/cow").symlink_to("../val/cow")
    (folder / "val/cow").symlink_to("dog")
    path = tar(tmp_path / "a.tar", folder)
    ours, theirs = (opening.open_splits(spec) for spec in (f"archive:{path}", f"folder:{folder}"))
    assert ours[0].class_names == theirs[0].class_names == ("cat", "cow", "dog")
    for mine, other in zip(ours, theirs, strict=True):
        names = [
            [split.name(i).rpartition(root)[2] for i in range(len(split))]
            for split, root in ((mine, "a.tar"), (other, "set"))
        ]
        assert names[0] == names[1]
    for i in range(len(theirs[0])):
        if theirs[0].name(i).endswith(("round.png", "longer.png")):
            with pytest.raises(OSError):
                ours[0].read(i)
        else:
            assert ours[0].read(i) == theirs[0].read(i)


def test_folders_that_link_to_folders_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "_MOST", 1000)
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for depth in range(30):
            for side in "ab":
                info = tarfile.TarInfo(f"{depth}/{side}")
                info.type, info.linkname = tarfile.SYMTYPE, f"../{depth + 1}"
                file.addfile(info)
        info = tarfile.TarInfo("30/x.png")
        info.size = len(png(1))
        file.addfile(info, io.BytesIO(png(1)))
    with pytest.raises(InputError, match="its links lead to more than 1,000 files and folders"):
        opening.open_splits(f"archive:{tmp_path / 'a.tar'}")


def test_a_size_below_0_in_a_tar_is_refused(folder, tmp_path):
    path = tar(tmp_path / "a.tar", folder, format=tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    start = data.index(b"./train/dog/c.png")
    data[start + 124 : start + 136] = b"\xff" * 10 + b"\xfe\x00"  # -512
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)

    def stop(*_):
        raise TimeoutError("it is read for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    try:
        with pytest.raises(InputError, match="no tar file"):
            opening.open_splits(f"archive:{path}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_a_zip_has_that_nobody_reads_is_left_in_peace(folder, tmp_path):
    path = zipped(tmp_path / "a.zip", folder)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("notes.md", "x", zipfile.ZIP_BZIP2)
        file.writestr("train/cat/z.png", png(1), zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("train/dog/y.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "../cat/a.png")
    train = opening.open_source(f"archive:{path}", "train")
    of_name = {train.name(i).rpartition("/")[2]: i for i in range(len(train))}
    assert train.read(of_name["a.png"])[0] == png(1)
    with pytest.raises(OSError, match=r"packed by method 12 in the zip file; .*zip -0 -r"):
        train.read(of_name["z.png"])
    with pytest.raises(OSError, match=r"a link in a zip file; .*without -y"):
        train.read(of_name["y.png"])


def test_a_member_of_a_zip_that_is_more_than_it_says_is_not_unpacked_whole(tmp_path):
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed_bytes = bomb.compress(bytes(50_000_000)) + bomb.flush()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/1.png", png(1))
        file.writestr("a/bomb.png", packed_bytes)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"a/bomb.png") - 46
    struct.pack_into("<H", data, entry + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<I", data, entry + 24, 0)  # its size
    path.write_bytes(data)
    train = opening.open_source(f"archive:{path}", "train", val_fraction=0.0)
    tracemalloc.start()
    with pytest.raises(OSError, match="its checksum differs"):
        train.read(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_backslashes_in_a_zip_are_folders(folder, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                name = str(each.relative_to(folder)).replace("/", "\\")
                file.writestr(name, each.read_bytes())
    ours, theirs = (opening.open_splits(spec) for spec in (f"archive:{path}", f"folder:{folder}"))
    assert ours[0].class_names == ("cat", "dog") and read_all(ours) == read_all(theirs)


def test_an_archive_that_changes_while_its_headers_are_read_is_refused(
    folder, tmp_path, monkeypatch
):
    path = tar(tmp_path / "a.tar", folder)
    read = packed._of_tar

    def read_and_change(path):
        found = read(path)
        os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(packed, "_of_tar", read_and_change)
    with pytest.raises(InputError, match=r"a\.tar was changed while it was read"):
        opening.open_splits(f"archive:{path}")


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
        "cut.zip": (packed_zip[:-40], "cannot be read as a zip file"),
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
    umask = os.umask(0)
    os.umask(umask)
    assert kept.stat().st_mode & 0o777 == 0o666 & ~umask
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_of_tar", None)  # not called
        assert read_all(opening.open_splits(f"archive:{path}")) == first
    kept.write_bytes(kept.read_bytes()[:-30])
    assert read_all(opening.open_splits(f"archive:{path}")) == first
    assert cache.load(kept) is not None
    np.savez(kept, names=np.zeros(3))
    assert read_all(opening.open_splits(f"archive:{path}")) == first
    (folder / "train/cat/new.png").write_bytes(png(9))
    tar(path, folder)
    assert len(opening.open_source(f"archive:{path}", "train")) == len(first[0]) + 1


def test_an_index_that_cannot_be_kept_is_used(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DPPMASK_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(cache, "_KEPT_FROM", 3)
    path = tar(tmp_path / "a.tar", folder)
    with mock.patch.object(logging, "warning") as warned:
        assert len(opening.open_source(f"archive:{path}", "train")) == 4
    assert "cannot write the index" in str(warned.call_args)
