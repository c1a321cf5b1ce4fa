"""All figures that a run can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppmask_jax.figures import colours, run_masks
from dppmask_jax.figures.attention import attention_figure
from dppmask_jax.figures.masks import mask_figure
from dppmask_jax.figures.panels import save
from dppmask_jax.figures.restored import restored_figure
from dppmask_jax.figures.soft_masks import soft_mask_figure, training_figure
from dppmask_jax.figures.tau import tau_figure
from dppmask_jax.runs import soft_masks

_FOLLOWED = 2  # images whose soft masks are drawn over training


def write_run_figures(
    out_dir: str | Path,
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    borrow_statistics: bool = False,
    workdir: str | Path | None = None,
) -> list[Path]:
    """Draws what a run's method can show: masks.png, tau.png, restored.png, adios_masks.png,
    adios_masks_over_training.png, attention.png.

    Args:
      out_dir: folder for the figures; made where it is missing.
      run: a `runs.run.Run`.
      images: (R, H, W, C) of the run's image size, as they are loaded.
      seed: of the masks; each image gets its own noise, the same in all figures.
      borrow_statistics: see `runs.run.Run.reconstruct`.
      workdir: where the run's earlier checkpoints are; None: they are not looked for.

    Returns:
      The paths of the figures, in this order.
    """
    figures, show = {}, colours.look(run.pixels, images)
    if run.has_masks:
        figures["masks.png"] = mask_figure(run, images, seed, borrow_statistics=borrow_statistics)
        if run_masks.has_tau(run):
            figures["tau.png"] = tau_figure(run, images, seed)
    if run.can_restore:
        figures["restored.png"] = restored_figure(run, images, seed)
    if soft_masks.has_some(run):
        figures["adios_masks.png"] = soft_mask_figure(show(images), soft_masks.of(run, images))
        drawn = {} if workdir is None else soft_masks.over_training(workdir, images[:_FOLLOWED])
        if len(drawn) > 1:
            figures["adios_masks_over_training.png"] = training_figure(
                show(images[:_FOLLOWED]), drawn
            )
    if run.has_attention:
        figures["attention.png"] = attention_figure(run, images, seed)
    return [save(figure, out_dir, name) for name, figure in figures.items()]
