import json

import numpy as np
import pytest

from dppmask_jax.data.sources import imagenet9
from dppmask_jax.errors import InputError
from dppmask_jax.scores import challenge

NAMES = ("dog", "bird", "fish")


def first_pixel(images):
    """A classifier that reads the class off the image."""
    return images[:, 0, 0, 0].astype(int)


def batch(predicted, labels):
    images = np.zeros((len(predicted), 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = predicted
    return images, np.array(labels)


# Five classes of a model: two dogs, nothing, a bird, another dog; no fish.
MAPPING = np.array([0, 0, -1, 1, 0])


def test_by_hand():
    variants = {
        "original": [
            batch([0, 1, 4, 2], [0, 0, 0, 0]),  # three breeds are a dog, "nothing" is wrong
            batch([3, 0, 2, 3], [1, 1, 2, 2]),  # a bird, not a bird, no fish
        ],
        "mixed_same": iter([batch([0, 3, 3, 2], [0, 1, 1, 2])]),
        "mixed_rand": [batch([3, 3, 0, 2], [0, 1, 1, 2])],
    }
    result, right = challenge.challenge(first_pixel, variants, MAPPING, class_names=NAMES)
    outcomes = {name: of_images.tolist() for name, of_images in right.items()}
    yes, no = True, False
    assert outcomes == {
        "original": [yes, yes, yes, no, yes, no, no, no],
        "mixed_same": [yes, yes, yes, no],
        "mixed_rand": [no, yes, no, no],
    }
    assert result == {
        "variants": {
            "original": {
                "accuracy": 4 / 8,
                "per_class": {"dog": 3 / 4, "bird": 1 / 2, "fish": 0.0},
                "images": 8,
            },
            "mixed_same": {
                "accuracy": 3 / 4,
                "per_class": {"dog": 1.0, "bird": 1.0, "fish": 0.0},
                "images": 4,
            },
            "mixed_rand": {
                "accuracy": 1 / 4,
                "per_class": {"dog": 0.0, "bird": 1 / 2, "fish": 0.0},
                "images": 4,
            },
        },
        "ceiling": 12 / 16,  # four fish
        "bg_gap": 0.5,
    }
    assert json.loads(json.dumps(result)) == result


def test_none_is_wrong_for_the_last_class_too():
    # -1 as an index would be the last class, fish.
    result, _ = challenge.challenge(
        first_pixel, {"original": [batch([2], [2])]}, MAPPING, class_names=NAMES
    )
    assert result["variants"]["original"]["accuracy"] == 0.0
    assert result["ceiling"] == 0.0


def test_filled_up_batches_and_absent_classes():
    variants = {"original": [batch([0, 0, 9], [0, 1, -1]), batch([9, 9, 9], [-1, -1, -1])]}
    result, right = challenge.challenge(first_pixel, variants, MAPPING, class_names=NAMES)
    assert right["original"].tolist() == [True, False], "rows that fill up are no images"
    assert result["variants"]["original"] == {
        "accuracy": 0.5,
        "per_class": {"dog": 1.0, "bird": 0.0},
        "images": 2,
    }
    assert "bg_gap" not in result


def test_ceiling_of_imagenet100():
    nine = [str(number) for number in range(9)]
    variants = {"original": [batch([0] * 9, range(9))] * 2}
    mapping = imagenet9.in9_of_model_class(100, "imagenet100")
    result, _ = challenge.challenge(first_pixel, variants, mapping, class_names=nine)
    assert result["ceiling"] == pytest.approx(8 / 9)  # no fish among the hundred
    same = imagenet9.in9_of_model_class(9, "same")
    result, _ = challenge.challenge(first_pixel, variants, same, class_names=nine)
    assert result["ceiling"] == 1.0


def test_bad_input():
    with pytest.raises(InputError, match="belong to 2 classes, the test has 1"):
        challenge.challenge(
            first_pixel, {"original": [batch([0], [0])]}, MAPPING, class_names=("dog",)
        )
    for batches in ([], [batch([0], [-1])]):
        with pytest.raises(InputError, match=r"variant only_fg .* has no image"):
            challenge.challenge(first_pixel, {"only_fg": batches}, MAPPING, class_names=NAMES)


@pytest.mark.parametrize("predicted, label", [(5, 0), (0, 3), (0, -2)])
def test_numbers_out_of_range(predicted, label):
    with pytest.raises(ValueError, match="is not one of the classes"):
        challenge.challenge(
            first_pixel, {"original": [batch([predicted], [label])]}, MAPPING, class_names=NAMES
        )
    with pytest.raises(ValueError, match="prediction -1"):
        challenge.challenge(
            lambda images: np.array([-1]),
            {"original": [batch([0], [0])]},
            MAPPING,
            class_names=NAMES,
        )
