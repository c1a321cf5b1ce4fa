"""saliency.png: objects that TokenCut finds, beside the true ones; and how far several runs agree
with the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dppmask_jax.figures.axes import LINES, plain_axes, share_limits
from dppmask_jax.figures.panels import DPI, INK, SMALL_PANEL, check_rows, compose, heat

SIDE = SMALL_PANEL  # pixels of a panel
_DIM = 0.25  # brightness outside of a mask
_PAPER = 255


class Found(NamedTuple):
    """An image and what was found in it.

    Attributes:
      image: (H, W, 3) uint8.
      eigenvector: (rows, columns) float, larger on the object.
      masks: (…) of bool, over the whole image; the last is the truth.
    """

    image: np.ndarray
    eigenvector: np.ndarray
    masks: tuple[np.ndarray, ...]


def panels_of(found: Found) -> np.ndarray:
    """(2 + masks, SIDE, SIDE, 3) uint8: image, eigenvector and masks in the shape of the truth,
    with paper at the sides."""
    height, width = found.masks[-1].shape
    image = _fitted(found.image, height, width, Image.Resampling.LANCZOS)
    colours = _fitted(heat(from_0_to_1(found.eigenvector)), height, width)
    masks = (_fitted(mask.astype(np.uint8), height, width) for mask in found.masks)
    masked = [np.where(mask[..., None] > 0, image, _grey(image)) for mask in masks]
    return np.stack([_on_paper(panel) for panel in (image, colours, *masked)])


def draw_saliency(
    rows: np.ndarray,
    captions: Sequence[Sequence[str]],
    mean: Found,
    titles: Sequence[str],
    note: str = "",
) -> Figure:
    """One row an image, and a last one with the means over all images.

    Args:
      rows: (R, columns, SIDE, SIDE, 3) uint8, of `panels_of`.
      captions: below them, R times one a column.
      mean: the mean image, squeezed into a square; of the eigenvectors, each from 0 to 1; and of
        the masks, floats from 0 to 1.
      titles: of the masks, the truth last.
      note: stands below.
    """
    check_rows(len(rows), captions=captions)
    square = (_fitted(mean.image, SIDE, SIDE, Image.Resampling.LANCZOS),)
    maps = (_fitted(heat(values), SIDE, SIDE) for values in (mean.eigenvector, *mean.masks))
    of_means = ["mean of all", "mean of all", *(f"mean {np.mean(m):.0%}" for m in mean.masks)]
    dark, middle, light = (tuple(map(int, color)) for color in heat(np.array([0.0, 0.5, 1.0])))
    return compose(
        [*rows, [*square, *maps]],
        ["Image", "Eigenvector", *titles],
        [*captions, of_means],
        [
            (dark, "lowest of the image, or 0 % of the images"),
            (middle, "half"),
            (light, "highest, or 100 %"),
        ],
        fill=True,
        note=note,
    )


def draw_scores(scores: Mapping[str, Mapping[str, Mapping[str, float]]], note: str = "") -> Figure:
    """One panel a measure, with a point and a bar of one standard error for each run.

    Args:
      scores: {label of a run: {measure: {"value", "error"}}}, shares from 0 to 1.
      note: stands below.
    """
    measures = list(next(iter(scores.values())))
    height = 1.3 + 0.3 * len(scores)
    figure = Figure(figsize=(2.6 * len(measures) + 1.0, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        plain_axes(axes)
        for place, of_run in enumerate(scores.values()):
            value, error = (100 * of_run[measure][name] for name in ("value", "error"))
            color = LINES[place % len(LINES)]
            axes.errorbar(value, place, xerr=error, color=color, fmt="o", markersize=4, capsize=2)
        found = [of[measure] for of in scores.values()]
        ends = [of["value"] + sign * of["error"] for of in found for sign in (-1, 1)]
        axes.set_xlim(*(100 * end for end in share_limits(ends)))
        axes.set_xlabel(f"{measure} (%)", color=INK, fontsize=9)
    panels[0].set_yticks(range(len(scores)), list(scores))
    panels[0].set_ylim(len(scores) - 0.5, -0.5)
    if note:
        figure.supxlabel(note, fontsize=8, color=INK)
    return figure


def from_0_to_1(values: np.ndarray) -> np.ndarray:
    """Values shifted and scaled so that they go from 0 to 1; zeros where they are all the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _grey(image: np.ndarray) -> np.ndarray:
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((34 + _DIM * grey).astype(np.uint8)[..., None], 3, axis=2)


def _fitted(
    pixels: np.ndarray, height: int, width: int, resample=Image.Resampling.NEAREST
) -> np.ndarray:
    """Pixels (h, w) or (h, w, 3), uint8, as large as a panel allows in the shape height x width."""
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, resample))


def _on_paper(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    panel = np.full((SIDE, SIDE, 3), _PAPER, np.uint8)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    panel[top : top + height, left : left + width] = pixels
    return panel
