"""Pictures of masks, reconstructions, attention, training curves and sweeps.

Every `draw_*` is a pure function: NumPy arrays in, a `matplotlib.figure.Figure` out, nothing global
(no pyplot). Patches outlined in white are visible under all masks shown, in red under the random
mask, in blue under the DPP mask (the colours of DPPMask, arXiv 2303.12736, figure 6).
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dppmask_jax import patches
from dppmask_jax.scores.uncertainty import standard_error

BOTH = (255, 255, 255)
RANDOM_ONLY = (255, 66, 54)
DPP_ONLY = (72, 150, 255)
COLORS = {  # of what is visible under one of several masks
    "random": RANDOM_ONLY,
    "DPP": DPP_ONLY,
    "block": (52, 199, 89),
    "attention": (52, 199, 89),
}
GREEDY = (255, 176, 32)
FILL = (225, 225, 225)
MAX_HEADS = 6  # whose attention is drawn

_DPI = 150
_PANEL = 360  # pixels, about: small images are enlarged by a whole factor to come near it
_SMALL_PANEL = 224  # the same where there are many columns
_README = 900  # text is sized to be read when the picture is shown this many pixels wide, ...
_COLUMN = 85  # ... or wider, where a column would be narrower than this
_INK = "#222222"
_FAINT = "#666666"
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9")


# Panels: uint8 pixels, so that outlines fall exactly on the borders of patches.


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, 3) -> (H * scale, W * scale, 3), every pixel repeated."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def panel_scale(width: int, wanted: int) -> int:
    """The whole factor that brings an image `width` pixels wide nearest to `wanted` pixels."""
    return max(1, round(wanted / width))


def outline_width(side: int) -> int:
    """Width in pixels of the outline of a patch that is `side` pixels wide on the panel."""
    return max(1, min(side // 4, max(2, round(side / 10))))


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    patch_size: int,
    outlines: Sequence[tuple[tuple[int, int, int], np.ndarray]] = (),
    scale: int = 1,
) -> np.ndarray:
    """An image whose masked patches are grey and dim and whose chosen patches are outlined.

    Args:
      image: (H, W, 3) uint8.
      mask: (N,) bool, True = masked.
      patch_size: side of a patch in pixels of `image`.
      outlines: pairs of a colour and the (N,) bool patches it outlines, inside their border.
      scale: whole factor of enlargement.

    Returns:
      (H * scale, W * scale, 3) uint8.

    Raises:
      ValueError: the patch size does not divide the image, or a mask has another length than N.
    """
    rows, columns = patches.grid_shape(image.shape[:2], patch_size)
    for flags in (mask, *(chosen for _, chosen in outlines)):
        if np.shape(flags) != (rows * columns,):
            raise ValueError(
                f"a mask of shape {np.shape(flags)} does not fit the {rows}x{columns} patches of "
                f"an image of {image.shape[0]}x{image.shape[1]}"
            )
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    dim = np.repeat((34.0 + 0.2 * grey).astype(np.uint8)[..., None], 3, axis=2)
    hidden = np.asarray(mask, bool).reshape(rows, columns)
    hidden = hidden.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    panel = enlarge(np.where(hidden[..., None], dim, image), scale)
    side = patch_size * scale
    line = outline_width(side)
    for color, chosen in outlines:
        for index in np.flatnonzero(chosen):
            row, column = divmod(int(index), columns)
            box = panel[row * side : (row + 1) * side, column * side : (column + 1) * side]
            box[:line], box[-line:], box[:, :line], box[:, -line:] = color, color, color, color
    return panel


def attention_panel(weights: np.ndarray, grid: tuple[int, int], side: int) -> np.ndarray:
    """A map of attention, each patch in one colour: black is 0, light yellow the map's maximum.

    Args:
      weights: (N,) float, at least 0; what is not finite counts as 0.
      grid: (rows, columns) of patches.
      side: of a patch in pixels of the panel.

    Returns:
      (rows * side, columns * side, 3) uint8.
    """
    weights = np.nan_to_num(np.asarray(weights, np.float32), posinf=0.0, neginf=0.0)
    colors = _heat(weights.reshape(grid) / (weights.max() or 1.0))
    return enlarge(colors, side)


def border(panel: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A panel with a white line, two pixels wide, between masked and visible patches.

    Without it, a dark part of an image looks masked.

    Args:
      panel: (H, W, 3) uint8.
      mask: (N,) bool, True = masked.
      grid: (rows, columns) of patches.
    """
    height, width = panel.shape[0] // grid[0], panel.shape[1] // grid[1]
    hidden = np.asarray(mask, bool).reshape(grid).repeat(height, axis=0).repeat(width, axis=1)
    down, right = hidden[1:] != hidden[:-1], hidden[:, 1:] != hidden[:, :-1]
    panel = panel.copy()
    panel[1:][down] = panel[:-1][down] = BOTH
    panel[:, 1:][right] = panel[:, :-1][right] = BOTH
    return panel


