import io

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data.sources import imagenet9
from dppmask_jax.errors import InputError

CLASSES = ("00_dog", "01_bird", "02_wheeled vehicle")


def encoded(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def lay_out(root, variant, classes=CLASSES, images=2):
    for number, name in enumerate(classes):
        folder = root / variant / "val" / name
        folder.mkdir(parents=True)
        for i in range(images):
            (folder / f"fg_{i}.JPEG").write_bytes(encoded(10 * number + i))
    return root


# Folders.


def test_variants_that_are_there(tmp_path):
    for variant in ("only_bg_t", "mixed_same", "original", "fg_mask"):
        lay_out(tmp_path, variant)
    (tmp_path / "original" / "val" / "00_dog" / "notes.txt").write_text("no image")
    (tmp_path / "original" / "val" / ".hidden").mkdir()
    variants = imagenet9.open_variants(str(tmp_path))
    assert list(variants) == ["original", "mixed_same", "only_bg_t"]
    for variant in variants.values():
        assert variant.class_names == CLASSES and len(variant) == 6
        assert variant.labels().tolist() == [0, 0, 1, 1, 2, 2]
        assert [variant.read(i) for i in range(6)] == [
            (encoded(10 * label + i), label) for label in range(3) for i in range(2)
        ]
    assert variants["original"].name(3).endswith("original/val/01_bird/fg_1.JPEG")


def no_variant(root):
    (root / "val").mkdir()
    return "has none of the folders original, "


def no_val(root):
    lay_out(root, "original")
    (root / "only_fg").mkdir()
    return "cannot list .*only_fg/val"


def no_classes(root):
    (root / "original" / "val").mkdir(parents=True)
    (root / "original" / "val" / "a.png").write_bytes(encoded(0))
    return "original/val has no class folders"


def no_images(root):
    lay_out(root, "original")
    (root / "original" / "val" / "03_reptile").mkdir()
    return "03_reptile has no image"


def broken_images(root):
    lay_out(root, "original", CLASSES[:1], images=1)
    (root / "original" / "val" / "00_dog" / "fg_0.JPEG").write_bytes(b"broken")
    return "can be read"


def other_classes(root):
    lay_out(root, "original")
    lay_out(root, "no_fg", CLASSES[:2])
    return "original and no_fg .*'02_wheeled vehicle' is in one only"


@pytest.mark.parametrize(
    "break_it", [no_variant, no_val, no_classes, no_images, broken_images, other_classes]
)
def test_bad_layouts(break_it, tmp_path):
    words = break_it(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        imagenet9.open_variants(str(tmp_path))
    assert "\n" not in str(caught.value)


# Classes.


def test_classes_of_imagenet1k():
    mapping = imagenet9.in9_of_model_class(1000, "imagenet1k")
    assert mapping.shape == (1000,) and mapping.dtype == np.int32
    # By hand from the published ranges, such as dogs 151-170 and 173-268.
    assert [np.count_nonzero(mapping == k) for k in range(9)] == [
        116, 52, 42, 36, 35, 27, 26, 20, 16,
    ]  # fmt: skip
    # Tench, hen, goldfinch, Komodo dragon, Chihuahua, Mexican hairless (the last dog), tabby,
    # ladybug, ambulance, accordion, indri, coho; a mushroom and a window screen are none.
    some = [0, 8, 11, 48, 151, 268, 281, 301, 407, 401, 384, 391, 947, 904]
    assert mapping[some].tolist() == [8, 1, 1, 3, 0, 0, -1, 5, 2, 6, 7, 8, -1, -1]


def test_classes_of_imagenet100():
    mapping = imagenet9.in9_of_model_class(100, "imagenet100")
    assert [np.count_nonzero(mapping == k) for k in range(9)] == [19, 5, 3, 4, 4, 3, 2, 2, 0]
    assert np.count_nonzero(mapping == -1) == 58


def test_wnids_agree_with_both_lists():
    wnids = imagenet9._shipped("imagenet1k_wnids.txt").split()
    np.testing.assert_array_equal(
        imagenet9.in9_of_model_class(wnids, "wnid"),
        imagenet9.in9_of_model_class(1000, "imagenet1k"),
    )
    rows = [line.split(",") for line in imagenet9._shipped("imagenet100_map.csv").split()[1:]]
    assert [wnids[int(index)] for _, _, index, _ in rows] == [wnid for _, wnid, _, _ in rows]
    np.testing.assert_array_equal(
        imagenet9.in9_of_model_class([wnid for _, wnid, _, _ in rows], "wnid"),
        imagenet9.in9_of_model_class(100, "imagenet100"),
    )


def test_wnids_in_any_order_and_unknown_ones():
    said = []
    names = ("n02979186", "my own", "n02102040", "n01440764", "n00000001")
    mapping = imagenet9.in9_of_model_class(names, "wnid", log=said.append)
    assert mapping.tolist() == [-1, -1, 0, 8, -1]  # cassette player, springer spaniel, tench
    (line,) = said
    assert line.startswith("2 of the model's 5 classes") and "'my own'" in line
    imagenet9.in9_of_model_class(names[2:4], "wnid", log=said.append)
    assert len(said) == 1


def test_classes_of_the_test_itself():
    assert imagenet9.in9_of_model_class(3, "same").tolist() == [0, 1, 2]
    assert imagenet9.in9_of_model_class(("a", "b"), "same").tolist() == [0, 1]


@pytest.mark.parametrize(
    "classes, kind, words",
    [
        (9, "imagenet9", "unknown kind of classes 'imagenet9'"),
        (100, "imagenet1k", "the model has 100 classes, imagenet1k has 1000"),
        (("a",) * 10, "imagenet100", "the model has 10 classes, imagenet100 has 100"),
        (("cat", "dog"), "wnid", "none of the model's 2 classes, such as 'cat',"),
        (1000, "wnid", "none of the model's 0 classes is named"),
    ],
)
def test_kinds_that_do_not_go_together(classes, kind, words):
    with pytest.raises(InputError, match=words) as caught:
        imagenet9.in9_of_model_class(classes, kind)
    assert "\n" not in str(caught.value)
