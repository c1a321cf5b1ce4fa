"""A class for each pixel: tables, two published layouts and the generated scenes."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import dense, opening, segments, shapes
from dppmask_jax.errors import InputError

REAL = os.environ.get("DPPMASK_TEST_DATA", "")


def save(path, pixels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(path)


def save_image(path, number, size=(6, 4)):
    save(path, np.full((size[1], size[0], 3), number, np.uint8))


def classes_of(number):
    """(4, 6) uint8: two columns of each of three values."""
    return np.repeat(np.array([[0, number, 255]], np.uint8).repeat(2, axis=1), 4, axis=0)


def write_ade20k(root, counts=(3, 2)):
    for split, count in zip(("training", "validation"), counts, strict=True):
        for i in range(count):
            save_image(root / "images" / split / f"ADE_{i}.jpg", i)
            values = np.where(classes_of(i) == 255, 150, classes_of(i)).astype(np.uint8)
            save(root / "annotations" / split / f"ADE_{i}.png", values)
    return f"ade20k:{root}"


def write_voc(root, counts=(3, 2)):
    number = 0
    for split, count in zip(("train", "val"), counts, strict=True):
        names = [f"2007_{number + i:06}" for i in range(count)]
        for i, name in enumerate(names):
            save_image(root / "JPEGImages" / f"{name}.jpg", number + i)
            path = root / "SegmentationClass" / f"{name}.png"
            save(path, classes_of(number + i), palette=True)
        number += count
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return f"voc:{root}"


def test_ade20k_counts_classes_from_0_and_ignores_other(tmp_path):
    train, val = opening.open_splits(write_ade20k(tmp_path))
    assert (len(train), len(val)) == (3, 2) and not train.labelled
    assert len(train.segment_names) == len(set(train.segment_names)) == 150
    assert train.segment_names[::149] == ("wall", "flag") and train.ignored_segment == 255
    found = pickle.loads(pickle.dumps(train)).extras(2)["segments"]
    assert found.dtype == np.uint8 and found[0].tolist() == [255, 255, 1, 1, 149, 149]
    wide = np.array([[0, 1, 300]], np.uint16).repeat(4, axis=0).repeat(2, axis=1)
    save(tmp_path / "annotations/validation/ADE_0.png", wide)
    found = val.extras(0)["segments"][0].tolist()
    assert found == [255, 255, 0, 0, 299, 299], "not wrapped into the classes"


def test_voc_reads_the_numbers_of_the_palette(tmp_path):
    train, val = opening.open_splits(write_voc(tmp_path))
    assert [os.path.basename(val.name(i)) for i in range(2)] == [
        "2007_000003.jpg",
        "2007_000004.jpg",
    ]
    assert train.segment_names == dense.VOC_CLASSES and len(dense.VOC_CLASSES) == 21
    assert val.extras(1)["segments"][0].tolist() == [0, 0, 4, 4, 255, 255]
    assert val.ignored_segment == 255 and decode.decode(val.read(1)[0])[0, 0, 0] == 4


@pytest.mark.parametrize(
    "kind, break_it, words",
    [
        (
            write_ade20k,
            lambda root: (root / "images").rename(root / "img"),
            "cannot list .*training",
        ),
        (
            write_ade20k,
            lambda root: [path.unlink() for path in (root / "images/validation").iterdir()],
            "validation holds no image",
        ),
        (
            write_voc,
            lambda root: (root / "ImageSets").rename(root / "Sets"),
            r"cannot read .*train\.txt: No such file.* such as VOCdevkit",
        ),
        (
            write_voc,
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("\n"),
            r"val\.txt names no image",
        ),
        (
            write_voc,
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("../../a\n"),
            r"val\.txt is no list of images: '\.\./\.\./a\.jpg' names a file outside",
        ),
        (
            write_voc,
            lambda root: (root / "JPEGImages/2007_000003.jpg").unlink(),
            r"1 of the 2 files that .*val\.txt names do not exist",
        ),
    ],
)
def test_wrong_layouts(kind, break_it, words, tmp_path):
    spec = kind(tmp_path)
    break_it(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        opening.open_splits(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [write_ade20k, write_voc])
def test_maps_need_only_be_there_for_what_reads_them(write, tmp_path):
    spec = write(tmp_path)
    for path in (*tmp_path.rglob("ADE_1.png"), *tmp_path.rglob("2007_000003.png")):
        path.unlink()
    _, val = opening.open_splits(spec)
    with pytest.raises(InputError, match="1 of the 2 files that"):
        segments.segmented(val)


def write_csv(root, columns="segments", count=4):
    rows = [f"path,split,{columns}"]
    for i in range(count):
        save_image(root / f"{i}.png", i)
        save(root / f"maps/{i}.png", classes_of(i))
        mask = np.array([[0, 63, 64, 128, 192, 255]], np.uint8).repeat(4, axis=0)
        save(root / f"masks/{i}.png", mask)
        maps = {"segments": f"maps/{i}.png", "mask": f"masks/{i}.png"}
        cells = ",".join(maps[name.lower()] for name in columns.split(","))
        rows.append(f"{i}.png,{('train', 'val')[i % 2]},{cells}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return f"csv:{root}/list.csv"


def test_a_table_with_maps_of_classes(tmp_path):
    train, val = opening.open_splits(write_csv(tmp_path, "Segments,mask"))
    assert train.target_names == () and train.segment_names == () and train.ignored_segment == 255
    known = pickle.loads(pickle.dumps(val)).extras(1)
    assert set(known) == {"segments", "mask"}
    assert known["segments"][0].tolist() == [0, 0, 3, 3, 255, 255]
    assert segments.segmented(val) is val
    # Cut like the image: by the nearest pixel, no class between two others.
    options = {"image_size": (2, 2), "batch_size": 2, "extras": ("segments",)}
    with loader.eval_batches(val, **options) as batches:
        (batch,) = batches
    assert batch["segments"].shape == (2, 2, 2)
    assert set(np.unique(batch["segments"][1])) <= {0, 3, 255}
    save(tmp_path / "maps/3.png", np.full((4, 6, 3), 7, np.uint8))
    with pytest.raises(decode.DecodeError, match="palette or grey values, and this is of mode RGB"):
        val.extras(1)


def test_masks_alone_are_two_classes_with_a_border_of_neither(tmp_path):
    train, _ = opening.open_splits(write_csv(tmp_path, "mask"))
    found = pickle.loads(pickle.dumps(segments.segmented(train)))
    assert found.extras(0)["segments"][0].tolist() == [0, 0, 255, 255, 1, 1]
    assert found.segment_names == ("background", "foreground") and found.ignored_segment == 255
    for i in range(4):
        save_image(tmp_path / "plain" / f"{i}.png", i)
    assert segments.segmented(opening.open_splits(f"folder:{tmp_path}/plain")[0]) is None


def test_scenes_have_the_class_of_every_object():
    options = shapes.Options(size=64, train=20, val=1)
    for i in range(20):
        scene = shapes.draw(options, "train", i)
        np.testing.assert_array_equal(scene.mask == 255, scene.segments > 0)
        areas = np.bincount(scene.segments.ravel(), minlength=10)
        assert len(areas) == 10 and areas[1:].argmax() == scene.label, "the largest object's"
        shown = {a // 8 for a in np.flatnonzero(scene.attributes)}
        assert {k // 3 for k in np.flatnonzero(areas[1:])} == shown, "shapes of the attributes"


def test_scenes_are_read_back_with_their_classes(tmp_path):
    source = opening.open_source("shapes:size=32,train=3,val=1", "train", data_dir=str(tmp_path))
    scene = shapes.draw(shapes.Options(size=32, train=3, val=1), "train", 2)
    np.testing.assert_array_equal(source.extras(2)["segments"], scene.segments)
    assert source.segment_names == ("background", *shapes.CLASSES)
    assert segments.segmented(source) is source


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
def test_real_masks():
    path = os.path.join(REAL, "pets224", "labels.csv")
    if not os.path.exists(path):
        pytest.skip(f"no file {path}")
    found = segments.segmented(opening.open_splits(f"csv:{path}")[1])
    for i in (0, 7, len(found) - 1):
        known = found.extras(i)
        border = known["mask"] == 128
        assert border.any() and (known["segments"][border] == 255).all()
        assert set(np.unique(known["segments"][~border])) == {0, 1}
