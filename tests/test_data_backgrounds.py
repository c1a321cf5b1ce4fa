import io
import os
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import imagenet9, mixed_backgrounds, opening
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError

REAL = os.environ.get("DPPMASK_TEST_DATA", "")
MIXED = ("mixed_same", "mixed_rand", "mixed_next")


def rgb(numbers):
    """(H, W) numbers to an image whose three channels differ."""
    numbers = np.asarray(numbers, np.uint8)
    return np.stack([numbers, numbers + 100, 200 - numbers], axis=-1)


def filled(height, width, rows, columns):
    foreground = np.zeros((height, width), bool)
    foreground[rows, columns] = True
    return foreground


def encode(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(variant, i):
    data, label = variant.read(i)
    return np.asarray(Image.open(io.BytesIO(data))), label


def toy(images, masks, labels, class_names=("a", "b", "c")):
    return Source(
        size=len(images),
        read=lambda i: (images[i], labels[i]),
        name=lambda i: f"image {i}",
        class_names=class_names,
        extras=lambda i: {} if masks[i] is None else {"mask": masks[i]},
    )


def many(labels, class_names=("a", "b", "c")):
    """Images of one number each, their own, with a foreground in the middle."""
    images = [encode(rgb(np.full((8, 8), i))) for i in range(len(labels))]
    masks = [filled(8, 8, slice(3, 5), slice(3, 5)) * np.uint8(255)] * len(labels)
    return toy(images, masks, labels, class_names)


# What is drawn, pixel by pixel.


def test_foreground_on_black():
    image = rgb([[1, 2], [3, 4]])
    out = mixed_backgrounds.only_fg(image, np.array([[False, True], [True, False]]))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, [[[0] * 3, [2, 102, 198]], [[3, 103, 197], [0] * 3]])


@pytest.mark.parametrize(
    "columns, expected",
    [
        (slice(2, 5), [1, 2, 1, 2, 1, 6]),  # left
        (slice(1, 4), [1, 6, 5, 6, 5, 6]),  # right
    ],
)
def test_strip_of_columns(columns, expected):
    image = rgb(np.repeat([[1, 2, 3, 4, 5, 6]], 2, axis=0))
    out = mixed_backgrounds.tiled_background(image, filled(2, 6, slice(0, 2), columns))
    np.testing.assert_array_equal(out, rgb(np.repeat([expected], 2, axis=0)))


@pytest.mark.parametrize(
    "rows, expected",
    [
        (slice(2, 5), [1, 2, 1, 2, 1, 6]),  # above
        (slice(1, 4), [1, 6, 5, 6, 5, 6]),  # below
    ],
)
def test_strip_of_rows(rows, expected):
    image = rgb(np.repeat([[1], [2], [3], [4], [5], [6]], 2, axis=1))
    out = mixed_backgrounds.tiled_background(image, filled(6, 2, rows, slice(0, 2)))
    np.testing.assert_array_equal(out, rgb(np.repeat(np.array(expected)[:, None], 2, axis=1)))


def test_a_strip_repeats_from_where_it_lies():
    image = rgb([[1, 2, 3, 4, 5, 6, 7]])
    out = mixed_backgrounds.tiled_background(image, filled(1, 7, slice(0, 1), slice(1, 5)))
    np.testing.assert_array_equal(out, rgb([[1, 6, 7, 6, 7, 6, 7]]))


def test_the_largest_strip_is_repeated():
    # Left 2 x 2 pixels, right 2 x 1, above 1 x 6.
    image = rgb([[1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16]])
    out = mixed_backgrounds.tiled_background(image, filled(2, 6, 1, slice(2, 5)))
    np.testing.assert_array_equal(out, rgb([[1, 2, 3, 4, 5, 6], [11, 12, 3, 4, 5, 16]]))


