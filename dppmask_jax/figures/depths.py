"""Quantities against the depth of an encoder, a line for each encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dppmask_jax.figures.axes import MOST_BESIDE, legend_above, plain_axes, style
from dppmask_jax.figures.panels import DPI, INK

_MOST_MARKED = 40  # numbers of a line with a dot each
_MARK = 3  # points, of that dot
_BROKEN = (":", "--", "-.")
Curve = Mapping[str, Sequence[Any]]


class Panel(NamedTuple):
    """One quantity of several encoders.

    Attributes:
      curves: {label: {"mean": L numbers, "error": L numbers}}, and "parts" where there are any: L
        lists of numbers whose mean is drawn, shown as dots. Depths may differ.
      first: x of the first number; the others follow in steps of 1.
      places: x of all numbers, where these are no steps of 1.
      levels: {what: y} of grey lines to compare with, such as {"uniform attention": 116.5}; each
        is broken in another way.
      from_zero: the axis of y starts there, so that no small difference looks large.
    """

    curves: Mapping[str, Curve]
    ylabel: str
    xlabel: str = "block"
    first: float = 1
    places: Sequence[float] | None = None
    levels: Mapping[str, float] = MappingProxyType({})
    from_zero: bool = False


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
    """One panel, see `Panel` and `draw_panels`."""
    return draw_panels([Panel(curves, ylabel, xlabel, first, places, levels or {})], note=note)


def draw_panels(panels: Sequence[Panel], *, note: str = "") -> Figure:
    """Panels, two in a row, with a line and a band of one standard error for each encoder, whose
    labels stand in the first, or above all where there are many. An encoder looks alike in all
    panels, also where some lack it.

    Args:
      note: what to know to read them; stands below.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (5.2, 3.6) if len(panels) == 1 else (4.6 * columns, 3.3 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    labels = dict.fromkeys(label for panel in panels for label in panel.curves)
    looks = {label: style(i) for i, label in enumerate(labels)}
    encoders = [Line2D([], [], **look, ms=_MARK, label=label) for label, look in looks.items()]
    if len(encoders) > MOST_BESIDE:
        legend_above(figure, encoders)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        plain_axes(axes)
        _draw(axes, panel, looks)
        handles = axes.get_legend_handles_labels()[0]  # of the levels
        if place == 0 and len(encoders) <= MOST_BESIDE:
            handles = encoders + handles
        if len(handles) > 1 or panel.levels:
            axes.legend(handles=handles, fontsize=8, frameon=False)
    if note:
        figure.supxlabel(note, fontsize=8, color=INK)
    return figure


def _draw(axes, panel: Panel, looks: Mapping[str, Mapping[str, str]]) -> None:
    for label, curve in panel.curves.items():
        mean, error = (np.asarray(curve[name], float) for name in ("mean", "error"))  # null: nan
        x = panel.first + np.arange(len(mean)) if panel.places is None else panel.places
        color = looks[label]["color"]
        marked = {"marker": ""} if len(mean) > _MOST_MARKED else {}
        axes.plot(x, mean, **{**looks[label], **marked}, markersize=_MARK)
        axes.fill_between(x, mean - error, mean + error, color=color, alpha=0.25, linewidth=0)
        if "parts" in curve:
            axes.plot(x, curve["parts"], color=color, linestyle="", marker=".", ms=3, alpha=0.35)
    for i, (what, y) in enumerate(panel.levels.items()):
        broken = _BROKEN[i % len(_BROKEN)]
        axes.axhline(y, color="#888888", linestyle=broken, linewidth=1, label=what)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if panel.places is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(panel.xlabel, color=INK, fontsize=9)
    axes.set_ylabel(panel.ylabel, color=INK, fontsize=9)
