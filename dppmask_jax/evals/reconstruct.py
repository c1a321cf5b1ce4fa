"""Originals and reconstructions side by side (DPPMask, arXiv 2303.12736, figure 6)."""

from __future__ import annotations

from dppmask_jax import paths, pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base
from dppmask_jax.evals.base import Evaluation, Result, Task
from dppmask_jax.fields import FLAG, TEXT, Field, number, optional, whole
from dppmask_jax.figures import masks
from dppmask_jax.figures.images import read_images
from dppmask_jax.masking import own
from dppmask_jax.runs.kinds import ENCODER

_NAME = "reconstruct.png"

FIELDS = {
    **base.COMMON_FIELDS,
    "seed": Field(0, whole(0), "of the masks"),
    "images": Field(
        "",
        TEXT,
        "files or folders, separated by commas; '' is the run's validation split. A comma in the "
        "name of one that exists separates nothing",
    ),
    "num": Field(6, whole(1, 64), "images that are shown"),
    "tau": Field(
        None, optional(number(0, 1)), "of the DPP masks; None is the run's (paper, figure 6: 0.8)"
    ),
    "borrow_statistics": Field(
        False,
        FLAG,
        "with the true brightness and contrast of each hidden patch, which no model could know, "
        "instead of estimates from visible ones (loss.norm_pix only)",
    ),
}


def check(evaluation: Evaluation) -> None:
    """Raises InputError unless the run can reconstruct and the images are there."""
    run = evaluation.run
    if not run.can_reconstruct:
        what = "an encoder alone" if run.kind == ENCODER else f"{run.name} run"
        raise InputError(f"{what} reconstructs no pixels; give --checkpoint an MAE run")
    own.check(run.config.mask)
    _images(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Draws figures/reconstruct.png: random and DPP masks from the same noise."""
    config, run = evaluation.config, evaluation.run
    images = _images(evaluation)
    path = evaluation.folder / "figures" / _NAME
    figure = masks.mask_figure(
        run, images, config.seed, tau=config.tau, borrow_statistics=config.borrow_statistics
    )
    labels = [way.masker.label for way in masks.compared(run, config.tau)]
    how = masks.brightness(run, config.borrow_statistics)
    return Result(
        {"figure": str(path), "images": len(images)},
        [("figure", "images"), (str(path), str(len(images)))],
        f"masks: {', '.join(labels)}, from the same noise, seed {config.seed}; hidden patches are "
        "predicted" + (f", {how}" if how else ""),
        figures={_NAME: figure},
    )


def _images(evaluation: Evaluation):
    config = evaluation.config
    if not config.images:
        try:
            return evaluation.run.example_images(config.num)
        except InputError as error:
            raise InputError(
                f"the run's own images: {error}; or name others: --config.images=PATH"
            ) from error
    return read_images(
        paths.split(config.images),
        tuple(config.image_size),
        config.num,
        pixel_format.named_range(evaluation.run.config.data.range),
        evaluation.run.pixels,
    )


TASK = Task(
    check,
    run,
    FIELDS,
    unswept=lambda config: "task reconstruct gives no number; choose another task",
    unprojected=lambda config: "a decoder takes the tokens as they are",
)
