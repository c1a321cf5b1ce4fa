"""What the axes of curves and sweeps have in common."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from dppmask_jax.figures.panels import FAINT, INK

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9")
MOST_BESIDE = 3  # encoders whose names have room among their lines
_SIGN, _LETTER, _LINE = 0.6, 0.07, 0.17  # inches: of a legend's line, letter and height
_LEAST_SPAN = 0.1  # of an axis of shares, so that half a point does not fill it
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "v")


def style(place: int) -> dict[str, str]:
    """Colour, dash and marker of the line in a place; no two of the first 24 are alike."""
    turn = place // len(LINES) % len(_DASHES)
    return {
        "color": LINES[place % len(LINES)],
        "linestyle": _DASHES[turn],
        "marker": _MARKERS[turn],
    }


def legend_above(figure, handles) -> None:
    """A legend above all axes, in as many columns as fit; the figure grows by its height."""
    letters = max(len(handle.get_label()) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (_SIGN + _LETTER * letters)))
    figure.set_figheight(figure.get_figheight() + _LINE * -(-len(handles) // columns))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, fontsize=8, frameon=False
    )


def share_limits(shares: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, within 0 to 1, for some shares: no blow-up of a small difference."""
    low, high = min(shares), max(shares)
    margin = max(0.06 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    low, high = low - margin, high + margin
    # Where one end would leave 0 to 1, the other takes what it loses.
    low, high = low - max(high - 1, 0), high + max(-low, 0)
    return max(low, 0.0), min(high, 1.0)


def plain_axes(axes) -> None:
    """Faint lines at few values of y, and a frame on two sides only."""
    axes.tick_params(labelsize=9, colors=FAINT, labelcolor=INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#aaaaaa")
