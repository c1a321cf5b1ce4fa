"""task=saliency: objects that TokenCut finds by patch tokens alone, against foreground masks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax import patches
from dppmask_jax.analyses import base, cuts, masked_images
from dppmask_jax.analyses.cuts import Cuts
from dppmask_jax.analyses.masked_images import Looked
from dppmask_jax.analyses.tokencut import THRESHOLD
from dppmask_jax.analyses.tokencut import tokencut as tokencut
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import Evaluation, Result, Score, Task, percent
from dppmask_jax.fields import FLAG, Field, number, one_of, whole
from dppmask_jax.figures.saliency import draw_saliency, draw_scores
from dppmask_jax.runs.run import Run
from dppmask_jax.scores import saliency as scores
from dppmask_jax.scores.uncertainty import error_of_mean
from dppmask_jax.words import count

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
    "shown": Field(6, whole(0, 32), "images in the figure; 0 draws none"),
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without masks or grids to cut, and InputError where masks have other sizes
    than their images, or fields exclude each other."""
    config, run = evaluation.config, evaluation.run
    if config.resolution == "native" and run is not None:
        own, size = tuple(run.config.image_size), tuple(config.image_size)
        if size != own:
            raise InputError(
                f"config.image_size={size} and config.resolution=native exclude each other; leave "
                "one out"
            )
    mend = {
        "model": "set config.image_size to a larger size",
        "native": "take these images out, or leave config.resolution=native out",
    }
    for size in (sizes := _groups(evaluation, _looked_at(evaluation))):
        masked_images.check_grid(size, config.model.patch_size, mend[config.resolution])
    if run is not None:  # None: a sweep is yet to train it
        _check_resizes(run, sizes)


def _check_resizes(run: Run, sizes: Iterable[tuple[int, int]]) -> None:
    """Raises InputError where the positions of an encoder cannot be resized."""
    try:
        run.at_size(next((size for size in sizes if size != run.image_size), run.image_size))
    except InputError as error:
        raise InputError(f"config.resolution=native: {error}") from error


def _looked_at(evaluation: Evaluation) -> list[Looked]:
    """The images that are cut, and those that are left out."""
    source = base.split_of(evaluation)
    looked = masked_images.look_at(source, base.chosen(evaluation), "task saliency")
    kept = sum(not image.left_out for image in looked)
    if kept < 2:
        raise NotServed(
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
    return masked_images.by_size(kept, config.model.patch_size, config.max_side)


def run(evaluation: Evaluation) -> Result:
    """Cuts each image and compares the cut with its foreground mask, at the mask's resolution."""
    looked = _looked_at(evaluation)
    _name_left_out(evaluation, looked)
    groups = _groups(evaluation, looked)
    return _result(
        evaluation, groups, cuts.of_images(evaluation, groups, _shown(evaluation, looked))
    )


def _shown(evaluation: Evaluation, looked: list[Looked]) -> list[int]:
    """The numbers of the images in the figure, evenly spread."""
    kept = [image.index for image in looked if not image.left_out]
    count = min(len(kept), evaluation.config.shown)
    return [kept[i] for i in np.linspace(0, len(kept) - 1, count).round().astype(int)]


def _name_left_out(evaluation: Evaluation, looked: list[Looked]) -> None:
    source = base.split_of(evaluation)
    for image in looked:
        name = source.name(image.index)
        if image.left_out and name not in source.named:
            source.named.add(name)
            evaluation.say(f"left out: {name}: {image.left_out}")


def _result(evaluation: Evaluation, groups, found: Cuts) -> Result:
    config, rows = evaluation.config, found.numbers
    names = ["tokencut", "bilateral"] if config.bilateral else ["tokencut"]
    masks = {
        name: _scores(rows["f_beta"][:, k], rows["iou"][:, k], rows["accuracy"][:, k])
        for k, name in enumerate(names)
    }
    truth = rows["truth"]
    everything = scores.f_beta(np.stack([truth, np.ones_like(truth)], axis=-1))
    masks["whole"] = _scores(np.repeat(everything[:, None], 255, axis=1), truth, truth)
    empty, uncut = int(np.sum(truth == 0)), int(rows["uncut"].sum())
    iou, cosine = masks["tokencut"]["IoU"], float(rows["cosine"].mean())
    return Result(
        {
            "images": len(truth),
            "uncut": uncut,
            "empty_truths": empty,
            "foreground": float(truth.mean()),
            "mean_cosine": cosine,
            "masks": masks,
        },
        [
            ("mask", *_MEASURES),
            *(
                (_LABELS[name], *(percent(*_shares(of[measure])) for measure in _MEASURES))
                for name, of in masks.items()
            ),
        ],
        _protocol(evaluation, groups, len(truth)),
        Score("IoU of TokenCut", iou["value"], None, iou["error"]),
        _note(config, empty, uncut, len(truth), cosine),
        {
            measure + f" ({_LABELS[name]})" * (name != "tokencut"): percent(*_shares(of))
            for name in names
            for measure, of in masks[name].items()
        },
        {"the whole image": masks["whole"]["IoU"]["value"]},
        _figures(found, names),
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


def _shares(of_measure: dict[str, float]) -> tuple[float, float]:
    return of_measure["value"], of_measure["error"]


def _protocol(evaluation: Evaluation, groups, images: int) -> str:
    config = evaluation.config
    if config.resolution == "model":
        (size,) = groups
        rows, columns = patches.grid_shape(size, config.model.patch_size)
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


def _note(config, empty: int, uncut: int, images: int, cosine: float) -> str:
    lines = ["± is the standard error over the images; two empty masks have an IoU of 1"]
    if empty:
        lines.append(
            f"{empty:,} of {count(images, 'true mask')} have no foreground: F-beta is 0 there, and "
            "IoU too wherever anything is found"
        )
    if config.bilateral:
        lines.append("max F-beta of the bilateral solver is that of its values, not of its mask")
    if uncut:
        lines.append(
            f"{uncut:,} of {count(images, 'image')} could not be cut, since all of their patches "
            "are joined, or none: there the mask is the whole image. The mean cosine of two "
            f"patches is {cosine:.2f}; a config.threshold near it tells more of them apart"
        )
    return "\n".join(lines)


def _figures(found: Cuts, names: list[str]) -> dict[str, Figure]:
    iou = dict(zip(found.numbers["index"].tolist(), found.numbers["iou"], strict=True))
    shown = [index for index in found.panels if index in iou]
    if not shown:
        return {}
    figure = draw_saliency(
        np.stack([found.panels[index] for index in shown]),
        [["", "", *(f"IoU {value:.0%}" for value in iou[index]), ""] for index in shown],
        found.mean,
        [*(_LABELS[name] for name in names), "Truth"],
        "eigenvectors are signed so that the object is bright; the last row is over all images, "
        "squeezed into a square",
    )
    return {"saliency.png": figure}


def _compared(found: dict[str, dict[str, Any]]):
    scores_of = {label: of["masks"]["tokencut"] for label, of in found.items()}
    images = base.counted_images(found.values())
    note = f"masks of TokenCut; bars: one standard error over {images}"
    return {"saliency_scores.png": draw_scores(scores_of, note)}


TASK = Task(check, run, FIELDS, compare=_compared)
