"""What the analyses of an encoder have in common: images, their numbers, curves over depth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dppmask_jax.data import loader
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals import base
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.fields import Field, whole
from dppmask_jax.models.base import Trace
from dppmask_jax.scores.uncertainty import errors_of_means
from dppmask_jax.words import count

FIELDS = {
    **base.FIELDS,
    "images": Field(1000, whole(2), "images that are looked at, evenly spread over the split"),
}


def split_of(evaluation: Evaluation) -> Source:
    """The images that an analysis looks at: the validation split, or all where there is none."""
    return evaluation.val or evaluation.train


def chosen(evaluation: Evaluation) -> np.ndarray:
    """The numbers of `config.images` images of that split, evenly spread; all if it has fewer."""
    return spread(len(split_of(evaluation)), evaluation.config.images)


def spread(total: int, most: int) -> np.ndarray:
    """At most so many of the numbers below a total, evenly spread."""
    return np.linspace(0, total - 1, min(total, most)).round().astype(np.int64)


def no_score(config) -> str:
    """Why a sweep cannot run a task without a score, see `Task.unswept`."""
    return f"task {config.task} gives no number that stands for it"


def require_trace(evaluation: Evaluation) -> None:
    """Raises NotServed where the encoder does not show what happens in its blocks."""
    if base.encoder_of(evaluation).trace is None:
        run = evaluation.run
        whose = f"{run.name} run" if run else f"model.encoder={evaluation.config.model.encoder}"
        raise NotServed(
            f"task {evaluation.config.task} needs an encoder with attention, and {whose} has none; "
            "name a ViT"
        )


def require_images(evaluation: Evaluation, least: int) -> None:
    """Raises NotServed where a split has fewer images than a task needs, InputError where fewer are
    to be looked at."""
    config, there = evaluation.config, len(split_of(evaluation))
    if there < least:
        where = " in its validation split" if evaluation.val else ""
        mend = " or, where it is held out, raise config.data.val_fraction" if evaluation.val else ""
        raise NotServed(
            f"task {config.task} needs at least {least} images, and config.data.source="
            f"{config.data.source} has {there:,}{where}; give a source with more{mend}"
        )
    if config.images < least:
        raise InputError(
            f"task {config.task} needs at least {least} images, and config.images="
            f"{config.images}; raise it"
        )


def require_patches(evaluation: Evaluation, least: int) -> None:
    """Raises NotServed where an image has fewer patches than a task needs."""
    rows, columns = base.encoder_of(evaluation).grid
    if rows * columns < least:
        raise NotServed(
            f"task {evaluation.config.task} needs at least {least} patches an image, and images of "
            f"{'x'.join(map(str, evaluation.config.image_size))} have {rows}x{columns}; raise "
            "config.image_size"
        )


def prefix_of(trace: Trace) -> int:
    """How many tokens, the class token and registers, stand in front of the patches."""
    return trace.embedding.shape[1] - trace.tokens.patches.shape[1]


def patch_tokens(trace: Trace) -> list:
    """(B, N, D) each, float32: the patch tokens at every depth, the embedding and what each block
    makes of it."""
    of_depths = (trace.embedding, *(block.after_mlp for block in trace.blocks))
    return [tokens[:, prefix_of(trace) :].astype(jnp.float32) for tokens in of_depths]


def pictures(evaluation: Evaluation, count: int) -> np.ndarray:
    """(at most `count`, H, W, C) as they are loaded: images to be shown, evenly spread over those
    of `chosen`; one that cannot be read is left out."""
    numbers = chosen(evaluation)
    places = np.linspace(0, len(numbers) - 1, min(count, len(numbers))).round().astype(int)
    (batch,) = loader.eval_batches(
        split_of(evaluation),
        image_size=tuple(evaluation.config.image_size),
        batch_size=len(places),
        indices=numbers[places],
        log=evaluation.say,
    )
    return batch["image"][batch["valid"]]


def per_image(
    evaluation: Evaluation,
    statistic: Callable[[Trace], dict[str, Any]],
    what: str,
    least: int = 2,
) -> dict[str, np.ndarray]:
    """A statistic of the chosen images, computed on all devices.

    Args:
      statistic: Trace -> {name: (B, ...)}, under jit.
      what: names the images in the progress bar.
      least: images that the task needs; standard errors need two.

    Returns:
      {name: (M, ...)} of the M images that can be read, float32, in their order.

    Raises:
      NotServed: fewer can be read.
    """
    encoder = evaluation.run.method.encoder

    def encode(params, images):
        return statistic(encoder.trace(params, encoder.pixels.normalize(images)))

    numbers = chosen(evaluation)
    found, labels = base.extracted(evaluation, split_of(evaluation), encode, what, numbers)
    if len(labels) < least:
        raise NotServed(
            f"{len(labels)} of {len(numbers)} images can be read, and task "
            f"{evaluation.config.task} needs {least}; the lines above name the others and say why"
        )
    return found


def numbered(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, Any]]:
    """Batches for `features.extractor` whose `encode` needs more of an image than its pixels: in
    the place of the images it is given {"image", "index" in the source, "label"}."""
    for batch in batches:
        yield {**batch, "image": {name: batch[name] for name in ("image", "index", "label")}}


def curve(values: np.ndarray) -> dict[str, list[float]]:
    """The mean of a value an image at each depth, and its standard error over the images.

    Args:
      values: (M, L).

    Returns:
      {"mean": L numbers, "error": L numbers}.
    """
    values = np.asarray(values, np.float64)
    error = errors_of_means(values)
    return {"mean": values.mean(axis=0).tolist(), "error": error.tolist()}


def with_error(values, place: int, digits: int) -> str:
    """A number of a `curve` and its error, in words."""
    return f"{values['mean'][place]:.{digits}f} ± {values['error'][place]:.{digits}f}"


def in_percent(curve: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """A curve of shares from 0 to 1, in percent."""
    return {name: [100 * value for value in values] for name, values in curve.items()}


def over_images(found: Iterable[Mapping[str, Any]]) -> str:
    """What the band of a figure is, for metrics that have the number of "images"."""
    return f"bands: one standard error over {counted_images(found)}"


def counted_images(found: Iterable[Mapping[str, Any]]) -> str:
    """How many "images" some metrics are of, in words; each number once."""
    return " | ".join(dict.fromkeys(count(metrics["images"], "image") for metrics in found))
