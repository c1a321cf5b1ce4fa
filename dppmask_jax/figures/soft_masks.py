"""adios_masks.png: some images, the soft masks that a trained network draws over each, and what is
left of it under each mask; adios_masks_over_training.png: the masks of the kept checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax.figures.panels import SMALL_PANEL, check_rows, compose, enlarge, heat, panel_scale
from dppmask_jax.imagenet import MEAN


def soft_mask_figure(images: np.ndarray, masks: np.ndarray) -> Figure:
    """Two rows an image: the original and its masks, and what each mask leaves.

    Args:
      images: (R, H, W, 3) uint8.
      masks: (R, N, H, W) from 0, visible, to 1, hidden; they add up to 1.

    Raises:
      ValueError: there is no image, or the masks are of other images.
    """
    check_rows(len(images), masks=masks)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    panels, captions = [], []
    for image, of_image in zip(images, masks, strict=True):
        left = enlarge(image, scale)
        panels.append([left, *(enlarge(heat(mask), scale) for mask in of_image)])
        captions.append(["", *(f"hides {mask.mean():.0%}" for mask in of_image)])
        panels.append(
            [np.full_like(left, 255), *(enlarge(occluded(image, mask), scale) for mask in of_image)]
        )
        captions.append([""] * (1 + len(of_image)))
    titles = ["Original", *(f"Mask {n}" for n in range(masks.shape[1]))]
    return compose(panels, titles, captions, _legend(), fill=True)


def training_figure(images: np.ndarray, drawn: Mapping[int, np.ndarray]) -> Figure:
    """A row a checkpoint, for one image after the other: the original and its masks.

    Args:
      images: (R, H, W, 3) uint8.
      drawn: {step: (R, N, H, W) masks}, at least one.

    Raises:
      ValueError: as for `soft_mask_figure`.
    """
    for masks in drawn.values():
        check_rows(len(images), masks=masks)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    panels, captions = [], []
    for row, image in enumerate(images):
        for step, masks in drawn.items():
            of_image = masks[row]
            panels.append(
                [enlarge(image, scale), *(enlarge(heat(mask), scale) for mask in of_image)]
            )
            captions.append([f"step {step}", *(f"hides {mask.mean():.0%}" for mask in of_image)])
    number = next(iter(drawn.values())).shape[1]
    titles = ["Original", *(f"Mask {n}" for n in range(number))]
    return compose(panels, titles, captions, _legend(), fill=True)


def occluded(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: what the encoder sees, towards ImageNet's mean colour where the mask (H, W)
    hides."""
    mean = 255 * np.asarray(MEAN, np.float32)
    shown = mean + (image - mean) * (1.0 - mask[..., None])
    return np.round(np.clip(shown, 0, 255)).astype(np.uint8)


def _legend() -> list[tuple[tuple[int, int, int], str]]:
    colors = [tuple(map(int, color)) for color in heat(np.array([0.0, 0.5, 1.0]))]
    return list(zip(colors, ("visible", "half hidden", "hidden"), strict=True))
