"""What a run of a study came to."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """The score of one run under one evaluation.

    Attributes:
      method: of pre-training.
      masker: its name in the study.
      seed: of pre-training; runs of the same seed differ in their masks alone.
      evaluation: its name in the study.
      value: the score.
      of_images: (M,), what `value` is the mean of, image by image: the same images in the same
        order for all maskers and seeds. None where the score is no mean over images.
    """

    method: str
    masker: str
    seed: int
    evaluation: str
    value: float
    of_images: np.ndarray | None = None


class Measure(NamedTuple):
    """What the score of an evaluation is.

    Attributes:
      words: such as "k-NN top-1".
      in_percent: the score is a share from 0 to 1 and shown in percent, its differences in points;
        otherwise both are plain numbers.
      better: the better end, "higher" or "lower"; None where neither is.
      digits: after the point, as shown.
    """

    words: str
    in_percent: bool = True
    better: str | None = "higher"
    digits: int = 2


def check(outcome: Outcome) -> None:
    """Raises ValueError where a score is no number, or is not the mean of its images."""
    if not math.isfinite(outcome.value):
        raise ValueError(f"{named(outcome)} is {outcome.value}: no number to compare")
    if outcome.of_images is None:
        return
    if np.ndim(outcome.of_images) != 1 or not len(outcome.of_images):
        raise ValueError(f"{named(outcome)} has images of shape {np.shape(outcome.of_images)}")
    mean = np.mean(outcome.of_images, dtype=np.float64)
    if not math.isclose(mean, outcome.value, rel_tol=1e-5, abs_tol=1e-6):
        raise ValueError(
            f"{named(outcome)} is {outcome.value:.6g}, but the mean of its images is {mean:.6g}"
        )


def named(outcome: Outcome) -> str:
    """An outcome in words, for messages."""
    return (
        f"{outcome.evaluation} of {outcome.method} with {outcome.masker} masks, seed {outcome.seed}"
    )
