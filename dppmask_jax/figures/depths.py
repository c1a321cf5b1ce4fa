"""A quantity against the depth of an encoder, a line for each encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dppmask_jax.figures.axes import LINES, plain_axes
from dppmask_jax.figures.panels import DPI, INK

Curve = Mapping[str, Sequence[float]]


def draw_depths(
    curves: Mapping[str, Curve],
    ylabel: str,
    *,
    xlabel: str = "block",
    first: float = 1,
    places: Sequence[float] | None = None,
    levels: Mapping[str, float] | None = None,
    note: str = "",
) -> Figure:
    """One panel with a line and a band of one standard error for each encoder.

    Args:
      curves: {label: {"mean": L numbers, "error": L numbers}}; depths may differ.
      first: x of the first number; the others follow in steps of 1.
      places: x of all numbers, where these are no steps of 1.
      levels: {what: y} of dotted lines to compare with, such as {"uniform attention": 116.5}.
      note: what to know to read it; stands below.
    """
    figure = Figure(figsize=(5.2, 3.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain_axes(axes)
    for i, (label, curve) in enumerate(curves.items()):
        mean, error = np.asarray(curve["mean"]), np.asarray(curve["error"])
        x, color = first + np.arange(len(mean)), LINES[i % len(LINES)]
        x = x if places is None else places
        axes.plot(x, mean, color=color, label=label, marker="o", markersize=3)
        axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
    for what, y in (levels or {}).items():
        axes.axhline(y, color="#888888", linestyle=":", linewidth=1, label=what)
    if places is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    if len(curves) + len(levels or {}) > 1:
        axes.legend(fontsize=8, frameon=False)
    if note:
        figure.supxlabel(note, fontsize=8, color=INK)
    return figure
