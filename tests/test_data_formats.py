"""The data sets of docs/data_formats.md are made as the page has them, and opened."""

import re

import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax.data.images.decode import decode
from dppmask_jax.data.sources import open_splits

PAGE = (tiny.ROOT / "docs" / "data_formats.md").read_text()
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All files that the page lists: images, masks and what stands in its blocks."""
    folder = tmp_path_factory.mktemp("formats")
    written = {title: text for _, title, text in FENCE.findall(PAGE) if title}
    listed = [
        line for kind, _, text in FENCE.findall(PAGE) if kind == "text" for line in text.split()
    ]
    assert set(written) <= set(listed)
    for number, name in enumerate(listed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in written:
            path.write_text(written[name])
        elif path.parent.name in ("masks", "maps"):
            pixels = np.zeros((8, 8), np.uint8)
            pixels[:4] = 255 if path.parent.name == "masks" else 1
            Image.fromarray(pixels).save(path)
        else:
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    ("spec", "sizes", "classes", "labels", "extras"),
    [
        ("folder:holiday", (3, 1), (), 0, set()),
        ("folder:pets", (4, 2), ("cat", "dog"), 0, set()),
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


def test_arrays_of_the_page_are_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "field").mkdir()
    for kind, _, text in FENCE.findall(PAGE):
        if kind == "python":
            exec(text, {})
    assert np.load("masks.npy").sum(axis=1).tolist() == [48] * 4
    assert np.load("field/1.npy").shape == (128, 128, 4)
