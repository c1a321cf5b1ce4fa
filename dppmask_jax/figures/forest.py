"""A forest plot: differences to a base with their intervals, a row each."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dppmask_jax.figures.panels import DPI, FAINT, INK

COLORS = {
    "better": "#009e73",
    "worse": "#d55e00",
    "higher": "#0072b2",
    "lower": "#cc79a7",
    "": FAINT,
}
_NONE = "cannot be told from none"
_LINES = {
    "thick": {"linewidth": 3.6, "alpha": 0.45, "solid_capstyle": "butt"},
    "thin": {"linewidth": 1.1},
    "dotted": {"linewidth": 1.1, "linestyle": (0, (1, 1.4))},
}
_COLUMNS = 3  # of panels
_ROW, _WIDTH, _AROUND = 0.25, 2.7, 1.05  # inches: of a row, of a panel, of title and axis
_LETTER = 0.075  # inches, of a label, about
_LETTERS_OF_LABEL = 34


class Row(NamedTuple):
    """A difference.

    Attributes:
      label: of what is compared with the base.
      mean: None where nothing was measured: the row is empty.
      thick: ends of the interval that the verdict is of, or None.
      thin: ends of one that is drawn over it, or None.
      dotted: ends of one that stands for them where a row has no verdict, or None.
      verdict: a key of `COLORS`.
    """

    label: str
    mean: float | None = None
    thick: tuple[float, float] | None = None
    thin: tuple[float, float] | None = None
    dotted: tuple[float, float] | None = None
    verdict: str = ""


class Panel(NamedTuple):
    """The differences of one measure; all panels of a figure have the same labels in the same
    order. `unit` is what the axis counts."""

    title: str
    rows: Sequence[Row]
    unit: str


def draw_forest(panels: Sequence[Panel], intervals: Mapping[str, str], note: str = "") -> Figure:
    """Panels, three side by side, with a row each label and a line at 0.

    Args:
      intervals: {"thick", "thin", "dotted": what the interval is}, for the legend.
      note: what to know to read it; stands below.

    Raises:
      ValueError: there is no row, or the labels of panels differ.
    """
    labels = [row.label for row in panels[0].rows] if panels else []
    if not labels:
        raise ValueError("no difference to draw")
    if any([row.label for row in panel.rows] != labels for panel in panels):
        raise ValueError("the panels of a forest plot have different rows")
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    wrapped = [textwrap.fill(label, _LETTERS_OF_LABEL) for label in labels]
    longest = max(len(line) for label in wrapped for line in label.split("\n"))
    lines = sum(label.count("\n") + 1 for label in wrapped)
    size = (_WIDTH * columns + _LETTER * longest, rows * (_ROW * (lines + 1) + _AROUND) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    all_axes = list(grid.flat)
    for panel, axes in zip(panels, all_axes, strict=False):
        _draw_panel(axes, panel)
    all_axes[0].set_yticks(range(len(labels)), wrapped)
    all_axes[0].set_ylim(len(labels) - 0.4, -0.6)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    figure.legend(
        handles=_legend(panels, intervals),
        loc="outside upper center",
        ncols=max(1, int(size[0] / 2.4)),
        fontsize=8,
        frameon=False,
    )
    if note:
        figure.supxlabel(textwrap.fill(note, int(size[0] * 15)), fontsize=8, color=FAINT)
    return figure


def _draw_panel(axes, panel: Panel) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, row in enumerate(panel.rows):
        if row.mean is None:
            continue
        color = COLORS[row.verdict]
        for name, look in _LINES.items():
            if (ends := getattr(row, name)) is not None:
                axes.plot(ends, (place, place), color=color, **look)
        face = "white" if row.thick is None else color
        axes.plot(row.mean, place, "o", markersize=4.5, color=color, markerfacecolor=face)
    axes.set_title(textwrap.fill(panel.title, 32), fontsize=9.5, color=INK)
    axes.set_xlabel(panel.unit, fontsize=8.5, color=INK)
    axes.tick_params(labelsize=8.5, colors=FAINT, labelcolor=INK)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#aaaaaa")


def _legend(panels: Sequence[Panel], intervals: Mapping[str, str]) -> list[Line2D]:
    """The intervals and colours that occur."""
    rows = [row for panel in panels for row in panel.rows if row.mean is not None]
    handles = [
        Line2D([], [], color=FAINT, label=intervals[name], **look)
        for name, look in _LINES.items()
        if any(getattr(row, name) is not None for row in rows)
    ]
    for verdict, color in COLORS.items():
        if any(row.verdict == verdict and row.thick is not None for row in rows):
            dot = Line2D([], [], color=color, marker="o", linestyle="", markersize=4.5)
            dot.set_label(verdict or _NONE)
            handles.append(dot)
    if any(row.thick is None for row in rows):
        dot = Line2D([], [], color=FAINT, marker="o", linestyle="", markersize=4.5)
        dot.set(markerfacecolor="white", label="no verdict")
        handles.append(dot)
    return handles
