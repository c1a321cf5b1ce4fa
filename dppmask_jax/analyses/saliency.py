"""task=saliency: objects that TokenCut finds by patch tokens alone, against foreground masks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dppmask_jax import parallel, patches
from dppmask_jax.analyses import base, bilateral, masked_images
from dppmask_jax.analyses.masked_images import Looked
from dppmask_jax.analyses.tokencut import THRESHOLD, tokencut
from dppmask_jax.data import loader
from dppmask_jax.data.images import augment, crops
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.evals.base import Evaluation, Result, Score, Task, percent
from dppmask_jax.fields import FLAG, Field, number, one_of, whole
from dppmask_jax.figures.saliency import (
    SIDE,
    Found,
    draw_saliency,
    draw_scores,
    from_0_to_1,
    panels_of,
)
from dppmask_jax.runs import metrics
from dppmask_jax.runs.run import Run
from dppmask_jax.scores import saliency as scores
from dppmask_jax.scores.uncertainty import error_of_mean
from dppmask_jax.words import count

_TOKENS_AT_ONCE = 2**15  # of a batch, which all go to the host
_MEAN_SIDE = 56  # pixels of the means over all images
_MEASURES = ("max F-beta", "IoU", "accuracy")
_LABELS = {
    "tokencut": "TokenCut",
    "bilateral": "TokenCut, bilateral solver",
    "whole": "the whole image",
}
FIELDS = {
    **base.FIELDS,
    "threshold": Field(
        THRESHOLD, number(-1, 1), "cosine of two tokens above which their patches are joined"
    ),
    "resolution": Field(
        "model",
        one_of("model", "native"),
        "at which images are seen: image_size, or their own to the nearest multiple of the patches",
    ),
    "max_side": Field(
        512,
        whole(16, 4096),
        "pixels of the longer side that images are shrunk to, at native resolution and for the "
        "bilateral solver",
    ),
    "bilateral": Field(
        False, FLAG, "whether masks are also fitted to the edges of their image, see bilateral.py"
    ),
    "shown": Field(6, whole(1, 32), "images in the figure"),
}


def check(evaluation: Evaluation) -> None:
    """Raises InputError unless there are masks of the images' sizes, and grids to cut."""
    config, run = evaluation.config, evaluation.run
    own_size = tuple(config.image_size) == tuple(run.config.image_size)
    if config.resolution == "native" and not own_size:
        raise InputError(
            f"config.image_size={tuple(config.image_size)} and config.resolution=native exclude "
            "each other; leave one out"
        )
    mend = {
        "model": "set config.image_size to a larger size",
        "native": "take these images out, or leave config.resolution=native out",
    }
    for size in (sizes := _groups(evaluation, _looked_at(evaluation))):
        masked_images.check_grid(size, run.config.model.patch_size, mend[config.resolution])
    run.at_size(next(iter(sizes)))  # raises where positions cannot be resized


def _looked_at(evaluation: Evaluation) -> list[Looked]:
    """The images that are cut, and those that are left out."""
    source = base.split_of(evaluation)
    looked = masked_images.look_at(source, base.chosen(evaluation), "task saliency")
    kept = sum(not image.left_out for image in looked)
    if kept < 2:
        raise InputError(
            f"task saliency needs 2 images with a mask or more, and "
            f"config.data.source={evaluation.config.data.source} has {kept} among "
            f"{len(looked):,}; add masks, or raise config.images"
        )
    return looked


def _groups(evaluation: Evaluation, looked: list[Looked]) -> dict[tuple[int, int], np.ndarray]:
    """{(height, width) at which they are seen: numbers of images}."""
    config = evaluation.config
    kept = [image for image in looked if not image.left_out]
    if config.resolution == "model":
        return {tuple(config.image_size): np.array([image.index for image in kept])}
    return masked_images.by_size(kept, evaluation.run.config.model.patch_size, config.max_side)


