"""The background challenge: how far a classifier leans on backgrounds.

The protocol is that of Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object
Recognition" (arXiv 2006.09994): the most likely one of all classes that the model knows counts as
the class of the test that it belongs to, and as wrong where it belongs to none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from dppmask_jax.errors import InputError

Batches = Iterable[tuple[np.ndarray, np.ndarray]]


def challenge(
    predict: Callable[[np.ndarray], np.ndarray],
    variants: Mapping[str, Batches],
    mapping: np.ndarray,
    *,
    class_names: Sequence[str],
) -> tuple[dict, dict[str, np.ndarray]]:
    """Accuracy of a classifier on each variant of the test images.

    Args:
      predict: (B, H, W, 3) uint8 -> (B,) int, the most likely of the model's C classes.
      variants: of each variant its batches of images and (B,) int labels; a row with label -1
        fills up a batch and does not count.
      mapping: (C,) int, the class of the test of each of the model's classes, -1 for none; see
        `data.sources.imagenet9.in9_of_model_class`.
      class_names: of the test, in order.

    Returns:
      (what was found, of each variant which images are right: (M,) bool, in their order). Found is
      "variants": of each "accuracy", "per_class" (accuracy of each class that has images) and
      "images" (how many); "ceiling", the share of all test images whose class any of the model's
      classes belongs to, and so the highest accuracy possible; and "bg_gap", accuracy on mixed_same
      less that on mixed_rand, where both are there. Accuracies are 0 to 1.

    Raises:
      InputError: the mapping names classes that the test does not have, or a variant is empty.
      ValueError: a prediction is not one of the model's classes, or a label not one of the test's.
    """
    mapping = np.asarray(mapping)
    if mapping.max(initial=-1) >= len(class_names):
        raise InputError(
            f"the model's classes belong to {mapping.max() + 1} classes, the test has "
            f"{len(class_names)}; choose the kind of classes that goes with the test"
        )
    scores, outcomes, images = {}, {}, np.zeros(len(class_names), np.int64)
    for name, batches in variants.items():
        outcomes[name], labels = _answered(predict, batches, mapping, len(class_names))
        count = np.bincount(labels, minlength=len(class_names))
        right = np.bincount(labels[outcomes[name]], minlength=len(class_names))
        if not count.sum():
            raise InputError(f"the variant {name} of the background challenge has no image")
        images += count
        scores[name] = {
            "accuracy": float(right.sum() / count.sum()),
            "per_class": {
                class_names[k]: float(right[k] / count[k]) for k in np.flatnonzero(count)
            },
            "images": int(count.sum()),
        }
    reachable = np.isin(np.arange(len(class_names)), mapping)
    result = {"variants": scores, "ceiling": float(images[reachable].sum() / images.sum())}
    if {"mixed_same", "mixed_rand"} <= scores.keys():
        result["bg_gap"] = scores["mixed_same"]["accuracy"] - scores["mixed_rand"]["accuracy"]
    return result, outcomes


def _answered(predict, batches: Batches, mapping: np.ndarray, num_classes: int):
    """(M,) bool which images are right, and (M,) the labels, of the images that count."""
    right, of_images = [np.zeros(0, bool)], [np.zeros(0, np.int64)]
    for images, labels in batches:
        valid = np.asarray(labels) != -1
        labels = np.asarray(labels)[valid]
        predicted = np.asarray(predict(images))[valid]
        _check(predicted, len(mapping), "prediction")
        _check(labels, num_classes, "label")
        right.append(mapping[predicted] == labels)
        of_images.append(labels)
    return np.concatenate(right), np.concatenate(of_images)


def _check(numbers: np.ndarray, bound: int, what: str) -> None:
    # A negative number would count from the end without a word.
    wrong = numbers[(numbers < 0) | (numbers >= bound)]
    if wrong.size:
        raise ValueError(f"{what} {wrong[0]} is not one of the classes 0 to {bound - 1}")
