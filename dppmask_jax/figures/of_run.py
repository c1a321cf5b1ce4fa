"""All figures that a run can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppmask_jax.figures import run_masks
from dppmask_jax.figures.attention import attention_figure
from dppmask_jax.figures.masks import mask_figure
from dppmask_jax.figures.panels import save
from dppmask_jax.figures.restored import restored_figure
from dppmask_jax.figures.tau import tau_figure


def write_run_figures(
    out_dir: str | Path,
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    borrow_statistics: bool = False,
) -> list[Path]:
    """Draws what a run's method can show: masks.png, tau.png, restored.png,
    attention.png.

    Args:
      out_dir: folder for the figures; made where it is missing.
      run: a `runs.run.Run`.
      images: (R, H, W, 3) uint8 of the run's image size.
      seed: of the masks; each image gets its own noise, the same in all figures.
      borrow_statistics: see `runs.run.Run.reconstruct`.

    Returns:
      The paths of the figures, in this order.
    """
    figures = {}
    if run.has_masks:
        figures["masks.png"] = mask_figure(run, images, seed, borrow_statistics=borrow_statistics)
        if run_masks.has_tau(run):
            figures["tau.png"] = tau_figure(run, images, seed)
    if run.can_restore:
        figures["restored.png"] = restored_figure(run, images, seed)
    if run.has_attention:
        figures["attention.png"] = attention_figure(run, images, seed)
    return [save(figure, out_dir, name) for name, figure in figures.items()]