def run(evaluation: Evaluation) -> Result:
    """Cuts each image and compares the cut with its foreground mask, at the mask's resolution."""
    config, looked = evaluation.config, _looked_at(evaluation)
    _name_left_out(evaluation, looked)
    groups = _groups(evaluation, looked)
    found = _Gathering(_spread(looked, config.shown), 2 if config.bilateral else 1)
    with ThreadPoolExecutor() as threads:
        for indices, valid, images, tokens, grid in _encoded(evaluation, groups):
            rows = [(int(indices[i]), images[i], tokens[i]) for i in np.flatnonzero(valid)]
            cuts = threads.map(functools.partial(_cut, evaluation, grid), *zip(*rows, strict=True))
            found.add(list(cuts) if rows else [], valid)
    return _result(evaluation, groups, found.all())


def _spread(looked: list[Looked], most: int) -> list[int]:
    """The numbers of at most so many of the images that are cut, evenly spread."""
    kept = [image.index for image in looked if not image.left_out]
    return [
        kept[i] for i in np.linspace(0, len(kept) - 1, min(len(kept), most)).round().astype(int)
    ]


def _name_left_out(evaluation: Evaluation, looked: list[Looked]) -> None:
    source = base.split_of(evaluation)
    for image in looked:
        name = source.name(image.index)
        if image.left_out and name not in source.named:
            source.named.add(name)
            evaluation.say(f"left out: {name}: {image.left_out}")


