"""curves.png: what a run logged, or several runs, against the step."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels
from dppmask_jax.figures.axes import LINES, plain_axes, share_limits
from dppmask_jax.figures.panels import DPI, FAINT, INK
from dppmask_jax.runs import history, metrics
from dppmask_jax.scores.uncertainty import standard_error

LOSS, ENTROPY = "Loss", "Entropy of the targets (nats)"
KNN, PICKS = "k-NN accuracy", "Patches picked by the DPP, per image"
# Of each panel what a record calls it, what the legend calls it, and the dash of its line.
_PANELS = (
    (
        LOSS,
        (
            ("loss", "train", "-"),
            ("val_loss", "validation", "--"),
            ("loss_class", "class token", "-."),
            ("loss_patch", "patches", ":"),
        ),
    ),
    (
        ENTROPY,
        (
            ("teacher_entropy", "per view", "-"),
            ("prototype_entropy", "of their mean", "-."),
            ("kl", "KL to student", ":"),
        ),
    ),
    (KNN, (("knn", "", "-"),)),
    (PICKS, (("num_greedy", "", "-"),)),
)
_MARKED = ("val_loss", "knn", "num_greedy")  # with a dot at each of few values
# What a share is to be compared with: what a record calls it, the legend, and its dash.
_LEVELS = (("knn_pixels", "raw pixels", "--"), ("knn_chance", "chance", ":"))


def _series(records: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (record["step"], record[name])
        for record in records
        if "step" in record and record.get(name) is not None
    ]
    points = [point for point in points if math.isfinite(point[1])]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Running mean over `reach` values to either side.

    Near the start the window shrinks on both sides, so that a steep start keeps its height; at
    the end it only loses what lies beyond, so that the last value is not a single noisy one.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(index, reach)
    right = np.minimum(left, len(values) - 1 - index)
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def draw_curves(
    records: Sequence[Mapping] | Mapping[str, Sequence[Mapping]], note: str = ""
) -> Figure:
    """Loss and its parts, entropies, k-NN accuracy and number of DPP picks against the step.

    The k-NN accuracy has a band of one standard error over the validation images to either side,
    and lines for raw pixels and chance, which its axis takes in.

    Args:
      records: the parsed lines of a run's metrics.jsonl; or label -> lines, to overlay runs.
      note: what to know when reading the figure; stands below it.

    Returns:
      A figure with one panel for each quantity that any run logged.

    Raises:
      ValueError: nothing that can be drawn was logged.
    """
    runs = records if isinstance(records, Mapping) else {"": records}
    panels = []
    for title, lines in _PANELS:
        logged = [
            line for line in lines if any(len(_series(run, line[0])[0]) for run in runs.values())
        ]
        if logged:
            panels.append((title, logged))
    if not panels:
        raise ValueError("no loss, k-NN accuracy or number of picks was logged: nothing to draw")
    levels = any(_levels(run) for run in runs.values())
    height = 3.4 if levels or any(map(_has_many, panels)) else 3.1
    width = 3.6 * len(panels) + 0.4
    note = "\n".join(textwrap.fill(line, round(12 * width)) for line in note.splitlines())
    height += 0.17 * len(note.splitlines())
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, runs)
    if note:
        figure.supxlabel(note, fontsize=9, color=INK)
    return figure


def _draw_panel(axes, panel, runs: Mapping[str, Sequence[Mapping]]) -> None:
    """One quantity of all runs, with what its lines stand for."""
    title, lines = panel
    for number, (label, run) in enumerate(runs.items()):
        for name, what, dash in lines:
            if _has_many(panel):
                words = label if name == lines[0][0] else ""
            else:
                words = ", ".join(part for part in (label, what) if part)
            _plot(axes, run, name, dash, LINES[number % len(LINES)], words)
    axes.set_title(title, fontsize=11, color=INK)
    axes.set_xlabel("step", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
    plain_axes(axes)
    if title == KNN:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif title == PICKS:
        axes.set_ylim(0, 1.12 * axes.dataLim.ymax or 1)
    labelled = bool(axes.get_legend_handles_labels()[1])
    if labelled:
        axes.legend(fontsize=9, frameon=False)
    below = []
    if _has_many(panel):
        color = FAINT if labelled else LINES[0]
        below = [
            _handle(dash, color, "total" if name == "loss" else what) for name, what, dash in lines
        ]
    elif title == KNN:
        below = _compare_shares(axes, runs)
    if below:
        if labelled:
            axes.add_artist(axes.get_legend())  # or the second legend takes its place
        _legend_below(axes, below)


def _levels(run: Sequence[Mapping]) -> dict[str, float]:
    """What a run's k-NN accuracy is to be compared with, as it was last logged."""
    found = {name: _series(run, name)[1] for name, _, _ in _LEVELS}
    return {name: values[-1] for name, values in found.items() if len(values)}