def test_equal_strips_take_the_left_one():
    image = rgb([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    out = mixed_backgrounds.tiled_background(image, filled(3, 3, 1, 1))
    np.testing.assert_array_equal(out, rgb([[1, 2, 3], [4, 4, 6], [7, 8, 9]]))


def test_the_whole_box_is_filled():
    image = rgb(np.arange(25).reshape(5, 5))
    foreground = filled(5, 5, [1, 3], [3, 4])  # two pixels; the box has rows 1-3, columns 3-4
    expected = np.arange(25).reshape(5, 5)
    expected[1:4, 3:5] = expected[1:4, 0:2]  # columns 0 to 2 repeat as 0 1 2 0 1
    before = image.copy()
    out = mixed_backgrounds.tiled_background(image, foreground)
    np.testing.assert_array_equal(out, rgb(expected))
    np.testing.assert_array_equal(image, before)


def test_nothing_to_tile():
    image = rgb(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="covers the whole image"):
        mixed_backgrounds.tiled_background(image, np.eye(3, dtype=bool))
    with pytest.raises(ValueError, match="no foreground"):
        mixed_backgrounds.tiled_background(image, np.zeros((3, 3), bool))


def test_foreground_on_another_background():
    foreground = np.array([[True, False], [False, False]])
    out = mixed_backgrounds.mixed(rgb([[1, 2], [3, 4]]), foreground, rgb([[5, 6], [7, 8]]))
    np.testing.assert_array_equal(out, rgb([[1, 6], [7, 8]]))


def test_background_of_another_size_is_resized():
    foreground = filled(4, 6, 0, 0)
    background = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    out = mixed_backgrounds.mixed(rgb(np.full((4, 6), 9)), foreground, background)
    expected = np.array(Image.fromarray(background).resize((6, 4), Image.Resampling.BICUBIC))
    expected[0, 0] = (9, 109, 191)
    np.testing.assert_array_equal(out, expected)


# Built from a source.


def test_variants_of_hand_made_images():
    one, two = rgb(np.arange(16).reshape(4, 4)), rgb(100 + np.arange(16).reshape(4, 4))
    masks = [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)]
    masks[0][1, 2], masks[0][0, 0] = 128, 127  # the boundary is foreground, below 128 is not
    masks[1][3, 1:3] = 255
    source = toy([encode(one), encode(two)] * 2, masks * 2, [0, 1, 0, 1], ("a", "b"))
    built = mixed_backgrounds.build(source, image_size=(4, 4), seed=0)
    assert list(built.variants) == list(mixed_backgrounds.VARIANTS)
    assert built.left_out == {} and built.num_backgrounds == 4
    expected = {
        "original": np.arange(16).reshape(4, 4),
        # Image 1 without its foreground: its rows 0 to 2 repeat, so row 3 is row 0.
        "mixed_next": np.array(
            [[100, 101, 102, 103], [104, 105, 6, 107], [108, 109, 110, 111], [112, 101, 102, 115]]
        ),
        # Image 2 equals image 0; its columns 0 and 1 repeat, so column 2 is column 0.
        "mixed_same": np.arange(16).reshape(4, 4),
    }
    for name, numbers in expected.items():
        pixels, label = decoded(built.variants[name], 0)
        np.testing.assert_array_equal(pixels, rgb(numbers))
        assert label == 0
    alone, _ = decoded(built.variants["only_fg"], 0)
    assert alone[1, 2].tolist() == [6, 106, 194]
    assert np.count_nonzero(alone.any(axis=-1)) == 1
    same, label = decoded(built.variants["mixed_same"], 1)
    assert label == 1
    numbers = 100 + np.arange(16).reshape(4, 4)
    np.testing.assert_array_equal(same, rgb(numbers))  # its own foreground hides what was filled


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (16, 24), (90, 91)])
def test_image_and_mask_are_cut_alike(size):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    mask[size[0] // 3 : size[0] // 2, size[1] // 3 : size[1] // 2] = 255
    pixels[mask > 0] = 255
    data = encode(pixels)
    built = mixed_backgrounds.build(
        toy([data] * 4, [mask] * 4, [0, 0, 1, 1], ("a", "b")), image_size=(16, 24), seed=0
    )
    original, _ = decoded(built.variants["original"], 0)
    np.testing.assert_array_equal(original, crops.center_crop(data, image_size=(16, 24)))
    alone, _ = decoded(built.variants["only_fg"], 0)
    foreground = alone.any(axis=-1)
    bright = original.min(axis=-1) > 150
    rows, columns = (np.flatnonzero(foreground.any(axis=axis)) for axis in (1, 0))
    bright_rows, bright_columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    for ours, seen in ((rows, bright_rows), (columns, bright_columns)):
        assert abs(ours[0] - seen[0]) <= 1 and abs(ours[-1] - seen[-1]) <= 1


def test_masks_are_resized_by_the_nearest_pixel():
    mask = np.random.default_rng(0).integers(0, 256, (30, 50), dtype=np.uint8)
    mask[:, :20] = 0  # a strip
    source = toy([encode(np.full((30, 50, 3), 9, np.uint8))] * 4, [mask] * 4, [0, 0, 1, 1], "ab")
    alone, _ = decoded(
        mixed_backgrounds.build(source, image_size=(16, 24), seed=0).variants["only_fg"], 0
    )
    # 16 x 256 / 224 = 18.3 of 30 rows: 18 x 30 pixels, of which the middle is cut out.
    resized = np.asarray(Image.fromarray(mask).resize((30, 18), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(alone.any(axis=-1), resized[1:17, 3:27] >= 128)


def test_backgrounds_obey_the_classes():
    labels = np.arange(60) % 3
    built = mixed_backgrounds.build(many(labels), image_size=(8, 8), seed=3)
    partner_classes = {}
    for name in MIXED:
        variant = built.variants[name]
        np.testing.assert_array_equal(variant.labels(), labels)
        partners = np.array([variant.extras(i)["background"] for i in range(60)])
        assert [variant.extras(i)["image"] for i in range(60)] == list(range(60))
        assert not np.any(partners == np.arange(60))
        assert len(set(partners)) > 20
        partner_classes[name] = labels[partners]
        for i in range(0, 60, 7):
            pixels, label = decoded(variant, i)
            assert label == labels[i]
            assert pixels[0, 0, 0] == partners[i] and pixels[3, 4, 0] == i
    np.testing.assert_array_equal(partner_classes["mixed_same"], labels)
    np.testing.assert_array_equal(partner_classes["mixed_next"], (labels + 1) % 3)
    # 20 of each expected; the standard deviation of a count is 3.7.
    assert np.all(np.abs(np.bincount(partner_classes["mixed_rand"]) - 20) < 12)
    assert 5 < np.count_nonzero(partner_classes["mixed_rand"] == labels) < 35


def test_classes_are_drawn_evenly_whatever_their_size():
    labels = np.repeat([0, 1], [80, 4])
    variant = mixed_backgrounds.build(many(labels, ("a", "b")), image_size=(8, 8), seed=0).variants[
        "mixed_rand"
    ]
    of_small = [variant.extras(i)["background"] >= 80 for i in range(84)]
    assert 25 < sum(of_small) < 59  # 42 +- 3.7 standard deviations


def test_backgrounds_depend_on_the_seed_alone():
    def chosen(seed):
        drawn = mixed_backgrounds.build(
            many(np.arange(12) % 3), image_size=(8, 8), seed=seed
        ).variants
        return [[drawn[name].extras(i) for i in range(12)] for name in MIXED]

    assert chosen(1) == chosen(1)
    assert chosen(1) != chosen(2)


def test_narrow_strips_are_no_background():
    masks = [filled(20, 20, slice(1, 19), slice(1, 19)) * np.uint8(255)] * 2  # 5 % of the image
    masks += [filled(20, 20, slice(1, 19), slice(2, 19)) * np.uint8(255)] * 4  # 10 %
    images = [encode(rgb(np.full((20, 20), i))) for i in range(6)]
    source = toy(images, masks, [0, 1, 0, 0, 1, 1], ("a", "b"))
    built = mixed_backgrounds.build(source, image_size=(20, 20), seed=0)
    assert built.num_backgrounds == 4 and len(built.variants["original"]) == 6
    for name in MIXED:
        assert all(built.variants[name].extras(i)["background"] >= 2 for i in range(6))


def test_unusable_images_are_named():
    source = many([0, 0, 0, 1, 1, 1, 1, 1, 1], ("a", "b"))
    good = source.extras(0)["mask"]
    masks = {1: np.zeros_like(good), 4: np.full_like(good, 255), 6: None}
    changed = toy(
        [b"broken" if i == 8 else source.read(i)[0] for i in range(9)],
        [masks.get(i, good) for i in range(9)],
        [0, 0, 0, 1, 1, 1, 1, 1, 1],
        ("a", "b"),
    )
    built = mixed_backgrounds.build(changed, image_size=(8, 8), seed=0)
    assert {name: why.partition(":")[0] for name, why in built.left_out.items()} == {
        "image 1": "the mask is empty",
        "image 4": "the mask covers everything",
        "image 6": "no mask",
        "image 8": "cannot be read",
    }
    for name, variant in built.variants.items():
        assert [variant.extras(i)["image"] for i in range(len(variant))] == [0, 2, 3, 5, 7]
        assert variant.labels().tolist() == [0, 0, 1, 1, 1]
        for i, row in enumerate([0, 2, 3, 5, 7]):
            pixels, _ = decoded(variant, i)
            assert pixels[3, 3, 0] == row  # the foreground, and in the corner the background
            assert name == "only_fg" or pixels[0, 0, 0] == variant.extras(i).get("background", row)
    assert built.variants["mixed_next"].name(1) == "mixed_next of image 2"


@pytest.mark.parametrize(
    "source, words",
    [
        (many([0, 0, 1, 1, 2]), "class 'c' has 1 images"),
        (many([0, 0, 0], ("a",)), "one class only"),
        (many([-1, -1], ()), "two or more classes"),
        (toy([encode(rgb(np.zeros((8, 8))))] * 4, [None] * 4, [0, 0, 1, 1], "ab"), "lacks"),
        (
            toy(
                [encode(rgb(np.zeros((8, 8))))] * 4,
                [np.eye(6, 8, dtype=np.uint8)] * 4,
                [0, 0, 1, 1],
                "ab",
            ),
            "mask of image 0 has 8 x 6 pixels, the image 8 x 8",
        ),
    ],
)
def test_bad_sources(source, words):
    with pytest.raises(InputError, match=words) as caught:
        mixed_backgrounds.build(source, image_size=(8, 8), seed=0)
    assert "\n" not in str(caught.value)


# On disk.


def test_written_and_read_back(tmp_path):
    labels, names = [0, 0, 1, 1, 2, 2], ("zebra", "ant/bee", "moth")
    source = many(labels, names)
    built = mixed_backgrounds.build(source, image_size=(8, 8), seed=5)
    mixed_backgrounds.write(built, str(tmp_path / "new" / "out"))
    assert os.listdir(tmp_path / "new") == ["out"]
    assert (tmp_path / "new" / "out" / "mixed_next" / "val" / "01_ant_bee" / "000003.png").exists()
    read_back = imagenet9.open_variants(str(tmp_path / "new" / "out"))
    assert list(read_back) == list(mixed_backgrounds.VARIANTS)
    for name, variant in read_back.items():
        assert variant.class_names == ("00_zebra", "01_ant_bee", "02_moth")
        assert len(variant) == 6
        for i in range(6):
            assert variant.read(i) == built.variants[name].read(i)


def test_nothing_is_overwritten(tmp_path):
    built = mixed_backgrounds.build(many([0, 0, 1, 1], "ab"), image_size=(8, 8), seed=0)
    (tmp_path / "mine").write_text("kept")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="exists already"):
            mixed_backgrounds.write(built, str(path))
    with pytest.raises(InputError, match="cannot make"):
        mixed_backgrounds.write(built, str(tmp_path / "mine" / "below"))
    assert (tmp_path / "mine").read_text() == "kept" and os.listdir(tmp_path) == ["mine"]


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    built = mixed_backgrounds.build(many([0, 0, 1, 1], "ab"), image_size=(8, 8), seed=0)

    def stop(i):
        raise KeyboardInterrupt

    last = built.variants["mixed_next"]
    stopped = built.variants | {"mixed_next": Source(len(last), stop, last.name, last.class_names)}
    with pytest.raises(KeyboardInterrupt):
        mixed_backgrounds.write(built._replace(variants=stopped), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


# Data sets.


def test_shapes():
    source = opening.open_source("shapes:size=32,train=9,val=90,seed=4", "val")
    built = mixed_backgrounds.build(source, image_size=(32, 32), seed=0)
    copies = pickle.loads(pickle.dumps(built.variants))
    batches = loader.eval_batches(copies["mixed_next"], image_size=(32, 32), batch_size=16)
    with batches:
        batch = next(batches)
    assert batch["valid"].all()
    for k in range(16):
        row, other = (copies["mixed_next"].extras(k)[name] for name in ("image", "background"))
        assert batch["label"][k] == source.read(row)[1]
        assert source.read(other)[1] == (source.read(row)[1] + 1) % 9
        foreground = source.extras(row)["mask"] > 0
        own, background = (decoded(source, i)[0] for i in (row, other))
        np.testing.assert_array_equal(batch["image"][k][foreground], own[foreground])
        visible = ~foreground & ~box_of(source.extras(other)["mask"])
        np.testing.assert_array_equal(batch["image"][k][visible], background[visible])


def box_of(mask):
    rows, columns = (mask.any(axis=axis) for axis in (1, 0))
    first_to_last = [
        np.maximum.accumulate(s) & np.maximum.accumulate(s[::-1])[::-1] for s in (rows, columns)
    ]
    return np.outer(*first_to_last)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
def test_pets():
    path = pathlib.Path(REAL, "pets224", "labels.csv")
    if not path.exists():
        pytest.skip("DPPMASK_TEST_DATA has no folder pets224")
    splits = opening.open_splits(f"csv:{path}")
    built = [mixed_backgrounds.build(split, image_size=(64, 64), seed=0) for split in splits]
    assert sum(len(one.variants["original"]) for one in built) == 599
    (left_out,) = [name for one in built for name in one.left_out.items()]
    assert left_out[0].endswith("Abyssinian_34.jpg") and left_out[1] == "the mask is empty"
    alone, _ = decoded(built[0].variants["only_fg"], 7)
    whole, _ = decoded(built[0].variants["original"], 7)
    mixed, _ = decoded(built[0].variants["mixed_rand"], 7)
    foreground = alone.any(axis=-1)
    assert 0.02 < foreground.mean() < 0.98
    np.testing.assert_array_equal(mixed[foreground], whole[foreground])
    assert np.abs(mixed[~foreground].astype(int) - whole[~foreground]).mean() > 5
