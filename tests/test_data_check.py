import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.commands.data import main
from dppmask_jax.data import checking
from dppmask_jax.errors import InputError


def picture(seed, height=20, width=30, channels=3):
    shape = (height, width, channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.fixture
def good(tmp_path):
    for i, name in enumerate(["train/a/1", "train/a/2", "train/b/3", "val/a/4", "val/b/5"]):
        path = tmp_path / f"set/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    return tmp_path / "set"


def checked(spec, *flags):
    """(exit status, report) of the command; the report is that for programs."""
    path = os.path.join(os.environ["CHECKED_REPORT"], "check.json")
    try:
        main(["check", str(spec), f"--json={path}", *flags])
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    with open(path) as file:
        return status, json.load(file)


@pytest.fixture(autouse=True)
def place_of_reports(tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKED_REPORT", str(tmp_path))


def test_a_good_folder(good, tmp_path, capsys):
    status, found = checked(f"folder:{good}", f"--sheet={tmp_path}/sheet.png")
    out = capsys.readouterr().out
    assert status == 0 and "all images can be read" in out
    assert "train: 3 images\n  2 classes, of 1 (b) to 2 images (a)\n  a 2, b 1\n" in out
    train = found["splits"]["train"]
    assert train["classes"] == {"a": 2, "b": 1} and train["kinds"] == {
        "PNG, 3 channels (RGB), 8 bits": 3
    }
    assert train["sides"]["height"]["smallest"] == 20 and train["sides"]["width"]["median"] == 30
    assert found["duplicates"] == [] and found["broken"] == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        width, height = sheet.size  # two classes, two columns of 128 pixels
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert 256 < width < 320 and height > 256
    assert (np.ptp(pixels, axis=-1) > 60).sum() > 20_000  # three images in colour


def spoiled(folder):
    """Puts a file of every bad kind into a folder of a class; {name: reason}."""
    whole = (folder / "1.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "html.jpg").write_text("<html>not found</html>")
    (folder / "empty.png").touch()
    (folder / "random.jpg").write_bytes(bytes(range(256)))
    (folder / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").touch()
    reasons = {
        "truncated.png": "truncated",
        "html.jpg": "a page of HTML",
        "empty.png": "the file is empty",
        "random.jpg": "damaged, or of no format",
        "gone.png": "No such file",
        "pipe.png": "not a regular file",
    }
    if os.geteuid():
        (folder / "locked.png").write_bytes(whole)
        (folder / "locked.png").chmod(0)
        reasons["locked.png"] = "Permission denied"
    return reasons


def test_every_kind_of_bad_file_is_named_with_its_reason(good, capsys):
    reasons = spoiled(good / "train/a")
    status, found = checked(f"folder:{good}")
    train = found["splits"]["train"]
    told = {os.path.basename(one["name"]): one["reason"] for one in train["unreadable"]}
    assert status == 1 and found["broken"] == len(reasons) and told.keys() == reasons.keys()
    for name, words in reasons.items():
        assert words in told[name], (name, told[name])
    out = capsys.readouterr().out
    assert f"{len(reasons)} images unreadable" in out and "empty.png: the file is empty" in out
    assert "1 .txt, 1 folder called folder.png" in out
    assert out.splitlines()[-2] == f"{len(reasons)} images cannot be read"


def test_where_nothing_can_be_read_there_is_a_report_all_the_same(tmp_path, capsys):
    for place in "ab":
        (tmp_path / "set" / place).mkdir(parents=True)
        (tmp_path / "set" / place / "1.png").write_text("no image")
    status, found = checked(f"folder:{tmp_path}/set", f"--sheet={tmp_path}/sheet.png")
    ((name, split),) = found["splits"].items()
    assert (status, found["broken"], name, split["images"]) == (1, 2, "refused", 2)
    told = [(os.path.basename(one["name"]), one["reason"]) for one in split["unreadable"]]
    assert [name for name, _ in told] == ["1.png"] * 2 and all(reason for _, reason in told)
    out = capsys.readouterr().out
    assert "2 images unreadable" in out and "note: training refuses this: none of the 2" in out


def test_names_that_hold_anything_are_escaped(good, capsys):
    odd = good / "train/c\ud800$x_{$".replace("\ud800", os.fsdecode(b"\xff"))
    odd.mkdir()
    picture(7).save(odd / "1.png")
    (good / "train/a/bad\n\x1b[31mall images can be read.png").write_text("no image")
    (odd / os.fsdecode(b"bad\xfe.png")).write_text("no image")
    status, found = checked(f"folder:{good}", f"--sheet={good.parent}/sheet.png")
    out = capsys.readouterr().out
    assert status == 1 and found["broken"] == 2
    assert "\x1b" not in out and out.encode().isascii()
    assert r"bad\n\x1b[31mall images can be read.png" in out and r"bad\udcfe.png" in out
    assert not any(line.startswith("all images") for line in out.splitlines())
    assert (good.parent / "sheet.png").stat().st_size > 1000


def test_unusual_images_are_told_and_are_not_broken(good):
    frames = [picture(i) for i in (10, 11)]
    for name in ("x.gif", "x.tif"):
        frames[0].save(good / "train/a" / name, save_all=True, append_images=frames[1:])
    picture(12, 3, 50).save(good / "train/a/small.png")
    picture(13, channels=4).save(good / "train/a/alpha.png")
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(good / "train/a/wide.png")
    status, found = checked(f"folder:{good}")
    train = found["splits"]["train"]
    assert status == 0
    assert [os.path.basename(name) for name in train["several_frames"]] == ["x.gif", "x.tif"]
    assert train["smallest"]["height"] == 3 and train["smallest"]["name"].endswith("small.png")
    kinds = " | ".join(train["kinds"])
    assert "PNG, 4 channels (RGBA), 8 bits" in kinds and "(I;16), 16 bits" in kinds


def test_images_that_are_there_twice_are_found_across_splits_first(good, capsys):
    shutil.copy(good / "train/a/1.png", good / "val/b/copy.png")
    with Image.open(good / "train/a/2.png") as image:
        image.save(good / "train/b/again.bmp")
    status, found = checked(f"folder:{good}")
    groups = [
        (one["across_splits"], one["same_bytes"], [os.path.basename(n) for n in one["images"]])
        for one in found["duplicates"]
    ]
    assert status == 0 and groups == [
        (True, True, ["1.png", "copy.png"]),
        (False, False, ["2.png", "again.bmp"]),
    ]
    out = capsys.readouterr().out
    assert "the same pixels across splits: 2 images in 1 group" in out and "(other bytes)" in out


def test_pixels_that_are_kept(tmp_path):
    (tmp_path / "set").mkdir()
    for i in range(4):
        values = np.full((8, 9, 3 if i == 3 else 4), 100 * i, np.uint16)
        np.save(tmp_path / f"set/{i}.npy", values)
    sheet = f"--sheet={tmp_path}/sheet.png"
    status, found = checked(f"folder:{tmp_path}/set", "--channels=4", "--val_fraction=0", sheet)
    train = found["splits"]["train"]
    assert status == 1 and train["kinds"] == {"4 channels, uint16": 3}
    assert [one["reason"] for one in train["unreadable"]] == ["it has 3 channels, not 4"]
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_wrong_arguments_are_refused_in_a_line(good, tmp_path):
    cases = {
        "SOURCE=nowhere: it must be": ["nowhere"],
        "there is no folder": [f"folder:{tmp_path}/gone"],
        "--images=0": [f"folder:{good}", "--images=0"],
        "--channels=0": [f"folder:{good}", "--channels=0"],
        "--sheet=x.jpg: it is a PNG": [f"folder:{good}", "--sheet=x.jpg"],
        "there is no folder .*gone; make it": [f"folder:{good}", f"--json={tmp_path}/gone/x.json"],
    }
    for words, arguments in cases.items():
        with pytest.raises(InputError, match=words) as raised:
            main(["check", *arguments])
        assert "\n" not in str(raised.value)


def test_labels_of_minus_one_are_none(good):
    splits = checking.splits_of(f"folder:{good}", channels=None)
    some = dataclasses.replace(splits["train"], labels=lambda: np.array([-1, 1, -1], np.int32))
    found = checking.report("", {"train": some}, {"train": checking.look(some, None, None)})
    assert found["splits"]["train"]["classes"] == {"a": 0, "b": 1}
    assert "  2 images without a label" in list(checking.lines(found))