def _compare_shares(axes, runs: Mapping[str, Sequence[Mapping]]) -> list:
    """Adds bands of standard errors, and raw pixels and chance, to the panel of k-NN accuracies.

    Returns:
      What explains them in a legend.
    """
    handles, counts, ends = [], [], []
    for number, run in enumerate(runs.values()):
        steps, shares = _series(run, "knn")
        of_step = {r["step"]: r.get("knn_images") for r in run if r.get("knn") is not None}
        images = [of_step[step] for step in steps]
        ends += list(shares)
        if len(shares) and all(images):
            errors = [standard_error(p, n) for p, n in zip(shares, images, strict=True)]
            low, high = shares - errors, shares + errors
            color = LINES[number % len(LINES)]
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
            ends += [*low, *high]
            counts += images
    if counts:
        of = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
        band = Rectangle((0, 0), 1, 1, color=FAINT, alpha=0.25, linewidth=0)
        band.set_label(f"± standard error, {of} images")
        handles.append(band)
    of_runs = [_levels(run) for run in runs.values()]
    for name, what, dash in _LEVELS:
        levels = {number: of[name] for number, of in enumerate(of_runs) if name in of}
        one_line = len(set(levels.values())) == 1
        for number, level in list(levels.items())[: 1 if one_line else None]:
            color = FAINT if one_line else LINES[number % len(LINES)]
            axes.axhline(level, color=color, linestyle=dash, linewidth=1.2)
        if levels:
            handles.append(_handle(dash, FAINT, what))
            ends += levels.values()
    axes.set_ylim(*share_limits(ends))
    return handles


def _has_many(panel) -> bool:
    """Whether a legend with every line of every run would hide the lines."""
    _, lines = panel
    return len(lines) > 2


def _plot(axes, run, name: str, dash: str, color: str, words: str) -> None:
    """One quantity of one run, if it was logged: many values smoothed, and faintly as they are."""
    steps, values = _series(run, name)
    if not len(steps):
        return
    shown = values
    if len(values) >= 60 and name != "val_loss":
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        shown = _smooth(values, len(values) // 40)
    sparse = len(steps) < 30
    axes.plot(
        steps,
        shown,
        color=color,
        linestyle=dash,
        marker="o" if (sparse and name in _MARKED) or len(steps) == 1 else None,
        markersize=3.5,
        linewidth=1.6,
        label=words or None,
    )


def _handle(dash: str, color: str, words: str) -> Line2D:
    return Line2D([], [], color=color, linestyle=dash, linewidth=1.6, label=words)


def _legend_below(axes, handles) -> None:
    """What lines and areas stand for, below the panel."""
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=3 if len(handles) == 3 and axes.get_title() != KNN else 2,
        fontsize=9,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.2,
    )


def _read_metrics(path: str | Path) -> list[dict]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no {path}; name the workdir of a training run")
    return metrics.read_metrics(path)


def _past(metrics_path: str | Path) -> str:
    """What was changed in the run of a metrics.jsonl, in words."""
    try:
        kept = json.loads((Path(metrics_path).parent / "config.json").read_text())
        return history.describe(kept.get("history", ()))
    except FileNotFoundError:
        return ""
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the config.json beside {metrics_path} is damaged: {error}") from error


def write_curves(
    out_dir: str | Path,
    metrics_path: str | Path | Mapping[str, str | Path],
    note: str = "",
) -> Path:
    """Draws curves.png from a metrics.jsonl, or from several given as label -> path.

    Args:
      note: stands below the curves, with what the histories of the runs tell.

    Returns:
      The path of curves.png.

    Raises:
      InputError: a file is missing or damaged, or holds nothing to draw.
    """
    if isinstance(metrics_path, Mapping):
        records = {label: _read_metrics(path) for label, path in metrics_path.items()}
        where = ", ".join(str(path) for path in metrics_path.values())
        pasts = [
            f"{label}: {past}" for label, path in metrics_path.items() if (past := _past(path))
        ]
    else:
        records, where = _read_metrics(metrics_path), metrics_path
        pasts = [_past(metrics_path)]
    try:
        figure = draw_curves(records, "\n".join(filter(None, [note, *pasts])))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return panels.save(figure, out_dir, "curves.png")
