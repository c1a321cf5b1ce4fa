import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dppmask_jax.data.images import autoaugment
from dppmask_jax.data.images.autoaugment import POLICY, Change


def noise(seed=0, size=(24, 20)):
    values = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(values)


def affine(*coefficients):
    return lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, coefficients)


def enhanced(kind, share):
    return lambda picture: kind(picture).enhance(share)


# (change, level, the same with Pillow): all changes of the policy at all of its levels.
BY_PILLOW = [
    ("auto_contrast", 0, ImageOps.autocontrast),
    ("equalize", 0, ImageOps.equalize),
    ("invert", 0, ImageOps.invert),
    *((f"posterize {bits}", level, lambda picture, bits=bits: ImageOps.posterize(picture, bits))
      for level, bits in ((5, 6), (6, 5), (7, 5), (8, 4))),
    *((f"solarize {start}", level, lambda picture, start=start: ImageOps.solarize(picture, start))
      for level, start in ((3, 170), (4, 142), (5, 114), (7, 57), (8, 29))),
    *((f"rotate {level}", level, lambda picture, angle=angle: picture.rotate(angle))
      for level, angle in ((3, 10), (8, 80 / 3), (9, 30), (-9, -30))),
    ("shear_x", 5, affine(1, 1 / 6, 0, 0, 1, 0)),
    ("shear_x", -5, affine(1, -1 / 6, 0, 0, 1, 0)),
    *((f"color_by {level}", level, enhanced(ImageEnhance.Color, share))
      for level, share in ((0, 1.0), (2, 1.2), (4, 1.4), (8, 1.8), (-8, 0.2))),
    *((f"contrast_by {level}", level, enhanced(ImageEnhance.Contrast, share))
      for level, share in ((8, 1.8), (-8, 0.2))),
    *((f"sharpness_by {level}", level, enhanced(ImageEnhance.Sharpness, share))
      for level, share in ((7, 1.7), (-7, 0.3))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "level", "wanted"), BY_PILLOW, ids=[f"{n} {level}" for n, level, _ in BY_PILLOW]
)
def test_changes_are_those_of_pillow(name, level, wanted):
    op, picture = getattr(autoaugment, name.split()[0]), noise()
    changed = op(picture, level)
    assert (changed.size, changed.mode) == (picture.size, "RGB")
    difference = np.abs(np.asarray(changed, int) - np.asarray(wanted(picture), int))
    assert difference.max() <= 1  # 0.09 * 80 / 9 is not 0.8 to the last bit
    assert (level == 0 and "color" in name) or np.any(np.asarray(changed) != np.asarray(picture))


def test_all_changes_of_the_policy_are_compared():
    compared = {(name.split()[0], abs(level)) for name, level, _ in BY_PILLOW}
    assert {(c.op.__name__, c.level or 0) for pair in POLICY for c in pair} == compared
    assert {op.__name__ for op in autoaugment.SIGNED} == {n for n, level in signed()}


def signed():
    return {(name.split()[0], level) for name, level, _ in BY_PILLOW if level < 0}


def test_the_values_that_change_by_hand():
    row = Image.fromarray(np.array([[[56, 57, 255], [28, 29, 114]]], np.uint8))
    # 255 (1 - 7 / 9) is 56.7, and 255 (1 - 8 / 9) is 28.3.
    found = [np.asarray(autoaugment.solarize(row, level)).tolist() for level in (7, 8)]
    assert found[0] == [[[56, 198, 0], [28, 29, 141]]]
    assert found[1] == [[[199, 198, 0], [28, 226, 141]]]
    assert np.asarray(autoaugment.posterize(row, 8)).tolist() == [[[48, 48, 240], [16, 16, 112]]]


def test_what_is_drawn(monkeypatch):
    calls = []

    def op(picture, level):
        calls[-1].append(level)
        return picture

    def other(picture, level):
        return picture

    pairs = ((Change(op, 0.6, 5), Change(op, 1.0, 3)), (Change(other, 0.5), Change(other, 0.5)))
    monkeypatch.setattr(autoaugment, "POLICY", pairs)
    monkeypatch.setattr(autoaugment, "SIGNED", (op,))
    rng, picture = np.random.default_rng(0), noise(size=(2, 2))
    for _ in range(4000):
        calls.append([])
        autoaugment.auto_augment(picture, rng)
    counts = collections.Counter(tuple(map(abs, levels)) for levels in calls)
    shares = {levels: count / 4000 for levels, count in counts.items()}
    assert shares == pytest.approx({(): 0.5, (5, 3): 0.3, (3,): 0.2}, abs=0.03)
    signs = [level < 0 for levels in calls for level in levels]
    assert np.mean(signs) == pytest.approx(0.5, abs=0.03)


def test_depends_on_the_generator_alone():
    def run(seed):
        return np.asarray(autoaugment.auto_augment(noise(), np.random.default_rng(seed))).tobytes()

    outs = [run(seed) for seed in range(12)]
    assert outs == [run(seed) for seed in range(12)] and len(set(outs)) > 6


@pytest.mark.peer
def test_policy_and_changes_are_those_of_torchvision(timm):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import autoaugment as theirs

    policy = theirs.AutoAugment()
    space = policy._augmentation_space(10, (20, 24))
    names = {
        "posterize": "Posterize", "rotate": "Rotate", "solarize": "Solarize",
        "equalize": "Equalize", "auto_contrast": "AutoContrast", "color_by": "Color",
        "contrast_by": "Contrast", "sharpness_by": "Sharpness", "invert": "Invert",
        "shear_x": "ShearX",
    }  # fmt: skip
    ours = [tuple((names[c.op.__name__], c.prob, c.level) for c in pair) for pair in POLICY]
    assert ours == [tuple(pair) for pair in policy.policies]
    for change in {change for pair in POLICY for change in pair}:
        name, picture = names[change.op.__name__], noise(3)
        magnitudes, has_sign = space[name]
        assert has_sign == (change.op in autoaugment.SIGNED)
        for sign in (1, -1) if has_sign else (1,):
            strength = sign * float(magnitudes[change.level]) if change.level is not None else 0.0
            wanted = theirs._apply_op(picture, name, strength, InterpolationMode.NEAREST, None)
            found = change.op(picture, sign * (change.level or 0))
            difference = np.abs(np.asarray(found, int) - np.asarray(wanted, int))
            assert difference.max() <= 1, change
