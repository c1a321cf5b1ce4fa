"""task=hidden: how often the masks of a run hide a whole object, which DPPMask's are to prevent
(arXiv 2303.12736, section 3)."""

from __future__ import annotations

import jax
import numpy as np

from dppmask_jax import masking, parallel
from dppmask_jax.analyses import base
from dppmask_jax.data.sources.base import first_extras
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import Evaluation, Result, Score, Task, batches, percent
from dppmask_jax.fields import Field, number, whole
from dppmask_jax.masking.base import needs_in_words
from dppmask_jax.scores import coverage
from dppmask_jax.scores.uncertainty import error_of_mean

FIELDS = {
    **base.FIELDS,
    "seed": Field(0, whole(0), "of the masks"),
    "draws": Field(4, whole(1, 1000), "masks of each image"),
    "foreground": Field(255, whole(1, 255), "grey value from which a pixel is foreground"),
    "almost": Field(
        0.25,
        number(0, 1),
        "part of its fair share of the visible patches below which an object is almost hidden",
    ),
}
_WORDS = {
    "none": "no patch of the object visible",
    "almost": "almost none visible",
    "kept": "part of the object that is visible",
    "on_object": "part of the visible patches on the object",
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where the images have no foreground masks, or the method masks nothing."""
    config, run = evaluation.config, evaluation.run
    if run is not None and not run.has_masks:
        raise NotServed(f"task hidden needs masks of patches, and {run.name} run draws none")
    first_extras(base.split_of(evaluation), ("mask",), f"config.data.source={config.data.source}")


def run(evaluation: Evaluation) -> Result:
    """Draws masks as the run has them at its end, and looks for the objects under them.

    The foreground of an image is its object; images without any are left out, and so are masks that
    need what comes with the training images alone.
    """
    config, masker = evaluation.config, evaluation.run.method.masker
    words = f"masks by {masker.label}, as at the end of the run"
    if lacking := masker.needs & masking.WITH_IMAGES:
        because = f"they need {needs_in_words(lacking)}, which come with the training images"
        return Result({}, [("measure", "value")], f"{words}: not measured, {because}")
    found = _measured(evaluation)
    means = {name: float(values.mean()) for name, values in found.items()}
    errors = {name: error_of_mean(values) for name, values in found.items()}
    random = means.pop("random")
    rows = [("measure", "value")]
    rows += [(_WORDS[name], percent(means[name], errors[name])) for name in means]
    rows.append((f"{_WORDS['none']}, random masks", percent(random)))
    count = len(found["none"])
    return Result(
        {**means, "random": random},
        rows,
        f"{words}; {config.draws} of each of {count:,} images with a foreground",
        Score(_WORDS["none"], means["none"], None, errors["none"], images=count),
        "± is the standard error over the images; random masks: in expectation, of as many patches",
        {_WORDS[name]: percent(means[name], errors[name]) for name in means},
        {"random masks": random},
    )


def _measured(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """{measure: (M,) mean over the draws}; "random": what "none" is in expectation of random masks
    that show as many patches."""
    config, run = evaluation.config, evaluation.run
    source, rows = base.split_of(evaluation), base.chosen(evaluation)
    found: dict[str, list[np.ndarray]] = {}
    for batch in batches(evaluation, source, "images", rows, ("mask",)):
        foreground = batch["mask"] >= config.foreground
        there = batch["valid"] & foreground.any(axis=(1, 2))
        foreground[~there] = True  # so that every row has an object; these are left out below
        objects = coverage.object_patches(foreground, run.config.model.patch_size)
        draws = []
        for draw in range(config.draws):
            mask, _ = run.masks(batch["image"], _keys(config.seed, draw, batch["index"]))
            visible = ~np.asarray(mask.hidden)
            of_draw = coverage.coverage(visible, objects, config.almost)
            draws.append(of_draw | {"random": _of_random(visible, objects, config.almost)})
        means = {name: np.mean([draw[name] for draw in draws], axis=0) for name in draws[0]}
        means = parallel.all_rows({**means, "there": there})
        there = means.pop("there")
        for name, values in means.items():
            found.setdefault(name, []).append(values[there])
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    if not len(joined["none"]):
        raise InputError(
            f"config.data.source={config.data.source}: no image has any foreground of "
            f"config.foreground={config.foreground} or more"
        )
    return joined


def _keys(seed: int, draw: int, numbers: np.ndarray):
    key = jax.random.fold_in(jax.random.key(seed), draw)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(np.asarray(numbers, np.uint32))


def _of_random(visible: np.ndarray, objects: np.ndarray, almost: float) -> np.ndarray:
    """(B,) of random masks that show as many patches of each image."""
    shown = visible.sum(axis=1)
    found = np.empty(len(visible))
    for count in np.unique(shown):
        rows = shown == count
        found[rows] = coverage.exact_random(objects[rows], int(count), almost)["none"]
    return found


TASK = Task(check, run, FIELDS, unprojected=lambda config: "masks are not made of its tokens")
