"""What the analyses of an encoder have in common: images, their numbers, curves over depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dppmask_jax.data.images import augment
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base, features
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.fields import Field, whole
from dppmask_jax.models.base import Trace

FIELDS = {
    **base.FIELDS,
    "images": Field(1000, whole(2), "images that are looked at, evenly spread over the split"),
}


def split_of(evaluation: Evaluation) -> Source:
    """The images that an analysis looks at: the validation split, or all where there is none."""
    return evaluation.val or evaluation.train


def chosen(evaluation: Evaluation) -> np.ndarray:
    """The numbers of `config.images` images of that split, evenly spread; all if it has fewer."""
    return spread(split_of(evaluation), evaluation.config.images)


def spread(source: Source, count: int) -> np.ndarray:
    """The numbers of so many images of a source, evenly spread; all if it has fewer."""
    total = len(source)
    return np.linspace(0, total - 1, min(total, count)).round().astype(np.int64)


def require_trace(evaluation: Evaluation) -> None:
    """Raises InputError where the encoder does not show what happens in its blocks."""
    if evaluation.run.method.encoder.trace is None:
        raise InputError(
            f"task {evaluation.config.task} needs an encoder with attention, and "
            f"{evaluation.run.name} run has none; name a ViT"
        )


def per_image(
    evaluation: Evaluation, statistic: Callable[[Trace], dict[str, Any]], what: str
) -> dict[str, np.ndarray]:
    """A statistic of the chosen images, computed on all devices.

    Args:
      statistic: Trace -> {name: (B, ...)}, under jit.
      what: names the images in the progress bar.

    Returns:
      {name: (M, ...)} of the M images that can be read, float32, in their order.
    """
    run = evaluation.run

    def encode(params, extra, images):
        return statistic(run.method.encoder.trace(params, augment.normalize(images)))

    images = base.batches(evaluation, split_of(evaluation), what, chosen(evaluation))
    return features.extractor(encode)(run.encoder, {}, images)[0]


def curve(values: np.ndarray) -> dict[str, list[float]]:
    """The mean of a value an image at each depth, and its standard error over the images.

    Args:
      values: (M, L).

    Returns:
      {"mean": L numbers, "error": L numbers}.
    """
    values = np.asarray(values, np.float64)
    error = values.std(axis=0) / np.sqrt(len(values))
    return {"mean": values.mean(axis=0).tolist(), "error": error.tolist()}
