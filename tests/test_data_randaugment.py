import collections
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dppmask_jax import imagenet
from dppmask_jax.data.images import randaugment

FILL = (124, 116, 104)


def image(pixels):
    return Image.fromarray(np.asarray(pixels, np.uint8))


def grey(values):
    """An image of one row of greys."""
    return image(np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2))


def row(op, values, magnitude):
    out = np.asarray(op(grey(values), magnitude))
    assert np.all(out == out[..., :1])
    return out[0, :, 0].tolist()


def dot(size, x, y):
    """A white pixel on black."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[y, x] = 255
    return image(pixels)


def noise(seed=0, size=(12, 10)):
    return image(np.random.default_rng(seed).integers(0, 256, (*size, 3)))


def test_fill_is_the_mean_colour():
    assert randaugment.FILL == FILL == tuple(round(255 * value) for value in imagenet.MEAN)


def test_there_are_the_fifteen():
    assert {op.__name__ for op in randaugment.OPS} == {
        "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
        "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
        "translate_y",
    }  # fmt: skip
    assert len(randaugment.OPS) == 15


def test_auto_contrast():
    # (value - 50) * 255 / 100, downwards.
    assert row(randaugment.auto_contrast, [50, 100, 150], 9) == [0, 127, 255]


def test_equalize():
    # Four different values, each equally often: spread evenly from 0 to 255.
    out = row(randaugment.equalize, [10, 20, 30, 40] * 255, 9)
    assert out == [0, 85, 170, 255] * 255


def test_invert():
    assert row(randaugment.invert, [0, 1, 200, 255], 0) == [255, 254, 55, 0]


@pytest.mark.parametrize(
    "magnitude, expected",
    [
        (0.0, [0b11110000, 0b01010000, 0b00110000]),  # 4 bits
        (2.4, [0b11110000, 0b01010000, 0b00110000]),
        (2.6, [0b11100000, 0b01000000, 0b00100000]),  # 3 bits
        (9.0, [0b10000000, 0, 0]),  # 1 bit
        (10.0, [0, 0, 0]),
    ],
)
def test_posterize(magnitude, expected):
    values = [0b11111111, 0b01011010, 0b00111111]
    assert row(randaugment.posterize, values, magnitude) == expected


@pytest.mark.parametrize(
    "magnitude, expected",
    [
        (0.0, [0, 25, 26, 128, 255]),  # from 256 on
        (5.0, [0, 25, 26, 127, 0]),  # from 128 on
        (9.0, [0, 25, 229, 127, 0]),  # from 26 on
        (10.0, [255, 230, 229, 127, 0]),
    ],
)
def test_solarize(magnitude, expected):
    assert row(randaugment.solarize, [0, 25, 26, 128, 255], magnitude) == expected


@pytest.mark.parametrize("magnitude, added", [(0.0, 0), (0.05, 0), (9.0, 99), (10.0, 110)])
def test_solarize_add(magnitude, added):
    out = row(randaugment.solarize_add, [0, 100, 127, 128, 255], magnitude)
    assert out == [added, 100 + added, 127 + added, 128, 255]


def test_solarize_add_treats_all_channels_alike():
    out = np.asarray(randaugment.solarize_add(image([[[1, 130, 3]]]), 9.0))
    assert out.tolist() == [[[100, 130, 102]]]


def test_brightness():
    # Shares 1.9, 0.1 and 1.
    assert row(randaugment.brightness, [0, 100, 200], 10.0) == [0, 190, 255]
    assert row(randaugment.brightness, [0, 100, 200], -10.0) == [0, 10, 20]
    assert row(randaugment.brightness, [0, 100, 200], 0.0) == [0, 100, 200]


def test_contrast():
    # The mean grey is 100.
    assert row(randaugment.contrast, [0, 90, 100, 210], 10.0) == [0, 81, 100, 255]
    assert row(randaugment.contrast, [0, 90, 100, 210], -10.0) == [90, 99, 100, 111]


def test_color():
    # Pure red is a grey of 76; blue 29.
    pixels = [[[255, 0, 0], [0, 0, 255]]]
    out = np.asarray(randaugment.color(image(pixels), -10.0)).astype(int)
    expected = [[[0.1 * 255 + 0.9 * 76, 0.9 * 76, 0.9 * 76], [26.1, 26.1, 0.1 * 255 + 26.1]]]
    np.testing.assert_allclose(out, expected, atol=1)
    np.testing.assert_array_equal(randaugment.color(image(pixels), 10.0), pixels)  # clipped


def test_sharpness():
    # Smoothed, a dot in the middle is 5 of 13 parts itself.
    strong, weak = (np.asarray(randaugment.sharpness(dot(5, 2, 2), m)) for m in (5.0, -10.0))
    smooth = 255 * 5 / 13
    assert strong[2, 2, 0] == 255 and strong[2, 1, 0] == 0
    assert abs(weak[2, 2, 0] - (0.1 * 255 + 0.9 * smooth)) <= 1
    assert abs(weak[2, 1, 0] - 0.9 * 255 / 13) <= 1


def test_shears_move_in_proportion_to_the_distance_from_the_edge():
    # The centre of line 4 is 4.5 from the edge; magnitude 1 / (0.03 * 4.5) moves it by one pixel.
    one = 1 / (0.03 * 4.5)
    for sign in (1, -1):
        across = np.asarray(randaugment.shear_x(dot(9, x=4, y=4), sign * one))[4, 1:-1, 0]
        down = np.asarray(randaugment.shear_y(dot(9, x=4, y=4), sign * one))[1:-1, 4, 0]
        expected = [255 if place == 4 - sign else 0 for place in range(1, 8)]
        assert across.tolist() == down.tolist() == expected
    # Lines further down move further, and uncover more.
    out = np.asarray(randaugment.shear_x(dot(9, x=4, y=0), 10.0))
    uncovered = np.all(out == FILL, axis=-1)
    assert uncovered.sum(1).tolist() == [math.ceil(0.3 * (y + 0.5) - 0.5) for y in range(9)]
    assert uncovered[8, -2:].all()


def test_translations_are_shares_of_each_side():
    # 20 x 40: 0.045 * 10 is 9 of 20 and 18 of 40 pixels.
    pixels = np.asarray(noise(size=(20, 40)))
    for sign in (1, -1):
        for op, axis, shift in (
            (randaugment.translate_x, 1, 18 * sign),
            (randaugment.translate_y, 0, 9 * sign),
        ):
            out = np.asarray(op(image(pixels), 10.0 * sign))
            expected = np.roll(pixels, -shift, axis=axis)
            lost = [slice(None), slice(None)]
            lost[axis] = slice(-shift, None) if shift > 0 else slice(None, -shift)
            expected[tuple(lost)] = FILL
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("magnitude", [10.0, -10.0])
def test_rotation_about_the_centre(magnitude):
    # A disc 12 pixels right of the centre; 30 degrees move it up, or down.
    y, x = np.mgrid[:41, :41] - 20
    disc = 255 * ((x - 12) ** 2 + y**2 <= 9)
    out = np.asarray(randaugment.rotate(image(np.stack([disc, disc, disc], -1)), magnitude))
    weight = np.where(np.hypot(x, y) < 18, out[..., 0].astype(float), 0)
    angle = math.radians(3 * magnitude)
    assert (x * weight).sum() / weight.sum() == pytest.approx(12 * math.cos(angle), abs=0.1)
    assert (y * weight).sum() / weight.sum() == pytest.approx(-12 * math.sin(angle), abs=0.1)
    assert tuple(out[0, 0]) == FILL


@pytest.mark.parametrize("op", randaugment.OPS, ids=lambda op: op.__name__)
def test_size_and_mode_stay(op):
    picture = noise()
    for magnitude in (0.0, 9.3, 10.0):
        out = op(picture, magnitude)
        assert (out.size, out.mode) == (picture.size, "RGB")


@pytest.mark.parametrize("op", randaugment.SIGNED, ids=lambda op: op.__name__)
def test_nothing_changes_at_magnitude_zero(op):
    np.testing.assert_array_equal(op(noise(), 0.0), noise())


def affine(*coefficients):
    return lambda picture: picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


# At magnitude 9, on an image 20 wide and 24 high.
BY_PILLOW = {
    "auto_contrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
    "posterize": lambda picture: ImageOps.posterize(picture, 1),
    "solarize": lambda picture: ImageOps.solarize(picture, 26),
    "color": lambda picture: ImageEnhance.Color(picture).enhance(1.81),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.81),
    "brightness": lambda picture: ImageEnhance.Brightness(picture).enhance(1.81),
    "sharpness": lambda picture: ImageEnhance.Sharpness(picture).enhance(1.81),
    "rotate": lambda picture: picture.rotate(27, Image.Resampling.BICUBIC, fillcolor=FILL),
    "shear_x": affine(1, 0.27, 0, 0, 1, 0),
    "shear_y": affine(1, 0, 0, 0.27, 1, 0),
    "translate_x": affine(1, 0, 8.1, 0, 1, 0),
    "translate_y": affine(1, 0, 0, 0, 1, 9.72),
}


@pytest.mark.parametrize("name", BY_PILLOW)
def test_changes_are_those_of_pillow(name):
    picture = noise(size=(24, 20))
    changed = np.asarray(getattr(randaugment, name)(picture, 9.0)).astype(int)
    wanted = np.asarray(BY_PILLOW[name](picture)).astype(int)
    assert np.abs(changed - wanted).max() <= 1  # 0.03 * 9 is not 0.27 to the last bit
    assert not np.array_equal(changed, picture)


class Recorder:
    """Stands for all changes and notes their magnitudes."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.ops = [self._op(number) for number in range(15)]
        monkeypatch.setattr(randaugment, "OPS", self.ops)
        monkeypatch.setattr(randaugment, "SIGNED", self.ops[:5])

    def _op(self, number):
        def op(picture, magnitude):
            self.calls.append((number, magnitude))
            return picture

        return op


