import functools
import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.data.images import classify, crops, decode
from dppmask_jax.data.images.randaugment import rand_augment

RATIO = (3 / 4, 4 / 3)
REAL = os.environ.get("DPPMASK_TEST_DATA", "")


def encode(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [127 + 120 * np.sin(x / 40), 127 + 120 * np.cos(y / 55), (x + y) % 256 * 0 + 90], axis=-1
    ).astype(np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("size", [(100, 100), (37, 90), (500, 3), (3, 500), (1, 1), (2, 1)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (1.0, 1.0), (0.01, 0.02)])
def test_box_lies_in_the_image(size, scale, rng):
    for _ in range(200):
        left, top, width, height = crops.random_box(rng, *size, scale=scale)
        assert width >= 1 and height >= 1 and left >= 0 and top >= 0
        assert left + width <= size[0] and top + height <= size[1]


def test_box_area_and_ratio_are_distributed_as_asked(rng):
    # So small a share always fits at the first try: area uniform, ratio log-uniform.
    boxes = np.array([crops.random_box(rng, 1000, 800, scale=(0.1, 0.3)) for _ in range(4000)])
    share = boxes[:, 2] * boxes[:, 3] / 800_000
    ratio = np.log(boxes[:, 2] / boxes[:, 3])
    for values, low, high in ((share, 0.1, 0.3), (ratio, np.log(3 / 4), np.log(4 / 3))):
        uniform = (values - low) / (high - low)
        assert uniform.min() > -0.02 and uniform.max() < 1.02
        for q in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert np.quantile(uniform, q) == pytest.approx(q, abs=0.03)
    # Places are uniform over where the box fits.
    for start, length, whole in ((0, 2, 1000), (1, 3, 800)):
        place = boxes[:, start] / (whole - boxes[:, length])
        assert place.min() >= 0 and place.max() <= 1
        for q in (0.1, 0.5, 0.9):
            assert np.quantile(place, q) == pytest.approx(q, abs=0.03)


@pytest.mark.parametrize(
    "size, expected",
    [
        ((1000, 10), (493, 0, 13, 10)),  # too wide: 4/3 of the height, centred
        ((10, 1000), (0, 493, 10, 13)),  # too high
    ],
)
def test_centred_box_where_nothing_fits(size, expected, rng):
    assert crops.random_box(rng, *size, scale=(1.0, 1.0)) == expected


def test_whole_image_where_no_try_fits_but_the_ratio_does():
    class Unlucky:
        def uniform(self, low, high):
            return high  # area 1 at ratio 4/3 does not fit into a square

    assert crops.random_box(Unlucky(), 50, 50, scale=(1.0, 1.0)) == (0, 0, 50, 50)


@pytest.mark.parametrize("image_size", [(16, 16), (12, 40), (40, 12)])
def test_crop_is_the_bicubic_resize_of_its_box(image_size, rng):
    pixels = noise(60, 90)
    out = crops.random_crop(
        encode(pixels), np.random.default_rng(7), image_size=image_size, scale=(0.2, 1.0)
    )
    assert out.shape == (*image_size, 3) and out.dtype == np.uint8
    height, width = image_size
    ratio = (RATIO[0] * width / height, RATIO[1] * width / height)
    left, top, box_width, box_height = crops.random_box(
        np.random.default_rng(7), 90, 60, scale=(0.2, 1.0), ratio=ratio
    )
    cut = Image.fromarray(pixels[top : top + box_height, left : left + box_width])
    expected = cut.resize((width, height), Image.Resampling.BICUBIC)
    # The filter may look past the box, but only by its radius.
    inner = slice(2, -2)
    np.testing.assert_allclose(
        out[inner, inner].astype(int), np.asarray(expected)[inner, inner].astype(int), atol=40
    )
    box = (left, top, left + box_width, top + box_height)
    exact = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC, box=box)
    # The same filter; its weights and the result between its two passes are rounded differently.
    difference = np.abs(out.astype(int) - np.asarray(exact).astype(int))
    assert difference.mean() < 0.5 and difference.max() < 12