def _encoded(evaluation: Evaluation, groups) -> Iterator[tuple]:
    """(numbers (b,), valid (b,), images (b, H, W, 3), patch tokens (b, N, D), grid) of this
    process's share of batches, one size after the other: each compiles the encoder once."""
    config, (shard, num_shards) = evaluation.config, parallel.process_shard()

    def batches():
        for size, indices in groups.items():
            run = evaluation.run.at_size(size)
            encode = _encoder(run)
            grid = run.method.encoder.grid
            with loader.eval_batches(
                base.split_of(evaluation),
                image_size=size,
                batch_size=batch_sizes[size],
                view=_lanczos,
                indices=indices,
                workers=config.data.workers,
                shard=shard,
                num_shards=num_shards,
                log=evaluation.say,
            ) as stream:
                for batch in stream:
                    tokens = encode(run.encoder, batch["image"])
                    yield batch["index"], batch["valid"], batch["image"], tokens, grid

    batch_sizes = {
        size: _batch_size(config, evaluation.run, size, len(indices))
        for size, indices in groups.items()
    }
    total = sum(-(-len(indices) // batch_sizes[size]) for size, indices in groups.items())
    return metrics.counted(batches(), total, "images", parallel.is_main())


def _batch_size(config, run: Run, size: tuple[int, int], images: int) -> int:
    rows, columns = patches.grid_shape(size, run.config.model.patch_size)
    most = max(1, _TOKENS_AT_ONCE // (rows * columns))
    return parallel.round_up(min(features.batch_size(config), most, images))


def _encoder(run: Run):
    encode = run.method.encoder.encode
    return parallel.data_parallel_map(
        lambda params, images: encode(params, augment.normalize(images)).patches
    )


def _lanczos(data: bytes, *, image_size: tuple[int, int]) -> np.ndarray:
    """The whole image, resized as SOAP does it."""
    return crops.whole_image(data, image_size=image_size, resample=Image.Resampling.LANCZOS)


class _Cut(NamedTuple):
    """An image that was cut. K masks: TokenCut's, and that of the bilateral solver if asked for."""

    index: int
    numbers: dict[str, Any]  # "f_beta" (K, 255), "iou", "accuracy" (K,), "truth", "uncut" ()
    found: Found


def _cut(evaluation: Evaluation, grid: tuple[int, int], index: int, image, tokens) -> _Cut:
    """Cuts one image and compares it with its truth."""
    config, source = evaluation.config, base.split_of(evaluation)
    truth = scores.foreground(source.extras(index)["mask"])
    cut = tokencut(tokens, grid, config.threshold)
    mask = _nearest(cut.mask, truth.shape)
    masks, soft = [mask], [mask]
    if config.bilateral:
        size = masked_images.within(truth.shape, config.max_side)
        pixels = _lanczos(source.read(index)[0], image_size=size)
        coarse = _nearest(cut.mask, size)
        smooth = bilateral.smoothed(pixels, coarse)
        masks.append(_nearest(bilateral.object_of(smooth, coarse), truth.shape))
        soft.append(_nearest(smooth, truth.shape))
    numbers = {
        "f_beta": [scores.f_beta(scores.precision_recall(each, truth)) for each in soft],
        "iou": [scores.iou(each, truth) for each in masks],
        "accuracy": [scores.accuracy(each, truth) for each in masks],
        "truth": truth.mean(),
        "uncut": not cut.eigenvector.any(),
    }
    return _Cut(index, numbers, Found(image, cut.eigenvector.reshape(grid), (*masks, truth)))


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (H, W), each pixel from the cell that it lies in."""
    rows, columns = (
        np.arange(wanted) * had // wanted for wanted, had in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


class _All(NamedTuple):
    """What was found in all M images, by all processes."""

    numbers: dict[str, np.ndarray]  # see `_Cut`, and "index"; (M, ...)
    panels: dict[int, np.ndarray]  # of the images that are shown, see `panels_of`
    mean: Found


class _Gathering:
    """Gathers what was found in the images of this process, and then of all."""

    def __init__(self, shown: list[int], masks: int):
        self._shown = np.array(shown)
        self._panels = np.zeros((len(shown), 3 + masks, SIDE, SIDE, 3), np.uint8)
        self._sums = np.zeros((4 + masks + 1, _MEAN_SIDE, _MEAN_SIDE), np.float32)
        self._masks = masks
        self._rows = []

    def add(self, cuts: list[_Cut], valid: np.ndarray) -> None:
        """Adds the valid images of a batch; every process adds the same number of batches."""
        shapes = {"f_beta": (self._masks, len(scores.THRESHOLDS)), "truth": (), "uncut": ()}
        shapes |= {"iou": (self._masks,), "accuracy": (self._masks,)}
        rows = {name: np.zeros((len(valid), *shape), np.float32) for name, shape in shapes.items()}
        rows |= {"valid": valid, "index": np.zeros(len(valid), np.int32)}
        for place, cut in zip(np.flatnonzero(valid), cuts, strict=True):
            rows["index"][place] = cut.index
            for name in shapes:
                rows[name][place] = cut.numbers[name]
            self._panels[self._shown == cut.index] = panels_of(cut.found)
            self._sums += _small(cut.found)
        self._rows.append(parallel.all_rows(rows))

    def all(self) -> _All:
        """Raises InputError where no image could be read."""
        rows = {name: np.concatenate([some[name] for some in self._rows]) for name in self._rows[0]}
        rows = {name: values[rows["valid"]] for name, values in rows.items()}
        if not len(rows["index"]):
            raise InputError(features.NONE_READABLE)
        ours = {"panels": self._panels[None], "sums": self._sums[None]}
        whole = {name: values.sum(axis=0) for name, values in parallel.all_rows(ours).items()}
        means = whole["sums"] / len(rows["index"])
        image = np.moveaxis(means[:3], 0, -1).round().astype(np.uint8)
        panels = dict(zip(self._shown.tolist(), whole["panels"].astype(np.uint8), strict=True))
        return _All(rows, panels, Found(image, means[3], tuple(means[4:])))


def _small(found: Found) -> np.ndarray:
    """(4 + masks, side, side): the channels of the image, the eigenvector from 0 to 1, masks."""
    size = (_MEAN_SIDE, _MEAN_SIDE)
    colours = [_nearest(found.image[..., channel], size) for channel in range(3)]
    maps = (from_0_to_1(found.eigenvector), *found.masks)
    return np.stack([*colours, *(_nearest(values, size) for values in maps)])


def _result(evaluation: Evaluation, groups, found: _All) -> Result:
    config, rows = evaluation.config, found.numbers
    names = ["tokencut", "bilateral"] if config.bilateral else ["tokencut"]
    masks = {
        name: _scores(rows["f_beta"][:, k], rows["iou"][:, k], rows["accuracy"][:, k])
        for k, name in enumerate(names)
    }
    truth = rows["truth"]
    everything = scores.f_beta(np.stack([truth, np.ones_like(truth)], axis=-1))
    masks["whole"] = _scores(np.repeat(everything[:, None], 255, axis=1), truth, truth)
    uncut = int(rows["uncut"].sum())
    iou = masks["tokencut"]["IoU"]
    return Result(
        {
            "images": len(truth),
            "uncut": uncut,
            "empty_truths": int(np.sum(truth == 0)),
            "foreground": float(truth.mean()),
            "masks": masks,
        },
        [
            ("mask", *_MEASURES),
            *(
                (_LABELS[name], *(percent(of[m]["value"], of[m]["error"]) for m in _MEASURES))
                for name, of in masks.items()
            ),
        ],
        _protocol(evaluation, groups, len(truth)),
        Score("IoU of TokenCut", iou["value"], None, iou["error"]),
        _note(config, uncut),
        {m: percent(of["value"], of["error"]) for m, of in masks["tokencut"].items()},
        {"the whole image": masks["whole"]["IoU"]["value"]},
        {"saliency.png": _figure(found, names)},
    )


def _scores(f_beta: np.ndarray, iou: np.ndarray, accuracy: np.ndarray) -> dict[str, Any]:
    best = scores.best_f_beta(f_beta)
    of_images = dict(zip(_MEASURES, (best.values, iou, accuracy), strict=True))
    found = {
        name: {"value": float(np.mean(values, dtype=np.float64)), "error": error_of_mean(values)}
        for name, values in of_images.items()
    }
    found["max F-beta"]["threshold"] = best.threshold
    return found


def _protocol(evaluation: Evaluation, groups, images: int) -> str:
    config = evaluation.config
    if config.resolution == "model":
        (size,) = groups
        rows, columns = patches.grid_shape(size, evaluation.run.config.model.patch_size)
        seen = f"squeezed into {size[0]}x{size[1]} pixels, {rows}x{columns} patches"
    else:
        seen = (
            f"at their own resolution, at most {config.max_side} pixels a side, in "
            f"{count(len(groups), 'grid')} of patches; positions are resized"
        )
    return (
        f"TokenCut on {images:,} whole images, {seen}; patches are joined where the cosine of "
        f"their tokens is above {config.threshold:g}; masks are compared at the truth's "
        "resolution, and the truth is what is above half of 255"
    )


def _note(config, uncut: int) -> str:
    lines = ["± is the standard error over the images; two empty masks have an IoU of 1"]
    if config.bilateral:
        lines.append("max F-beta of the bilateral solver is that of its values, not of its mask")
    if uncut:
        lines.append(
            f"{count(uncut, 'image')} could not be cut, since all patches are joined; the mask is "
            "the whole image there"
        )
    return "\n".join(lines)


def _figure(found: _All, names: list[str]):
    iou = dict(zip(found.numbers["index"].tolist(), found.numbers["iou"], strict=True))
    shown = [index for index in found.panels if index in iou]
    captions = [["", "", *(f"IoU {value:.0%}" for value in iou[index]), ""] for index in shown]
    return draw_saliency(
        np.stack([found.panels[index] for index in shown]),
        captions,
        found.mean,
        [*(_LABELS[name] for name in names), "Truth"],
        "eigenvectors are signed so that the object is bright; the last row is over all images, "
        "squeezed into a square",
    )


def _compared(found: dict[str, dict[str, Any]]):
    scores_of = {label: of["masks"]["tokencut"] for label, of in found.items()}
    return {"saliency_scores.png": draw_scores(scores_of)}


TASK = Task(check, run, FIELDS, compare=_compared)
