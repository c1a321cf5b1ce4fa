"""The soft masks that a run's network draws, and drew when its kept checkpoints were saved."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.image_sizes import checked_images
from dppmask_jax.runs.run import Run, load_run


def has_some(run: Run) -> bool:
    """Whether the run's method trains a network that draws them."""
    return run.method.soft_masks is not None


def of(run: Run, images) -> np.ndarray:
    """(R, masks, H, W) float32 of images (R, H, W, C), see `Method.soft_masks`."""
    draw = jax.jit(run.method.soft_masks)
    return np.asarray(
        draw(run.params, run.extra, checked_images(images, run.image_size, run.pixels))
    )


def over_training(workdir: str | Path, images) -> dict[int, np.ndarray]:
    """{step: `of`} of the kept checkpoints of a run that are whole, the oldest first."""
    steps = checkpoint.whole_steps(workdir)
    if not steps:
        return {}
    # One program draws for all: what a run may change on its way is no part of the network.
    run = load_run(workdir, step=steps[-1], image_size=tuple(np.shape(images)[1:3]))
    draw, shown = jax.jit(run.method.soft_masks), checked_images(images, run.image_size, run.pixels)
    drawn = {}
    for step in steps:
        _, state, _ = checkpoint.read(workdir, step)
        drawn[step] = np.asarray(draw(state["params"], state.get("extra", {}), shown))
    return drawn
