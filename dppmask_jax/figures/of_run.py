"""All figures that a run can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dppmask_jax.figures.attention import write_attention_figure
from dppmask_jax.figures.masks import write_mask_figure
from dppmask_jax.figures.tau import write_tau_figure


def write_run_figures(
    out_dir: str | Path,
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    borrow_statistics: bool = False,
) -> list[Path]:
    """Draws what a run's method can show: masks.png, tau.png, attention.png.

    Args:
      out_dir: folder for the figures; made where it is missing.
      run: a `run.Run`.
      images: (R, H, W, 3) uint8 of the run's image size.
      seed: of the masks; each image gets its own noise, the same in all figures.
      borrow_statistics: see `run.Run.reconstruct`.

    Returns:
      The paths of the figures, in this order.
    """
    paths = [
        write_mask_figure(out_dir, run, images, seed, borrow_statistics=borrow_statistics),
        write_tau_figure(out_dir, run, images, seed),
    ]
    if run.has_attention:
        paths.append(write_attention_figure(out_dir, run, images, seed))
    return paths
