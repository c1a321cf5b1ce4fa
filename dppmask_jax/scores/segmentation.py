"""How well predicted maps of classes agree with true ones: mean IoU and pixel accuracy.

A class counts where it has true pixels; the others are left out of the mean, whatever was
predicted. So all predictions for the same images are averaged over the same classes, and a single
wrong pixel of a class that is not there changes no average. (Where every class has true pixels, as
in the validation sets of ADE20K and VOC, this is the usual mean IoU.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dppmask_jax.scores.uncertainty import jackknife

_IMAGES = 64  # whose leave-one-out scores are computed at a time


class Pixels(NamedTuple):
    """Numbers of pixels by image and class, (M, C) int64 each: those that are of the class and
    predicted so, that are of it, and that are predicted so. Ignored pixels do not count."""

    right: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


class Agreement(NamedTuple):
    """Shares from 0 to 1, and their jackknife errors over the images.

    Attributes:
      miou: mean IoU over the classes that have true pixels.
      accuracy: share of the pixels that are right.
      iou: (C,) intersection over union of each class; nan where a class has no true pixel.
      iou_error: (C,); nan as well where one image alone has the class.
    """

    miou: float
    miou_error: float
    accuracy: float
    accuracy_error: float
    iou: np.ndarray
    iou_error: np.ndarray


def confusion(
    true: np.ndarray, predicted: np.ndarray, num_classes: int, ignored: int | None = None
) -> np.ndarray:
    """(B, C, C) int64: pixels of each image by true class (rows) and predicted class.

    Args:
      true: (B, H, W) int in 0..C-1, or `ignored`, which does not count.
      predicted: (B, H, W) int in 0..C-1; anything where `true` is ignored.

    Raises:
      ValueError: another shape, or a class outside 0..C-1.
    """
    true, predicted = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    if true.shape != predicted.shape or true.ndim != 3:
        raise ValueError(f"maps of shapes {true.shape} and {predicted.shape} do not go together")
    counts = np.ones(true.shape, bool) if ignored is None else true != ignored
    for name, values in (("true", true[counts]), ("predicted", predicted[counts])):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(
                f"{name} classes go from {values.min()} to {values.max()}, not within 0 to "
                f"{num_classes - 1}"
            )
    cell = (np.arange(len(true))[:, None, None] * num_classes + true) * num_classes + predicted
    cells = np.bincount(cell[counts], minlength=len(true) * num_classes**2)
    return cells.reshape(len(true), num_classes, num_classes)


def pixels(confused: np.ndarray) -> Pixels:
    """What `agreement` needs of (M, C, C) confusion matrices of single images."""
    return Pixels(
        np.diagonal(confused, axis1=1, axis2=2), confused.sum(axis=2), confused.sum(axis=1)
    )


def agreement(found: Pixels) -> Agreement:
    """The scores of all images together: pixels are summed over images before shares are taken.

    Raises:
      ValueError: no pixel counts.
    """
    if not found.true.sum():
        raise ValueError("no pixel of any class")
    sums = [np.asarray(part, np.float64).sum(axis=0) for part in found]
    without = [_shares(*(whole - part for whole, part in zip(sums, rows, strict=True)))
               for rows in _rows(found)]  # fmt: skip
    iou, miou, accuracy = _shares(*sums)
    iou_without, miou_without, accuracy_without = map(np.concatenate, zip(*without, strict=True))
    return Agreement(
        float(miou),
        float(jackknife(miou_without)),
        float(accuracy),
        float(jackknife(accuracy_without)),
        iou,
        jackknife(iou_without),
    )


def _rows(found: Pixels):
    for start in range(0, len(found.true), _IMAGES):
        yield [np.asarray(part[start : start + _IMAGES], np.float64) for part in found]


def _shares(right, true, predicted):
    """(..., C) numbers of pixels -> IoU (..., C), mean IoU (...), accuracy (...)."""
    there = true > 0
    union = true + predicted - right
    iou = np.where(there, right / np.where(there, union, 1), np.nan)
    number = there.sum(axis=-1)
    mean = np.where(there, iou, 0).sum(axis=-1) / np.where(number, number, np.nan)
    total = true.sum(axis=-1)
    return iou, mean, right.sum(axis=-1) / np.where(total, total, np.nan)


def majority(
    true: np.ndarray, grid: tuple[int, int], num_classes: int, ignored: int | None = None
) -> np.ndarray:
    """The class of most pixels of each patch; of equally many the lower one.

    Args:
      true: (B, H, W) int in 0..C-1, or `ignored`: such pixels do not vote.
      grid: (rows, columns) of patches, which divide H and W.

    Returns:
      (B, N) int32, patches row by row; -1 where all pixels of a patch are ignored.
    """
    rows, columns = grid
    true = np.asarray(true, np.int64)
    height, width = true.shape[1] // rows, true.shape[2] // columns
    split = true.reshape(-1, rows, height, columns, width).swapaxes(2, 3)
    split = split.reshape(len(true) * rows * columns, height * width)
    cells = np.arange(len(split))[:, None] * num_classes + split
    counts = np.ones(split.shape, bool) if ignored is None else split != ignored
    votes = np.bincount(cells[counts], minlength=len(split) * num_classes)
    votes = votes.reshape(len(true), rows * columns, num_classes)
    return np.where(votes.any(axis=2), votes.argmax(axis=2), -1).astype(np.int32)


def enlarged(classes: np.ndarray, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(B, N) classes of patches -> (B, H, W) of the pixels of images of `size`: each has that of
    its patch."""
    maps = np.asarray(classes).reshape(-1, *grid)
    return maps.repeat(size[0] // grid[0], axis=1).repeat(size[1] // grid[1], axis=2)
