"""Maps of tokens in two dimensions, coloured by the class of their image."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dppmask_jax.figures.panels import DPI, INK

_PANELS = 3  # in a row
_LONGEST = 28  # letters of a class in the legend


def draw_tokens(maps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """A panel for each map.

    Args:
      maps: {label: {"points" (M, 2), "class_of" (M,) numbers into "classes", "depth", "blocks"}}.
    """
    columns = min(_PANELS, len(maps))
    rows = -(-len(maps) // columns)
    size = (3.6 * columns, 3.8 * rows + 0.4)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(dict.fromkeys(name for one in maps.values() for name in one["classes"]))
    colors = {name: colormaps["tab10"](number % 10) for number, name in enumerate(names)}
    for axes, (label, one) in zip(panels, maps.items(), strict=False):
        points, class_of = np.asarray(one["points"]), np.asarray(one["class_of"])
        for number, name in enumerate(one["classes"]):
            of_class = points[class_of == number]
            axes.scatter(*of_class.T, s=5, color=colors[name], linewidths=0, label=name)
        axes.set_title(f"{label}, depth {one['depth']} of {one['blocks']}", fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
        for spine in axes.spines.values():
            spine.set_color("#aaaaaa")
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    handles = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(),
        [textwrap.shorten(name, _LONGEST, placeholder="…") for name in handles],
        loc="outside lower center",
        ncols=min(len(handles), 2 * columns),
        fontsize=8,
        frameon=False,
        markerscale=2.5,
    )
    return figure
