"""Components of patch tokens: how semantic-invariant each is, and where it responds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from dppmask_jax import patches
from dppmask_jax.figures.axes import LINES
from dppmask_jax.figures.depths import Curve, draw_depths
from dppmask_jax.figures.panels import (
    SMALL_PANEL,
    check_rows,
    compose,
    enlarge,
    heat,
    panel_scale,
)

_POINTS = 40  # of a curve over hundreds of components


class Component(NamedTuple):
    """A component to draw; (N,) each.

    Attributes:
      title: of its row.
      real, synthetic: share of images that respond above 0.
      mean_real, mean_synthetic: the mean response.
    """

    title: str
    real: np.ndarray
    synthetic: np.ndarray
    mean_real: np.ndarray
    mean_synthetic: np.ndarray


def draw_scores(curves: Mapping[str, Curve], levels: Mapping[str, float], note: str) -> Figure:
    """The scores of components in descending order, a line for each encoder.

    Args:
      curves: {label: {"mean": D scores, "error": D numbers}}, descending; of encoders of different
        width as many are drawn as the narrowest has.
      levels, note: see `depths.draw_depths`.
    """
    width = min(len(curve["mean"]) for curve in curves.values())
    ranks = np.unique(np.geomspace(1, width, _POINTS).round().astype(int))
    shown = {
        label: {name: np.asarray(values)[ranks - 1].tolist() for name, values in curve.items()}
        for label, curve in curves.items()
    }
    figure = draw_depths(
        shown,
        "semantic-invariance score (SI), 0 to 1",
        xlabel="component, by SI in descending order",
        places=ranks,
        levels=levels,
        note=note,
    )
    (axes,) = figure.axes
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return figure


def draw_by_depth(
    curves: Mapping[str, Curve], after_norm: Mapping[str, float], levels: Mapping[str, float]
) -> Figure:
    """The highest score at each depth, and a star for that after the final norm.

    Args:
      curves: {label: {"mean", "error"}} of depths 0 (the embedding) to L.
      after_norm: {label: score} at depth L.
    """
    figure = draw_depths(
        curves,
        "highest semantic-invariance score (SI), 0 to 1",
        xlabel="block; 0 is the embedding",
        first=0,
        levels=levels,
        note="star: after the final norm; band: one standard error over images",
    )
    (axes,) = figure.axes
    for i, (label, curve) in enumerate(curves.items()):
        x, color = len(curve["mean"]) - 1, LINES[i % len(LINES)]
        axes.plot([x], [after_norm[label]], marker="*", markersize=11, color=color, linestyle="")
    return figure


def draw_maps(components: Sequence[Component], grid: tuple[int, int]) -> Figure:
    """One row a component: how often and how strongly each position responds, on real and on
    synthetic images.

    Both mean responses of a component have one scale, whose end stands below them.
    """
    side = max(1, round(SMALL_PANEL / grid[1]))
    panels, captions = [], []
    for one in components:
        most = max(np.abs(one.mean_real).max(), np.abs(one.mean_synthetic).max())
        probabilities = [_probability(p, grid, side) for p in (one.real, one.synthetic)]
        means = [signed_panel(m, most, grid, side) for m in (one.mean_real, one.mean_synthetic)]
        panels.append([*probabilities, *means])
        captions.append([one.title, "", f"from -{most:.2g} to {most:.2g}", ""])
    titles = [
        "Share above 0,\nreal images",
        "Share above 0,\nsynthetic images",
        "Mean response,\nreal images",
        "Mean response,\nsynthetic images",
    ]
    legend = [
        *_legend(heat, {0.0: "no image", 0.5: "one half", 1.0: "all images"}),
        *_legend(_signed, {-1.0: "below 0", 0.0: "0", 1.0: "above 0"}),
    ]
    return compose(
        panels,
        titles,
        captions,
        legend,
        fill=True,
        note="response: of a patch token along the component, less the mean of real tokens; "
        "signs are arbitrary",
    )


def draw_responses(
    images: np.ndarray,
    responses: np.ndarray,
    titles: Sequence[str],
    patch_size: patches.PatchSize,
    note: str,
) -> Figure:
    """One row an image: the image, and how each of its patches responds to each component.

    Args:
      images: (R, H, W, 3) uint8.
      responses: (R, N, K); each of the K components has one scale over all images.
      titles: K of them.
      patch_size: in pixels.
      note: stands below.
    """
    check_rows(len(images), responses=responses)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    height, width = (side * scale for side in patches.sides(patch_size))
    most = np.abs(responses).max(axis=(0, 1))
    panels = [
        [
            enlarge(image, scale),
            *(signed_panel(row[:, k], most[k], grid, (height, width)) for k in range(len(titles))),
        ]
        for image, row in zip(images, responses, strict=True)
    ]
    legend = _legend(_signed, {-1.0: "below the mean", 0.0: "the mean", 1.0: "above the mean"})
    return compose(panels, ["Original", *titles], None, legend, fill=True, note=note)


def signed_panel(
    values: np.ndarray, most: float, grid: tuple[int, int], patch_size: patches.PatchSize
) -> np.ndarray:
    """A map of values (N,) of either sign, each patch in one colour: blue is -most, red most."""
    height, width = patches.sides(patch_size)
    colors = _signed(np.asarray(values, np.float64).reshape(grid) / (most or 1.0))
    return colors.repeat(height, axis=0).repeat(width, axis=1)


def _probability(values, grid, side: int) -> np.ndarray:
    height, width = patches.sides(side)
    return heat(np.asarray(values).reshape(grid)).repeat(height, axis=0).repeat(width, axis=1)


def _signed(levels: np.ndarray) -> np.ndarray:
    """Levels in [-1, 1] -> uint8 colours from blue over white to red; (..., 3)."""
    return colormaps["RdBu_r"]((levels + 1) / 2, bytes=True)[..., :3]


def _legend(colors: Callable, words: Mapping[float, str]) -> list[tuple]:
    found = colors(np.array(list(words)))
    return [(tuple(map(int, c)), text) for c, text in zip(found, words.values(), strict=True)]