def test_what_is_drawn(monkeypatch):
    recorder = Recorder(monkeypatch)
    rng = np.random.default_rng(0)
    per_image = []
    for _ in range(4000):
        randaugment.rand_augment(noise(), rng)
        per_image.append(len(recorder.calls) - sum(per_image))
    # Each of two with probability one half.
    counts = collections.Counter(per_image)
    assert {n: counts[n] / 4000 for n in range(3)} == pytest.approx(
        {0: 0.25, 1: 0.5, 2: 0.25}, abs=0.03
    )
    of_each = collections.Counter(number for number, _ in recorder.calls)
    assert min(of_each.values()) > 190 and max(of_each.values()) < 350  # 4000 / 15 = 267
    signs = np.array([magnitude < 0 for number, magnitude in recorder.calls if number < 5])
    assert 0.45 < signs.mean() < 0.55
    assert all(magnitude > 0 for number, magnitude in recorder.calls if number >= 5)
    strength = np.abs([magnitude for _, magnitude in recorder.calls])
    assert strength.max() == 10.0 and np.mean(strength == 10.0) == pytest.approx(0.0228, abs=0.01)
    assert np.median(strength) == pytest.approx(9.0, abs=0.03)
    assert np.quantile(strength, 0.1587) == pytest.approx(8.5, abs=0.05)


def test_settings(monkeypatch):
    recorder = Recorder(monkeypatch)
    rng = np.random.default_rng(0)
    for _ in range(20):
        randaugment.rand_augment(noise(), rng, magnitude=4.0, magnitude_std=0.0, num_ops=5)
    assert 35 < len(recorder.calls) < 65
    assert {abs(magnitude) for _, magnitude in recorder.calls} == {4.0}
    recorder.calls.clear()
    for _ in range(20):
        randaugment.rand_augment(noise(), rng, magnitude=0.0, magnitude_std=5.0)
    assert min(abs(magnitude) for _, magnitude in recorder.calls) == 0.0


def test_depends_on_the_generator_alone():
    def run(seed):
        return np.asarray(randaugment.rand_augment(noise(), np.random.default_rng(seed)))

    outs = [run(seed) for seed in range(12)]
    for seed, out in enumerate(outs):
        np.testing.assert_array_equal(run(seed), out)
    assert len({out.tobytes() for out in outs}) > 5