def test_ratio_is_relative_to_the_output(rng):
    for _ in range(50):
        out = crops.random_crop(
            encode(smooth(80, 80)),
            rng,
            image_size=(8, 16),
            scale=(0.2, 0.3),
            ratio=(1.0, 1.0),
        )
        assert out.shape == (8, 16, 3)
    boxes = [crops.random_box(rng, 80, 80, scale=(0.2, 0.3), ratio=(2.0, 2.0)) for _ in range(50)]
    assert all(abs(width / height - 2) < 0.1 for _, _, width, height in boxes)


def test_crop_depends_on_the_generator_alone():
    data = encode(noise(50, 50))

    def crop(seed):
        return crops.random_crop(
            data, np.random.default_rng(seed), image_size=(8, 8), scale=(0.2, 0.5)
        )

    np.testing.assert_array_equal(crop(1), crop(1))
    assert np.any(crop(1) != crop(2))


def test_whole_image_at_its_own_size_is_untouched(rng):
    pixels = noise(32, 32)
    out = crops.random_crop(
        encode(pixels), rng, image_size=(32, 32), scale=(1.0, 1.0), ratio=(1.0, 1.0)
    )
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
def test_reduced_jpeg_decoding_changes_little(kind, monkeypatch):
    image = Image.fromarray(smooth(1500, 2001)).convert(kind)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    reductions = []
    pixels_of = decode.jpeg_pixels

    def watched(data, opened, shrink, box):
        reductions.append(shrink)
        return pixels_of(data, opened, shrink, box)

    def crop():
        rng = np.random.default_rng(3)
        return crops.random_crop(buffer.getvalue(), rng, image_size=(64, 96), scale=(0.4, 0.6))

    monkeypatch.setattr(decode, "jpeg_pixels", watched)
    reduced = crop()
    ratio = (RATIO[0] * 1.5, RATIO[1] * 1.5)
    box = crops.random_box(np.random.default_rng(3), 2001, 1500, scale=(0.4, 0.6), ratio=ratio)
    assert reductions[0] > 1  # and pixels are left for the bicubic filter
    assert box[2] / reductions[0] >= 2 * 96 and box[3] / reductions[0] >= 2 * 64
    without_reduction(monkeypatch)
    np.testing.assert_allclose(reduced.astype(int), crop().astype(int), atol=3)
    assert reductions[1] == 1