def _heat(levels: np.ndarray) -> np.ndarray:
    """Levels in [0, 1], any shape -> uint8 colours, of lightness even in the level; (..., 3)."""
    return colormaps["inferno"](np.asarray(levels, np.float32), bytes=True)[..., :3]


def _compose(
    panels: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
    legend: Sequence[tuple[tuple[int, int, int], str]],
    *,
    fill: bool = False,
    note: str = "",
) -> Figure:
    """A table of equally large panels with titles above, captions, a legend and a note below.

    The legend shows its colours as outlines, or with `fill` as areas.

    The whole table is one picture over the whole figure: at the figure's own resolution each
    pixel of a panel is one pixel of the file.
    """
    height, width = panels[0][0].shape[:2]
    gap = max(4, round(0.045 * width))
    total_width = len(titles) * width + (len(titles) + 1) * gap
    unit = total_width / max(_README, _COLUMN * len(titles))
    top = round((10 + 17 * max(title.count("\n") + 1 for title in titles)) * unit)
    below = round(17 * unit) if captions else 0
    pitch = height + below + gap
    bottom = round(30 * unit) if legend else 0
    last = round(20 * unit) if note else 0
    total_height = top + len(panels) * pitch + bottom + last

    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    lefts = [gap + column * (width + gap) for column in range(len(titles))]
    tops = [top + row * pitch for row in range(len(panels))]
    for y, row in zip(tops, panels, strict=True):
        for x, panel in zip(lefts, row, strict=True):
            canvas[y : y + height, x : x + width] = panel

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(
        canvas,
        interpolation="nearest",
        aspect="auto",
        extent=(0, total_width, total_height, 0),
    )
    axes.set_axis_off()
    points = unit * 72 / _DPI

    def write(x, y, text, size, color=_INK, **kwargs):
        return axes.text(
            x, y, text, fontsize=size * points, color=color, linespacing=1.15, **kwargs
        )

    for x, title in zip(lefts, titles, strict=True):
        write(x + width / 2, top - 7 * unit, title, 13, ha="center", va="bottom")
    if captions:
        for y, row in zip(tops, captions, strict=True):
            for x, caption in zip(lefts, row, strict=True):
                y_text = y + height + 4 * unit
                write(x + width / 2, y_text, caption, 11, _FAINT, ha="center", va="top")
    if legend:
        swatch, line = 15 * unit, 2.5 * unit
        y = total_height - last - bottom / 2 - 4 * unit
        texts = [write(0, y, text, 12, va="center_baseline") for _, text in legend]
        renderer = figure.canvas.get_renderer()
        lengths = [text.get_window_extent(renderer).width for text in texts]
        step = swatch + (6 + 26) * unit
        x = (total_width - sum(lengths) - step * len(legend) + 26 * unit) / 2
        for (color, _), text, length in zip(legend, texts, lengths, strict=True):
            faces = ["#3c3c3c", np.array(color) / 255, *([] if fill else ["#3c3c3c"])]
            for number, face in enumerate(faces):
                inset = number * line
                side = swatch - 2 * inset
                axes.add_patch(
                    Rectangle((x + inset, y - swatch / 2 + inset), side, side, facecolor=face)
                )
            text.set_x(x + swatch + 6 * unit)
            x += length + step
    if note:
        y = total_height - 9 * unit
        write(total_width / 2, y, note, 11, _FAINT, ha="center", va="bottom")
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    return figure


