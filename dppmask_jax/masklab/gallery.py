"""gallery.png: the same four photographs under every mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax.figures.panels import SMALL_PANEL, compose, enlarge, mask_panel, panel_scale
from dppmask_jax.masking import Mask
from dppmask_jax.patches import PatchSize

PHOTOGRAPHS = 4
_ACROSS = 6  # panels in a row
_THROWN = (255, 66, 54)


def draw_gallery(
    images: np.ndarray, masks: Mapping[str, Mask], patch_size: PatchSize, note: str
) -> Figure:
    """A panel a mask with all photographs in it, two in a row, the unmasked ones first.

    Args:
      images: (R, H, W, 3) uint8, at most four.
      masks: {label: Mask of (R, ...) NumPy arrays}.
      patch_size: of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution.
    """
    scale = panel_scale(2 * images.shape[2], SMALL_PANEL)
    panels = {"unmasked": _two_in_a_row([enlarge(image, scale) for image in images])}
    thrown_away = False
    for label, mask in masks.items():
        thrown = np.zeros_like(mask.mask) if mask.thrown is None else np.asarray(mask.thrown)
        thrown_away |= bool(thrown.any())
        panels[label] = _two_in_a_row(
            [
                mask_panel(image, hidden, patch_size, [(_THROWN, away)], scale)
                for image, hidden, away in zip(images, mask.hidden, thrown, strict=True)
            ]
        )
    across = min(_ACROSS, len(panels))
    blank = np.full_like(panels["unmasked"], 255)
    filled = [*panels.items(), *[("", blank)] * (-len(panels) % across)]
    lines = [filled[start : start + across] for start in range(0, len(filled), across)]
    return compose(
        [[panel for _, panel in line] for line in lines],
        [""] * across,
        [[label for label, _ in line] for line in lines],
        [(_THROWN, "thrown away: neither seen nor predicted")] if thrown_away else [],
        note=note,
    )


def _two_in_a_row(images: list[np.ndarray]) -> np.ndarray:
    """One picture of up to four, with white lines between them."""
    height, width, _ = images[0].shape
    gap = max(2, round(0.02 * width))
    across = min(2, len(images))
    down = -(-len(images) // across)
    canvas = np.full((down * (height + gap) - gap, across * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, across)
        y, x = row * (height + gap), column * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas
