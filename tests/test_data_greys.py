"""Greyscale of more than 8 bits: one range for a data set."""

import functools

import numpy as np
import pytest
from PIL import Image
from test_data_decode import encode

from dppmask_jax.data import loader
from dppmask_jax.data.images import crops, decode, greys
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.base import notes_of

RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)
DTYPES = {"float": np.float32, "16": np.uint16, "32": np.int32}


def written(root, dtype, highest, lowest=0.0, kind="tif"):
    """A folder of grey ramps, each up to another of the values."""
    for number, high in enumerate(highest):
        pixels = (lowest + RAMP * (high - lowest)).astype(DTYPES[dtype])
        Image.fromarray(pixels).save(root / f"{number:02}.{kind}")
    return f"folder:{root}"


def whites(*splits):
    """The largest grey level of each image."""
    return [int(decode.decode(s.read(i)[0]).max()) for s in splits if s for i in range(len(s))]


@pytest.mark.parametrize(
    "dtype, highest, expected",
    [
        ("float", (1.0, 1.02, 0.5), (255, 255, 128)),
        ("float", (255.0, 51.0), (255, 51)),
        ("float", (65535.0, 257.0), (255, 1)),
        ("32", (255, 51), (255, 51)),
        ("16", (65535, 25700, 200), (255, 100, 1)),
        ("16", (40000, 25700), (156, 100)),
    ],
)
def test_known_ranges_are_decided_once_for_all_images(dtype, highest, expected, tmp_path):
    source, _ = opening.open_splits(written(tmp_path, dtype, highest), val_fraction=0.0)
    assert tuple(whites(source)) == expected and source.notes == ()


@pytest.mark.parametrize(
    "dtype, highest, lowest, pair, expected",
    [
        ("16", (4000, 2000), 0, (0, 4095), (249, 125)),  # 12 bits
        ("32", (100_000, 131_071), 0, (0, 131_071), (195, 255)),
        ("float", (1.0, 0.0), -1.0, (-1, 1), (255, 128)),
        ("float", (3.7, 1.0), 0, (0, 3.7), (255, 69)),
    ],
)
def test_what_is_not_known_is_what_the_sample_spans_and_said(
    dtype, highest, lowest, pair, expected, tmp_path
):
    spec = written(tmp_path, dtype, highest, lowest)
    train, val = opening.open_splits(spec, val_fraction=0.5)
    assert train.grey_range == val.grey_range
    assert train.grey_range.of(dtype == "float") == pytest.approx(pair)
    assert sorted(whites(train, val)) == sorted(expected)
    (note,) = notes_of(train, val)
    assert note.startswith("warning: ") and "config.data.range=BLACK,WHITE" in note
    given = (-1.0, 9.0) if dtype == "float" else (0.0, 2.0**18)
    train, val = opening.open_splits(spec, val_fraction=0.5, grey_range=given)
    assert notes_of(train, val) == () and train.grey_range.of(dtype == "float") == given
    assert sorted(whites(train, val)) != sorted(expected)


def test_training_and_validation_folders_share_the_range(tmp_path):
    for split, highest in (("train", (0.5,)), ("val", (255.0,))):
        (tmp_path / split).mkdir()
        written(tmp_path / split, "float", highest)
    train, val = opening.open_splits(f"folder:{tmp_path}")
    assert train.grey_range == val.grey_range and whites(train, val) == [0, 255]


def test_a_few_wide_files_among_others_are_found(tmp_path):
    for i in range(200):
        Image.new("L", (2, 2), 9).save(tmp_path / f"{i:03}.jpg")
    written(tmp_path, "16", (4095, 2048), kind="png")
    source, _ = opening.open_splits(f"folder:{tmp_path}", val_fraction=0.0)
    assert source.grey_range.whole == (0, 4095) and "2 files" in source.notes[0]
    data, _ = source.read(50)
    assert data == (tmp_path / "048.jpg").read_bytes()  # what has 8 bits stays as it is


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_training_and_evaluation_see_the_same_greys(workers, tmp_path):
    source, _ = opening.open_splits(written(tmp_path, "16", (4095, 1024)), val_fraction=0.0)
    (batch,) = loader.eval_batches(source, image_size=(32, 32), batch_size=2, workers=workers)
    assert batch["image"].max(axis=(1, 2, 3)).tolist() == [255, 64]
    example = functools.partial(crops.single_view, image_size=(32, 32), scale=(1.0, 1.0))
    options = {"example": example, "batch_size": 2, "seed": 0, "workers": workers}
    with loader.train_stream(source, **options) as stream:
        assert sorted(next(stream)["image"].max(axis=(1, 2, 3)).tolist()) == [64, 255]


def test_an_image_by_itself_is_judged_by_itself():
    for dtype, high, expected in (
        ("float", 1.02, 255), ("float", 0.5, 128), ("float", 200, 200), ("float", 3.7, 4),
        ("32", 255, 255), ("32", 65535, 255), ("16", 25700, 100),
    ):  # fmt: skip
        data = encode(Image.fromarray((RAMP * high).astype(DTYPES[dtype])), "TIFF")
        out = decode.decode(data)
        assert out.max() == expected and len(np.unique(out)) > min(expected, 250) / 2


def test_values_that_are_no_numbers_are_black_or_cut(tmp_path):
    pixels = np.array([[0, np.nan, 1], [np.inf, -np.inf, 0.5]], np.float32)
    data = encode(Image.fromarray(pixels), "TIFF")
    expected = [[0, 0, 255], [255, 0, 128]]
    np.testing.assert_array_equal(decode.decode(data)[..., 0], expected)
    (tmp_path / "a.tif").write_bytes(data)
    source, _ = opening.open_splits(f"folder:{tmp_path}")
    np.testing.assert_array_equal(decode.decode(source.read(0)[0])[..., 0], expected)


def test_a_narrowed_image_lies_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray((RAMP[:8] * 4095).astype(np.uint16))
    data = encode(image, "TIFF", exif=exif)
    grey_range = greys.Range((0, 4095))
    out = decode.decode(decode.narrowed(data, grey_range))
    assert out.shape == (32, 8, 3)
    np.testing.assert_array_equal(out, decode.decode(data, grey_range))
