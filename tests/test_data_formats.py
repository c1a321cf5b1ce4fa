"""The data sets of docs/data_formats.md are made as the page has them, and opened."""

import contextlib
import io
import re
import shutil
import tarfile

import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax.data.images.decode import decode
from dppmask_jax.data.sources import open_splits
from dppmask_jax.errors import InputError

PAGE = (tiny.ROOT / "docs" / "data_formats.md").read_text()
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
REFUSED = re.compile(r"^\$ dppmask data check (\S+)\nerror: (.+)$", re.MULTILINE)


def image(number, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(data, kind)
    return data.getvalue()


def shard(path, text):
    """A tar of what the page lists: a member a line, behind its name what is in it."""
    with tarfile.open(path, "w") as file:
        for number, line in enumerate(text.splitlines()):
            name, _, inside = line.partition("  ")
            data = inside.encode() or image(number)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All files that the page lists, and what its Python writes."""
    folder = tmp_path_factory.mktemp("formats")
    written = {title: (kind, text) for kind, title, text in FENCE.findall(PAGE) if title}
    listed = [
        line for kind, _, text in FENCE.findall(PAGE) if kind == "text" for line in text.split()
    ]
    assert set(written) <= set(listed)
    for number, name in enumerate(listed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, text = written.get(name, ("", ""))
        if kind == "tar":
            shard(path, text)
        elif text:
            path.write_text(text)
        elif path.parent.name in ("masks", "maps"):
            pixels = np.zeros((8, 8), np.uint8)
            pixels[:4] = 255 if path.parent.name == "masks" else 1
            Image.fromarray(pixels).save(path)
        else:
            path.write_bytes(image(number))
    (folder / "field").mkdir()
    for kind in ("tar", "gztar", "zip"):
        shutil.make_archive(folder / "pets", kind, folder, "pets")
    with contextlib.chdir(folder):
        for kind, _, text in FENCE.findall(PAGE):
            if kind == "python":
                exec(text, {})
    return folder


@pytest.mark.parametrize(
    ("spec", "sizes", "classes", "labels", "extras"),
    [
        ("folder:holiday", (3, 1), (), 0, set()),
        ("folder:pets", (4, 2), ("cat", "dog"), 0, set()),
        ("archive:pets.tar", (4, 2), ("cat", "dog"), 0, set()),
        ("archive:pets.zip", (4, 2), ("cat", "dog"), 0, set()),
        ("wds:web", (3, 1), ("gull", "heron"), 0, set()),
        (
            "wds:web/train-{000000..000001}.tar,val=web/val-*.tar",
            (3, 1),
            ("gull", "heron"),
            0,
            set(),
        ),
        ("hf:waders", (2, 2), ("gull", "heron"), 0, set()),
        ("arrayrecord:records", (2, 2), ("0", "1"), 0, set()),
        ("arrayrecord:records/train*,val=records/val*", (2, 2), ("0", "1"), 0, set()),
        ("csv:birds/list.csv", (2, 2), ("gull", "heron"), 2, {"mask"}),
        ("coco:street", (2, 1), (), 2, set()),
        ("clevr:blocks", (2, 1), (), 24, set()),
        ("saliency:objects", (2, None), (), 0, {"mask"}),
        ("csv:rooms/list.csv", (1, 1), (), 0, {"segments"}),
    ],
)
def test_the_page_is_right(root, monkeypatch, spec, sizes, classes, labels, extras):
    monkeypatch.chdir(root)
    assert spec in PAGE
    splits = open_splits(spec, val_fraction=0.25)
    assert tuple(split and len(split) for split in splits) == sizes
    for split in filter(None, splits):
        assert split.class_names == classes
        assert (split.targets().shape[1] if split.targets else 0) == labels
        assert decode(split.read(0)[0]).shape == (8, 8, 3)
    assert extras <= set(splits[0].extras(0))


@pytest.mark.parametrize(("spec", "line"), REFUSED.findall(PAGE))
def test_what_does_not_fit_is_refused_in_the_words_of_the_page(root, monkeypatch, spec, line):
    monkeypatch.chdir(root)
    with pytest.raises(InputError) as refused:
        open_splits(spec)
    assert str(refused.value) == line


def test_errors_are_found_on_the_page():
    assert len(REFUSED.findall(PAGE)) >= 6


def test_arrays_of_the_page_are_what_it_says(root):
    assert np.load(root / "masks.npy").sum(axis=1).tolist() == [48] * 4
    assert np.load(root / "field/1.npy").shape == (128, 128, 4)
