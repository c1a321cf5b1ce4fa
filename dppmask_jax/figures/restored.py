"""restored.png: some images, what was made of them for the encoder, and what the model makes of
that."""

from __future__ import annotations

import jax
import numpy as np
from matplotlib.figure import Figure

from dppmask_jax import patches
from dppmask_jax.figures import colours
from dppmask_jax.figures.panels import PANEL, compose, enlarge, mask_panel, panel_scale


def restored_figure(run, images: np.ndarray, seed: int = 0) -> Figure:
    """One row an image: original, corrupted, restored; hidden patches of the second are dimmed.

    Args:
      run, images, seed: see `of_run.write_run_figures`; the run's method undoes a corruption.
    """
    corrupted = run.corrupted(images, seed)
    scale, show = panel_scale(images.shape[2], PANEL), colours.look(run.pixels, images)
    shown, originals = show(corrupted), show(images)
    patch_size = run.config.model.patch_size
    rows, columns = patches.grid_shape(run.image_size, patch_size)
    if run.has_masks:
        keys = jax.random.split(jax.random.key(seed), len(images))
        mask, _ = jax.device_get(run.masks(images, keys))
        order, hidden = mask.kept, mask.hidden
        thrown = np.zeros_like(hidden) if mask.thrown is None else mask.thrown
    else:
        order = np.tile(np.arange(rows * columns, dtype=np.int32), (len(images), 1))
        hidden = thrown = np.zeros(order.shape, bool)
    restored = show(run.restored(corrupted, order))
    panels, captions = [], []
    for row, image in enumerate(originals):
        seen = mask_panel(shown[row], hidden[row], patch_size, [], scale, thrown[row])
        panels.append([enlarge(image, scale), seen, enlarge(restored[row], scale)])
        errors = (_error(one[row], image) for one in (shown, restored))
        captions.append(["", *(f"square error {error:.4f}" for error in errors)])
    return compose(
        panels, ["Original", "Corrupted", "Restored"], captions, [], note=_note(run, len(images))
    )


def _error(found, image) -> float:
    """The mean square error of pixels from 0 to 1."""
    return float(np.mean(np.square((found.astype(np.float32) - image) / 255)))


def _note(run, number: int) -> str:
    """What was done to the images, in words."""
    words = dict(run.method.describe)["corrupted"]
    if run.config.loss.norm_pix:
        words += "; brightness and contrast of patches are the corrupted ones'"
    return words
