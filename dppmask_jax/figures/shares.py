"""Shares with their errors, a row each, a colour for each run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dppmask_jax.figures.axes import MOST_BESIDE, legend_above, plain_axes, style
from dppmask_jax.figures.panels import DPI, INK

_SPREAD = 0.5  # of the runs within a row


def draw_shares(
    found: Mapping[str, Mapping[str, tuple[float | None, float | None]]],
    xlabel: str,
    note: str = "",
    levels: Mapping[str, float] = MappingProxyType({}),
) -> Figure:
    """A dot and a bar of one error to either side for each run and row.

    Args:
      found: {label of a run: {row: (share from 0 to 1, its error)}}; None where it is not known.
      xlabel: says what the shares are, in percent.
      note: stands below.
      levels: {what: share} of dotted lines to compare with, such as {"chance": 0.1}.
    """
    rows = list(dict.fromkeys(row for of_run in found.values() for row in of_run))
    figure = Figure(figsize=(6.2, 1.3 + 0.26 * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain_axes(axes)
    for i, (label, of_run) in enumerate(found.items()):
        shift = _SPREAD * ((i + 0.5) / len(found) - 0.5)
        known = {row: values for row, values in of_run.items() if values[0] is not None}
        axes.errorbar(
            [100 * share for share, _ in known.values()],
            [rows.index(row) + shift for row in known],
            xerr=[100 * (error or 0.0) for _, error in known.values()],
            **style(i) | {"linestyle": ""},
            label=label,
            markersize=4,
            linewidth=1.2,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    for what, share in levels.items():
        axes.axvline(100 * share, color="#888888", linestyle=":", linewidth=1, label=what)
    if len(found) > MOST_BESIDE:
        legend_above(figure, axes.get_legend_handles_labels()[0])
    elif len(found) > 1 or levels:
        axes.legend(fontsize=8, frameon=False)
    if note:
        figure.supxlabel(note, fontsize=8, color=INK)
    return figure
