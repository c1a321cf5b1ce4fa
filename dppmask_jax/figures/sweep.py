"""sweep.png: what evaluations found at the points of a grid."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dppmask_jax.figures.axes import LINES, plain_axes, share_limits
from dppmask_jax.figures.panels import DPI, FAINT, INK

_DASHES = ("--", ":", "-.")  # of baselines
_COLUMNS = 2  # of panels


class Panel(NamedTuple):
    """What one evaluation found at the points of a grid.

    Attributes:
      lines: label -> (x, value, its error or None); a value is a share from 0 to 1 where
        `in_percent`, else any number. Where every x is a number, x is an axis of numbers and a line
        joins them; otherwise the values stand side by side in the order in which they come, and
        nothing lies between them.
      y_label: what the value is, in words.
      baselines: label -> (x, value): what the values are to be compared with.
      in_percent: how the axis counts.
    """

    lines: Mapping[str, Sequence[tuple[object, float, float | None]]]
    y_label: str
    baselines: Mapping[str, Sequence[tuple[object, float]]] = MappingProxyType({})
    in_percent: bool = True


def draw_sweep(panels: Sequence[Panel], x_label: str, note: str = "") -> Figure:
    """What was measured at the points of a grid: a panel an evaluation, one colour a label.

    Args:
      panels: of the same points.
      x_label: what the axes show, in words.
      note: how much a point stands for, and what its error is; stands below the axes.

    Returns:
      A figure; errors are bars, and each axis takes in its baselines.

    Raises:
      ValueError: there is no point.
    """
    values = list(dict.fromkeys(x for panel in panels for x in _xs(panel)))
    if not values:
        raise ValueError("no point of the grid was measured: nothing to draw")
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)
    if numbers:
        values.sort()
    place = {x: x if numbers else number for number, x in enumerate(values)}
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (5.4, 3.8) if columns == 1 else (4.4 * columns, 3.3 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, axes in zip(panels, all_axes, strict=False):
        _draw_panel(axes, panel, place, numbers)
        axes.set_xlabel(x_label, fontsize=10, color=INK)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    if note:
        figure.supxlabel(textwrap.fill(note, 66 * columns), fontsize=9, color=FAINT)
    return figure


def _xs(panel: Panel) -> Iterator[object]:
    return (x for points in panel.lines.values() for x, _, _ in points)


def _draw_panel(axes, panel: Panel, place: Mapping[object, float], numbers: bool) -> None:
    """One evaluation; `place` is where each x stands on the axis."""
    lines, levels = panel.lines, panel.baselines
    for number, (label, points) in enumerate(lines.items()):
        _draw_line(
            axes,
            sorted(((place[x], *rest) for x, *rest in points), key=lambda point: point[0]),
            number,
            label,
            joined=numbers,
        )
    for dash, (label, points) in zip(itertools.cycle(_DASHES), levels.items(), strict=False):
        _draw_level(axes, sorted((place[x], share) for x, share in points), dash, label)
    axes.set_xticks(
        list(place.values()), [f"{x:g}" if numbers else str(x) for x in place], minor=False
    )
    plain_axes(axes)
    if panel.in_percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(textwrap.fill(panel.y_label, 40), fontsize=10, color=INK)
    ends = [value + sign * (error or 0.0) for points in lines.values()
            for _, value, error in points for sign in (-1, 1)]  # fmt: skip
    ends += [value for points in levels.values() for _, value in points]
    axes.set_ylim(*(share_limits(ends) if panel.in_percent else _number_limits(ends)))
    if any(lines) or levels:
        axes.legend(fontsize=9, framealpha=0.5, edgecolor="none")


def _number_limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis for some numbers, 0 among them where that is near."""
    low, high = min(values), max(values)
    if high - low > 0.5 * max(abs(low), abs(high)):
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin * (low != 0), high + margin * (high != 0)


def _draw_line(axes, points: Sequence[tuple], number: int, label: str, joined: bool) -> None:
    """Points (x, share, error or None) in the colour of this number."""
    axes.errorbar(
        [x for x, _, _ in points],
        [share for _, share, _ in points],
        # No bar, rather than one of no length, where the spread is not known.
        yerr=[math.nan if error is None else error for _, _, error in points],
        color=LINES[number % len(LINES)],
        marker="os^Dv"[number // len(LINES) % 5],
        markersize=4.5,
        linestyle="-" if joined else "",
        linewidth=1.6,
        capsize=3,
        label=label or None,
    )


def _draw_level(axes, points: Sequence[tuple[float, float]], dash: str, label: str) -> None:
    """A baseline: straight across where it is the same at all points."""
    style = {"color": FAINT, "linestyle": dash, "linewidth": 1.2, "label": label}
    shares = [share for _, share in points]
    if len(set(shares)) == 1:
        axes.axhline(shares[0], **style)
    else:
        axes.plot(*zip(*points, strict=True), **style)