def test_rotated_jpeg_is_cropped_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, turned = (encode(smooth(60, 100), "JPEG", **options) for options in ({}, {"exif": exif}))
    rng = np.random.default_rng(0)
    out = crops.random_crop(turned, rng, image_size=(100, 60), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_array_equal(out, np.rot90(decode.decode(plain), -1))


def test_single_view_is_a_random_crop():
    data, options = encode(noise(50, 40)), {"image_size": (8, 12), "scale": (0.2, 0.5)}
    example = crops.single_view(data, np.random.default_rng(4), **options, ratio=(1.0, 1.1))
    assert set(example) == {"image"}
    expected = crops.random_crop(data, np.random.default_rng(4), **options, ratio=(1.0, 1.1))
    np.testing.assert_array_equal(example["image"], expected)


# A single draw.


class Drawn:
    """A generator that gives these numbers; integers are the largest allowed."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, low, high):
        return low + (high - low) * self.numbers.pop(0)

    def integers(self, high):
        return high - 1


@pytest.mark.parametrize(
    "size, share, place, expected",
    [
        # A quarter of the area at ratio 1, in the far corner.
        ((80, 40), 0.25, 0.5, (80 - 28, 40 - 28, 28, 28)),
        # The whole area at ratio 4/3: width sqrt(6400 / 3 * 4), 92, is cut down, height is 69.
        ((80, 80), 1.0, 1.0, (0, 11, 80, 69)),
        # At ratio 3/4 of a wide image: 77 by 103 of 200 x 40.
        ((200, 40), 1.0, 0.0, (200 - 77, 0, 77, 40)),
        ((1, 500), 0.01, 0.5, (0, 498, 1, 2)),
    ],
)
def test_box_of_a_single_draw(size, share, place, expected):
    box = crops.single_draw_box(Drawn(share, place), *size, scale=(0.0, 1.0))
    assert box == expected


def test_boxes_of_a_single_draw_are_those_of_ten_tries_where_the_first_fits():
    kinds = [
        [box(np.random.default_rng(seed), 90, 60, scale=(0.05, 0.2)) for seed in range(50)]
        for box in (crops.random_box, crops.single_draw_box)
    ]
    assert kinds[0] == kinds[1]


# Supervised training.


def classification(data, seed=0, **options):
    defaults = {"image_size": (24, 36), "scale": (0.08, 1.0), "flip": False}
    example = classify.classification_view(
        data, np.random.default_rng(seed), **(defaults | options)
    )
    assert set(example) == {"image"} and example["image"].dtype == np.uint8
    return example["image"]


@pytest.mark.parametrize("single_draw", [False, True])
def test_classification_view_is_a_crop(single_draw):
    data = encode(noise(40, 70))
    options = {"image_size": (24, 36), "scale": (0.08, 1.0), "single_draw": single_draw}
    for seed in range(5):
        expected = crops.random_crop(data, np.random.default_rng(seed), **options)
        np.testing.assert_array_equal(classification(data, seed, **options), expected)
    others = [classification(data, seed, single_draw=not single_draw) for seed in range(20)]
    these = [classification(data, seed, single_draw=single_draw) for seed in range(20)]
    assert any(np.any(one != other) for one, other in zip(these, others, strict=True))


def test_classification_view_is_mirrored_half_of_the_time():
    pixels = noise(24, 24)
    whole = {"image_size": (24, 24), "scale": (1.0, 1.0), "single_draw": True, "flip": True}
    mirrored = 0
    for seed in range(200):
        plain = classification(encode(pixels), seed, **(whole | {"flip": False}))
        view = classification(encode(pixels), seed, **whole)
        mirrored += np.array_equal(view, plain[:, ::-1])
        assert np.array_equal(view, plain) or np.array_equal(view, plain[:, ::-1])
    assert 70 < mirrored < 130


def test_classification_view_ends_with_rand_augment():
    data = encode(noise(40, 70))
    differ = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        crop = crops.random_crop(data, rng, image_size=(24, 36), scale=(0.08, 1.0))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        expected = rand_augment(Image.fromarray(np.ascontiguousarray(crop)), rng, magnitude=7.0)
        view = classification(data, seed, flip=True, randaugment=7.0)
        np.testing.assert_array_equal(view, expected)
        differ += np.any(view != crop)
    assert differ > 3


# Several crops of one image.


def multi(data, seed=0, **options):
    defaults = {
        "image_size": (24, 36),
        "scale": (0.25, 1.0),
        "local_size": (10, 8),
        "local_scale": (0.05, 0.25),
        "num_local": 3,
        "flip": False,
    }
    return crops.multi_crop(data, np.random.default_rng(seed), **(defaults | options))


def views_of(example):
    return [*example["global_views"], *example["local_views"]]


def without_reduction(patch):
    patch.setattr(crops, "_shrink", lambda image, views: 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_views_of_two_sizes(kind):
    example = multi(encode(smooth(60, 90), kind))
    assert set(example) == {"global_views", "local_views"}
    assert example["global_views"].shape == (2, 24, 36, 3)
    assert example["local_views"].shape == (3, 10, 8, 3)
    assert all(views.dtype == np.uint8 for views in example.values())
    assert set(multi(encode(smooth(60, 90), kind), num_local=0)) == {"global_views"}


@pytest.mark.parametrize("ratio", [RATIO, (0.9, 1.0)])
def test_views_are_the_random_crops_drawn_one_after_another(ratio):
    data = encode(noise(60, 90))  # no JPEG: the decoder would reduce each crop by itself
    rng = np.random.default_rng(11)
    kinds = [((24, 36), (0.25, 1.0))] * 2 + [((10, 8), (0.05, 0.25))] * 3
    expected = [
        crops.random_crop(data, rng, image_size=size, scale=scale, ratio=ratio)
        for size, scale in kinds
    ]
    views = views_of(multi(data, seed=11, ratio=ratio))
    for view, other in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, other)
    assert np.any(views[0] != views[1])
    assert np.any(views[2] != views[3]) and np.any(views[3] != views[4])


def test_views_are_mirrored_each_half_of_the_time():
    pixels = noise(12, 12)
    whole = {"image_size": (12, 12), "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "num_local": 2}
    whole |= {"local_size": (12, 12), "local_scale": (1.0, 1.0)}
    mirrored = []
    for seed in range(200):
        for view in views_of(multi(encode(pixels), seed, flip=True, **whole)):
            mirrored.append(np.array_equal(view, pixels[:, ::-1]))
            assert mirrored[-1] or np.array_equal(view, pixels)
    mirrored = np.array(mirrored).reshape(200, 4)
    # 0.5 +- four standard errors; and any two views agree half of the time.
    assert np.all(np.abs(mirrored.mean(0) - 0.5) < 0.15)
    agree = (mirrored[:, :, None] == mirrored[:, None]).mean(0)
    assert np.all(np.abs(agree[~np.eye(4, dtype=bool)] - 0.5) < 0.15)
    for seed in range(10):
        for view in views_of(multi(encode(pixels), seed, **whole)):
            np.testing.assert_array_equal(view, pixels)


def test_mirroring_leaves_the_boxes_alone():
    data = encode(noise(60, 90))
    for view, plain in zip(
        views_of(multi(data, 5, flip=True)), views_of(multi(data, 5)), strict=True
    ):
        assert np.array_equal(view, plain) or np.array_equal(view, plain[:, ::-1])


@pytest.mark.parametrize("kind, turn", [("PNG", 1), ("JPEG", 1), ("JPEG", 6)])
def test_image_is_decoded_once(kind, turn, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(smooth(600, 900), kind, exif=exif)
    calls = []

    def counted(name, call, given):
        calls.append(name)
        return call(given)

    def counted_pixels(*given):
        calls.append("to_rgb")
        return pixels_of(*given)

    pixels_of = decode.jpeg_pixels
    monkeypatch.setattr(decode, "jpeg_pixels", counted_pixels)
    for name in ("open_image", "to_rgb"):
        call = functools.partial(counted, name, getattr(decode, name))
        monkeypatch.setattr(decode, name, call)
    multi(data, num_local=10)
    assert calls == ["open_image", "to_rgb"]


def test_reduced_decoding_leaves_enough_for_every_view(monkeypatch):
    data = encode(smooth(1500, 2001), "JPEG", quality=90)
    reductions = []
    pixels_of = decode.jpeg_pixels

    def watched(data, image, shrink, box):
        reductions.append(-(-image.width // shrink))
        return pixels_of(data, image, shrink, box)

    sizes = {"image_size": (64, 96), "local_size": (32, 30)}
    needed_by = set()
    for seed in range(12):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "jpeg_pixels", watched)
            reduced = views_of(multi(data, seed, **sizes))
        rng = np.random.default_rng(seed)
        needs = []  # width of the whole image that leaves a view twice its pixels
        for (height, width), scale in [((64, 96), (0.25, 1.0))] * 2 + [
            ((32, 30), (0.05, 0.25))
        ] * 3:
            ratio = tuple(bound * width / height for bound in RATIO)
            box = crops.random_box(rng, 2001, 1500, scale=scale, ratio=ratio)
            needs.append(2 * 2001 * max(width / box[2], height / box[3]))
        assert len(reductions) == seed + 1
        assert max(needs) <= reductions[-1]
        assert reductions[-1] < 2 * max(needs) + 2  # half of it would not do
        needed_by.add(int(np.argmax(needs)) < 2)
        with monkeypatch.context() as patch:
            without_reduction(patch)
            for view, other in zip(reduced, views_of(multi(data, seed, **sizes)), strict=True):
                np.testing.assert_allclose(view.astype(int), other.astype(int), atol=3)
    assert needed_by == {True, False}  # the sizes above try both kinds of views
    assert len(set(reductions)) > 1


def whole(image, shrink):
    return 0, 0, -(-image.width // shrink), -(-image.height // shrink)


# The image's height and width, and the crop's: shrunk, alike, enlarged.
SIZES = [(900, 1203, 40, 64), (90, 120, 9, 5), (90, 120, 40, 96), (60, 80, 200, 150)]


@pytest.mark.parametrize("height, width, crop_height, crop_width", SIZES)
@pytest.mark.parametrize("scale", [(0.05, 0.2), (0.2, 1.0)])
def test_the_filter_looks_no_further_than_is_decoded(
    height, width, crop_height, crop_width, scale, monkeypatch
):
    data = encode(noise(height, width), "JPEG", quality=70)
    reaches = []
    reach_of, pixels_of = crops._reach, decode.jpeg_pixels

    def everything(image, views, shrink):
        reaches.append(reach_of(image, views, shrink))
        return whole(image, shrink)

    def crop(seed, surroundings):
        def surrounded(*given):
            left, top, right, bottom = reaches[-1]
            pixels = pixels_of(*given)
            out = np.full_like(pixels, surroundings)
            out[top:bottom, left:right] = pixels[top:bottom, left:right]
            covered.append((right - left) * (bottom - top) / (out.size / 3))
            return out

        monkeypatch.setattr(decode, "jpeg_pixels", surrounded)
        return crops.random_crop(
            data, np.random.default_rng(seed), image_size=(crop_height, crop_width), scale=scale
        )

    covered = []
    monkeypatch.setattr(crops, "_reach", everything)
    for seed in range(20):
        np.testing.assert_array_equal(crop(seed, 0), crop(seed, 255))
    assert np.mean(covered) < (0.5 if scale[1] < 1.0 else 0.95)


@pytest.mark.parametrize("height, width, crop_height, crop_width", SIZES)
def test_handing_over_a_part_changes_rounding_alone(
    height, width, crop_height, crop_width, monkeypatch
):
    data = encode(noise(height, width), "JPEG", quality=70)
    options = {"image_size": (crop_height, crop_width), "scale": (0.05, 0.5)}

    def views(seed):
        crop = crops.random_crop(data, np.random.default_rng(seed), **options)
        return [crop, *views_of(multi(data, seed, **options))]

    for seed in range(10):
        of_part = views(seed)
        with monkeypatch.context() as patch:
            patch.setattr(crops, "_reach", lambda image, views, shrink: whole(image, shrink))
            for view, other in zip(of_part, views(seed), strict=True):
                assert np.max(np.abs(view.astype(int) - other)) <= 1


def test_a_lossless_jpeg_is_never_shrunk(monkeypatch):
    """libjpeg-turbo would write it in its full size wherever it is told to."""
    reductions, pixels_of = [], decode.jpeg_pixels

    def watched(data, image, shrink, box):
        reductions.append(shrink)
        return pixels_of(data, image, shrink, box)

    monkeypatch.setattr(decode, "jpeg_pixels", watched)
    options = {"image_size": (32, 32), "scale": (0.5, 1.0)}
    for tail in (b"", b"\0"):
        data = lossless_jpeg(480, 640) + tail
        crop = crops.random_crop(data, np.random.default_rng(0), **options)
        np.testing.assert_array_equal(crop, 128)
    assert reductions == [1, 1]
    crops.random_crop(encode(smooth(480, 640), "JPEG"), np.random.default_rng(0), **options)
    assert reductions[2] > 1  # as one of this size is


def lossless_jpeg(height, width):
    """All grey: each value is what is predicted, which takes one bit of 0."""
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    segments = {
        0xC3: bytes([8]) + sides + bytes([3]) + components,
        0xC4: bytes([0, 1, *[0] * 15, 0]),  # one code, of one bit: nothing differs
        0xDA: bytes([3, 1, 0, 2, 0, 3, 0, 1, 0, 0]),
    }
    start = b"".join(
        bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
        for marker, body in segments.items()
    )
    return b"\xff\xd8" + start + bytes(height * width * 3 // 8) + b"\xff\xd9"


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="DPPMASK_TEST_DATA names no folder of real images")
def test_reduced_decoding_of_photographs_changes_little(monkeypatch):
    files = sorted(pathlib.Path(REAL, "photos").glob("*.jpg"))[::4]
    if not files:
        pytest.skip("no photographs")
    differences = []  # mean of a view, grey levels
    for seed, file in enumerate(files):
        views = views_of(multi(file.read_bytes(), seed, image_size=(32, 32)))
        with monkeypatch.context() as patch:
            without_reduction(patch)
            others = views_of(multi(file.read_bytes(), seed, image_size=(32, 32)))
        differences += [
            np.abs(view.astype(int) - other.astype(int)).mean()
            for view, other in zip(views, others, strict=True)
        ]
    # Measured on 40 photographs: 0.28, and 1.2 for the view that changes most.
    assert 0 < np.mean(differences) < 0.5
    assert np.max(differences) < 2.0


def test_center_crop_of_the_right_size_is_plain():
    pixels = noise(20, 30)
    np.testing.assert_array_equal(crops.center_crop(encode(pixels), image_size=(20, 30)), pixels)


@pytest.mark.parametrize("height, width", [(300, 300), (300, 451), (451, 300), (100, 120)])
def test_center_crop_is_resize_then_cut(height, width):
    pixels = noise(height, width)
    out = crops.center_crop(encode(pixels), image_size=(224, 224))
    enlarge = 256 / min(height, width)
    size = round(width * enlarge), round(height * enlarge)
    assert min(size) == 256
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - 224) // 2, (size[0] - 224) // 2
    np.testing.assert_array_equal(out, resized[top : top + 224, left : left + 224])


@pytest.mark.parametrize("height, width", [(50, 50), (10, 200), (200, 10), (1, 1)])
def test_center_crop_to_a_non_square(height, width):
    out = crops.center_crop(encode(noise(height, width)), image_size=(16, 48))
    assert out.shape == (16, 48, 3) and out.dtype == np.uint8


@pytest.mark.parametrize("height, width", [(320, 480), (30, 20), (16, 48)])
def test_a_whole_image_is_all_of_it(height, width):
    pixels = noise(height, width)
    expected = Image.fromarray(pixels).resize((48, 16), Image.Resampling.BICUBIC)
    out = crops.whole_image(encode(pixels), image_size=(16, 48))
    np.testing.assert_array_equal(out, expected)
    # What the evaluation crop cuts off is there: a white margin on black.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :2] = 255
    assert crops.whole_image(encode(pixels), image_size=(32, 32))[:, 0].min() > 200
    assert not crops.center_crop(encode(pixels), image_size=(32, 32))[:, :1].any()


def test_unreadable_bytes(rng):
    for crop in (
        lambda data: crops.random_crop(data, rng, image_size=(8, 8), scale=(0.2, 1.0)),
        lambda data: crops.center_crop(data, image_size=(8, 8)),
        lambda data: crops.whole_image(data, image_size=(8, 8)),
        multi,
        classification,
    ):
        for data in (b"", b"text", encode(noise(99, 99), "JPEG")[:-3000]):
            with pytest.raises(decode.DecodeError):
                crop(data)
