"""sweep.png: what an evaluation found at the points of a grid."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dppmask_jax.figures.axes import LINES, plain_axes, share_limits
from dppmask_jax.figures.panels import DPI, FAINT, INK

_DASHES = ("--", ":", "-.")  # of baselines


def draw_sweep(
    lines: Mapping[str, Sequence[tuple[object, float, float | None]]],
    x_label: str,
    y_label: str,
    baselines: Mapping[str, Sequence[tuple[object, float]]] | None = None,
    note: str = "",
    in_percent: bool = True,
) -> Figure:
    """The shares measured at the points of a grid, one colour a label.

    Args:
      lines: label -> (x, share from 0 to 1, its error or None). Where every x is a
        number, x is an axis of numbers and a line joins them; otherwise the values stand side by
        side in the order in which they come, and nothing lies between them.
      x_label, y_label: what the axes show, in words.
      baselines: label -> (x, share): what the shares are to be compared with.
      note: how much a point stands for, and what its error is; stands below the axes.
      in_percent: how the axis counts shares.

    Returns:
      A figure; errors are bars, and the axis takes in the baselines.

    Raises:
      ValueError: there is no point.
    """
    values = list(dict.fromkeys(x for points in lines.values() for x, _, _ in points))
    if not values:
        raise ValueError("no point of the grid was measured: nothing to draw")
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values)
    if numbers:
        values.sort()
    place = {x: x if numbers else number for number, x in enumerate(values)}
    figure = Figure(figsize=(5.4, 3.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (label, points) in enumerate(lines.items()):
        _draw_line(
            axes,
            sorted(((place[x], *rest) for x, *rest in points), key=lambda point: point[0]),
            number,
            label,
            joined=numbers,
        )
    levels = baselines or {}
    for dash, (label, points) in zip(itertools.cycle(_DASHES), levels.items(), strict=False):
        _draw_level(axes, sorted((place[x], share) for x, share in points), dash, label)
    axes.set_xticks(
        list(place.values()), [f"{x:g}" if numbers else str(x) for x in values], minor=False
    )
    plain_axes(axes)
    if in_percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(x_label, fontsize=10, color=INK)
    axes.set_ylabel(textwrap.fill(y_label, 40), fontsize=10, color=INK)
    ends = [share + sign * (error or 0.0) for points in lines.values()
            for _, share, error in points for sign in (-1, 1)]  # fmt: skip
    ends += [share for points in levels.values() for _, share in points]
    axes.set_ylim(*share_limits(ends))
    if any(lines) or levels:
        axes.legend(fontsize=9, frameon=False)
    if note:
        figure.supxlabel(textwrap.fill(note, 66), fontsize=9, color=FAINT)
    return figure


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
