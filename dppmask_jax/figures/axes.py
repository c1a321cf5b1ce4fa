"""What the axes of curves and sweeps have in common."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from dppmask_jax.figures.panels import FAINT, INK

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9")


_LEAST_SPAN = 0.1  # of an axis of shares, so that half a point does not fill it


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