def save(figure: Figure, out_dir: str | Path, name: str) -> Path:
    """Writes a figure at its own resolution into a folder, which is made where it is missing."""
    path = Path(out_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _check_rows(rows: int, **arrays) -> None:
    if rows == 0:
        raise ValueError("there is no image to draw")
    for name, array in arrays.items():
        if len(array) != rows:
            raise ValueError(f"{name} has {len(array)} rows for {rows} images")


class Shown(NamedTuple):
    """One way of masking some images, as `draw_masks` shows it.

    `name` is a key of COLORS; `mask` (R, N) bool, True = masked; `captions` stand below the masks,
    one an image; `reconstruction` (R, H, W, 3) uint8 is what a model makes of the visible patches.
    """

    name: str
    title: str
    mask: np.ndarray
    captions: Sequence[str]
    reconstruction: np.ndarray | None = None


def draw_masks(
    images: np.ndarray, shown: Sequence[Shown], patch_size: int, note: str = ""
) -> Figure:
    """One row an image: original, its masks, then the reconstructions that there are.

    Args:
      images: (R, H, W, 3) uint8.
      shown: the masks, at least two.
      patch_size: side of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution (`figure.savefig(path)`).

    Raises:
      ValueError: the arrays do not fit one another.

    Reference: DPPMask (arXiv 2303.12736), figure 6.
    """
    rebuilt = [one for one in shown if one.reconstruction is not None]
    for one in shown:
        _check_rows(len(images), **{f"mask of {one.title}": one.mask})
    for one in rebuilt:
        _check_rows(len(images), **{f"reconstruction of {one.title}": one.reconstruction})
    scale = panel_scale(images.shape[2], _PANEL)
    visible = [~np.asarray(one.mask, bool) for one in shown]
    in_all = np.logical_and.reduce(visible)
    panels, captions = [], []
    for row, image in enumerate(images):
        masks = [
            mask_panel(
                image,
                ~own[row],
                patch_size,
                [(BOTH, in_all[row]), (COLORS[one.name], (own & ~in_all)[row])],
                scale,
            )
            for one, own in zip(shown, visible, strict=True)
        ]
        made = [enlarge(one.reconstruction[row], scale) for one in rebuilt]
        panels.append([enlarge(image, scale), *masks, *made])
        captions.append(["", *(one.captions[row] for one in shown), *([""] * len(made))])
    titles = [
        "Original",
        *(one.title for one in shown),
        *(f"Reconstruction\nfrom {one.name}" for one in rebuilt),
    ]
    two = len(shown) == 2
    legend = [
        (BOTH, "visible in both" if two else "visible in all"),
        *((COLORS[one.name], f"{one.name} only" if two else one.name) for one in shown),
    ]
    return _compose(panels, titles, captions, legend, note=note)


def pick_caption(num_greedy: int, num_visible: int) -> str:
    """How many of the visible patches the DPP picked."""
    return f"{num_greedy} DPP + {num_visible - num_greedy} random"


def draw_tau(
    images: np.ndarray,
    masks_by_tau: Mapping[float, np.ndarray],
    greedy_by_tau: Mapping[float, np.ndarray],
    patch_size: int,
    note: str = "",
) -> Figure:
    """One row an image: the original, then the mask at each tau.

    Args:
      images: (R, H, W, 3) uint8.
      masks_by_tau: tau -> (R, N) bool, True = masked.
      greedy_by_tau: tau -> (R, N) bool, True = picked by the DPP (not by the random fill).
      patch_size: side of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    taus = sorted(masks_by_tau)
    for tau in taus:
        _check_rows(len(images), masks=masks_by_tau[tau], greedy=greedy_by_tau[tau])
    scale = panel_scale(images.shape[2], _PANEL)
    panels, captions = [], []
    for row, image in enumerate(images):
        panel_row, caption_row = [enlarge(image, scale)], [""]
        for tau in taus:
            visible = ~np.asarray(masks_by_tau[tau][row], bool)
            greedy = np.asarray(greedy_by_tau[tau][row], bool)
            outlines = [(FILL, visible & ~greedy), (GREEDY, visible & greedy)]
            panel_row.append(mask_panel(image, ~visible, patch_size, outlines, scale))
            caption_row.append(pick_caption(int(greedy.sum()), int(visible.sum())))
        panels.append(panel_row)
        captions.append(caption_row)
    words = {0.0: "τ = 0 (DPP)", 1.0: "τ = 1 (random)"}
    titles = ["Original"] + [words.get(float(tau), f"τ = {tau:g}") for tau in taus]
    legend = [(GREEDY, "picked by the DPP"), (FILL, "random fill")]
    return _compose(panels, titles, captions, legend, note=note)


def draw_attention(
    images: np.ndarray,
    attention: np.ndarray,
    masks: Mapping[str, np.ndarray],
    patch_size: int,
    note: str = "",
) -> Figure:
    """One row an image: original, attention (mean over heads, then each head), masks.

    Each map is scaled to its own maximum, which stands below it. At most MAX_HEADS heads are
    drawn; a note says so where there are more.

    Args:
      images: (R, H, W, 3) uint8.
      attention: (R, heads, N) float, the attention of the class token to each patch.
      masks: title -> (R, N) bool, True = masked.
      patch_size: side of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    attention = np.asarray(attention, np.float32)
    _check_rows(len(images), attention=attention, **masks)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    if attention.ndim != 3 or attention.shape[2] != grid[0] * grid[1]:
        raise ValueError(
            f"attention of shape {attention.shape} does not fit the {grid[0]}x{grid[1]} patches"
        )
    num_heads = attention.shape[1]
    shown = min(num_heads, MAX_HEADS)
    scale = panel_scale(images.shape[2], _SMALL_PANEL)
    panels, captions = [], []
    for row, image in enumerate(images):
        maps = [attention[row].mean(axis=0), *attention[row, :shown]]
        hidden = [np.asarray(mask[row], bool) for mask in masks.values()]
        panels.append(
            [
                enlarge(image, scale),
                *(attention_panel(weights, grid, patch_size * scale) for weights in maps),
                *(
                    border(mask_panel(image, mask, patch_size, scale=scale), mask, grid)
                    for mask in hidden
                ),
            ]
        )
        captions.append(
            [
                "",
                *(f"max {weights.max():.1%}" for weights in maps),
                *(f"{mask.sum()} masked" for mask in hidden),
            ]
        )
    titles = [
        "Original",
        "Mean of\nheads",
        *(f"Head {head}" for head in range(1, shown + 1)),
        *masks,
    ]
    dark, middle, light = (tuple(map(int, color)) for color in _heat(np.array([0.0, 0.5, 1.0])))
    legend = [
        (dark, "no attention"),
        (middle, "half the map's maximum"),
        (light, "the map's maximum"),
    ]
    if shown < num_heads:
        heads = f"heads 1 to {shown} of {num_heads}; the mean is over all {num_heads}"
        note = f"{heads}; {note}" if note else heads
    return _compose(panels, titles, captions, legend, fill=True, note=note)


# Curves.

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
_DASHES = ("--", ":", "-.")  # of baselines
_LEAST_SPAN = 0.1  # of an axis of shares: half a point must not fill it


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
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, panel in zip(all_axes, panels, strict=True):
        title, lines = panel
        for number, (label, run) in enumerate(runs.items()):
            for name, what, dash in lines:
                if _has_many(panel):
                    words = label if name == lines[0][0] else ""
                else:
                    words = ", ".join(part for part in (label, what) if part)
                _plot(axes, run, name, dash, _LINES[number % len(_LINES)], words)
        axes.set_title(title, fontsize=11, color=_INK)
        axes.set_xlabel("step", fontsize=10, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
        _plain_axes(axes)
        if title == KNN:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif title == PICKS:
            axes.set_ylim(0, 1.12 * axes.dataLim.ymax or 1)
        labelled = bool(axes.get_legend_handles_labels()[1])
        if labelled:
            axes.legend(fontsize=9, frameon=False)
        below = []
        if _has_many(panel):
            color = _FAINT if labelled else _LINES[0]
            below = [
                _handle(dash, color, "total" if name == "loss" else what)
                for name, what, dash in lines
            ]
        elif title == KNN:
            below = _compare_shares(axes, runs)
        if below:
            if labelled:
                axes.add_artist(axes.get_legend())  # or the second legend takes its place
            _legend_below(axes, below)
    if note:
        figure.supxlabel(note, fontsize=9, color=_INK)
    return figure


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
            color = _LINES[number % len(_LINES)]
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
            ends += [*low, *high]
            counts += images
    if counts:
        of = " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
        band = Rectangle((0, 0), 1, 1, color=_FAINT, alpha=0.25, linewidth=0)
        band.set_label(f"± standard error, {of} images")
        handles.append(band)
    of_runs = [_levels(run) for run in runs.values()]
    for name, what, dash in _LEVELS:
        levels = {number: of[name] for number, of in enumerate(of_runs) if name in of}
        one_line = len(set(levels.values())) == 1
        for number, level in list(levels.items())[: 1 if one_line else None]:
            color = _FAINT if one_line else _LINES[number % len(_LINES)]
            axes.axhline(level, color=color, linestyle=dash, linewidth=1.2)
        if levels:
            handles.append(_handle(dash, _FAINT, what))
            ends += levels.values()
    axes.set_ylim(*share_limits(ends))
    return handles


def share_limits(shares: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis, within 0 to 1, for some shares: no blow-up of a small difference."""
    low, high = min(shares), max(shares)
    margin = max(0.06 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    low, high = low - margin, high + margin
    # Where one end would leave 0 to 1, the other takes what it loses.
    low, high = low - max(high - 1, 0), high + max(-low, 0)
    return max(low, 0.0), min(high, 1.0)


def _plain_axes(axes) -> None:
    """Faint lines at few values of y, and a frame on two sides only."""
    axes.tick_params(labelsize=9, colors=_FAINT, labelcolor=_INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#aaaaaa")


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


# Sweeps.


def draw_sweep(
    lines: Mapping[str, Sequence[tuple[object, float, float | None]]],
    x_label: str,
    y_label: str,
    baselines: Mapping[str, Sequence[tuple[object, float]]] | None = None,
    note: str = "",
    in_percent: bool = True,
) -> Figure:
    """One line a label through the shares measured at the points of a grid.

    Args:
      lines: label -> (x, share from 0 to 1, its error or None). Where every x is a
        number, x is an axis of numbers; otherwise the values stand side by side in the order in
        which they come.
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
    figure = Figure(figsize=(5.4, 3.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (label, points) in enumerate(lines.items()):
        points = sorted(points, key=lambda point: place[point[0]])
        axes.errorbar(
            [place[x] for x, _, _ in points],
            [share for _, share, _ in points],
            # No bar, rather than one of no length, where the spread is not known.
            yerr=[math.nan if std is None else std for _, _, std in points],
            color=_LINES[number % len(_LINES)],
            marker="os^Dv"[number // len(_LINES) % 5],
            markersize=4.5,
            linewidth=1.6,
            capsize=3,
            label=label or None,
        )
    levels = baselines or {}
    for dash, (label, points) in zip(itertools.cycle(_DASHES), levels.items(), strict=False):
        _draw_level(axes, sorted((place[x], share) for x, share in points), dash, label)
    axes.set_xticks(
        list(place.values()), [f"{x:g}" if numbers else str(x) for x in values], minor=False
    )
    _plain_axes(axes)
    if in_percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(x_label, fontsize=10, color=_INK)
    axes.set_ylabel(textwrap.fill(y_label, 40), fontsize=10, color=_INK)
    ends = [share + sign * (error or 0.0) for points in lines.values()
            for _, share, error in points for sign in (-1, 1)]  # fmt: skip
    ends += [share for points in levels.values() for _, share in points]
    axes.set_ylim(*share_limits(ends))
    if any(lines) or levels:
        axes.legend(fontsize=9, frameon=False)
    if note:
        figure.supxlabel(textwrap.fill(note, 66), fontsize=9, color=_FAINT)
    return figure


def _draw_level(axes, points: Sequence[tuple[float, float]], dash: str, label: str) -> None:
    """A baseline: straight across where it is the same at all points."""
    style = {"color": _FAINT, "linestyle": dash, "linewidth": 1.2, "label": label}
    shares = [share for _, share in points]
    if len(set(shares)) == 1:
        axes.axhline(shares[0], **style)
    else:
        axes.plot(*zip(*points, strict=True), **style)
