"""Panels of uint8 pixels, and a table of them as one picture.

Outlines fall exactly on the borders of patches. Nothing is global here (no pyplot).
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dppmask_jax import patches, whole_files

BOTH = (255, 255, 255)
THROWN = (8, 8, 12)  # what a thrown patch is filled with: darker than any masked one


DPI = 150
PANEL = 360  # pixels, about: small images are enlarged by a whole factor to come near it
SMALL_PANEL = 224  # the same where there are many columns
_README = 900  # text is sized to be read when the picture is shown this many pixels wide, ...
_COLUMN = 105  # ... or wider, where a column would be narrower than this
_LETTER = 7.1  # width of one of a title, about
_LEGEND_STEP = 47  # width of an entry of a legend without its text
INK = "#222222"
FAINT = "#666666"


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
    patch_size: patches.PatchSize,
    outlines: Sequence[tuple[tuple[int, int, int], np.ndarray]] = (),
    scale: int = 1,
    thrown: np.ndarray | None = None,
) -> np.ndarray:
    """An image whose masked patches are grey and dim, whose thrown patches are almost black, and
    whose chosen patches are outlined.

    Args:
      image: (H, W, 3) uint8.
      mask: (N,) bool, True = masked.
      patch_size: of a patch in pixels of `image`.
      outlines: pairs of a colour and the (N,) bool patches it outlines, inside their border.
      scale: whole factor of enlargement.
      thrown: (N,) bool, True = thrown away; None: none is.

    Returns:
      (H * scale, W * scale, 3) uint8.

    Raises:
      ValueError: the patch size does not divide the image, or a mask has another length than N.
    """
    rows, columns = patches.grid_shape(image.shape[:2], patch_size)
    height, width = patches.sides(patch_size)
    thrown = np.zeros_like(mask) if thrown is None else thrown
    for flags in (mask, thrown, *(chosen for _, chosen in outlines)):
        if np.shape(flags) != (rows * columns,):
            raise ValueError(
                f"a mask of shape {np.shape(flags)} does not fit the {rows}x{columns} patches of "
                f"an image of {image.shape[0]}x{image.shape[1]}"
            )
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    dim = np.repeat((34.0 + 0.2 * grey).astype(np.uint8)[..., None], 3, axis=2)
    hidden, away = (
        np.asarray(flags, bool).reshape(rows, columns).repeat(height, axis=0).repeat(width, axis=1)
        for flags in (mask, thrown)
    )
    panel = np.where(hidden[..., None], dim, image)
    panel = enlarge(np.where(away[..., None], np.uint8(THROWN), panel), scale)
    height, width = height * scale, width * scale
    line = outline_width(min(height, width))
    for color, chosen in outlines:
        for index in np.flatnonzero(chosen):
            row, column = divmod(int(index), columns)
            box = panel[row * height :, column * width :][:height, :width]
            box[:line], box[-line:], box[:, :line], box[:, -line:] = color, color, color, color
    return panel


def attention_panel(
    weights: np.ndarray, grid: tuple[int, int], patch_size: patches.PatchSize
) -> np.ndarray:
    """A map of attention, each patch in one colour: black is 0, light yellow the map's maximum.

    Args:
      weights: (N,) float, at least 0; what is not finite counts as 0.
      grid: (rows, columns) of patches.
      patch_size: of a patch in pixels of the panel.

    Returns:
      (rows * height, columns * width, 3) uint8, with those of a patch.
    """
    weights = np.nan_to_num(np.asarray(weights, np.float32), posinf=0.0, neginf=0.0)
    colors = heat(weights.reshape(grid) / (weights.max() or 1.0))
    height, width = patches.sides(patch_size)
    return colors.repeat(height, axis=0).repeat(width, axis=1)


def attention_legend() -> list[tuple[tuple[int, int, int], str]]:
    """What the colours of `attention_panel` mean."""
    colors = [tuple(map(int, color)) for color in heat(np.array([0.0, 0.5, 1.0]))]
    words = ("no attention", "half the map's maximum", "the map's maximum")
    return list(zip(colors, words, strict=True))


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


def heat(levels: np.ndarray) -> np.ndarray:
    """Levels in [0, 1], any shape -> uint8 colours, of lightness even in the level; (..., 3)."""
    return colormaps["inferno"](np.asarray(levels, np.float32), bytes=True)[..., :3]


def compose(
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
    titles = [_wrapped(title, width / unit) for title in titles]
    top = round((10 + 17 * max(title.count("\n") + 1 for title in titles)) * unit)
    below = round(17 * unit) if captions else 0
    pitch = height + below + gap
    lines = _legend_lines(legend, total_width / unit)
    bottom = round((8 + 22 * len(lines)) * unit) if legend else 0
    last = round(20 * unit) if note else 0
    total_height = top + len(panels) * pitch + bottom + last

    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    lefts = [gap + column * (width + gap) for column in range(len(titles))]
    tops = [top + row * pitch for row in range(len(panels))]
    for y, row in zip(tops, panels, strict=True):
        for x, panel in zip(lefts, row, strict=True):
            canvas[y : y + height, x : x + width] = panel

    axes = _axes_over(canvas)
    points = unit * 72 / DPI

    def write(x, y, text, size, color=INK, **kwargs):
        return axes.text(
            x, y, text, fontsize=size * points, color=color, linespacing=1.15, **kwargs
        )

    for x, title in zip(lefts, titles, strict=True):
        write(x + width / 2, top - 7 * unit, title, 13, ha="center", va="bottom")
    if captions:
        for y, row in zip(tops, captions, strict=True):
            for x, caption in zip(lefts, row, strict=True):
                y_text = y + height + 4 * unit
                # Names of files may have dollars in them.
                middle = {"ha": "center", "va": "top", "parse_math": False}
                write(x + width / 2, y_text, caption, 11, FAINT, **middle)
    for number, line in enumerate(lines):
        y = total_height - last - bottom + (11 + 22 * number) * unit
        texts = [write(0, y, text, 12, va="center_baseline") for _, text in line]
        _place_legend(axes, texts, [color for color, _ in line], unit, fill)
    if note:
        y = total_height - 9 * unit
        write(total_width / 2, y, note, 11, FAINT, ha="center", va="bottom")
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    return axes.figure


def _legend_lines(legend, width: float) -> list[list]:
    """A legend in lines `width` units wide, about as full as one another."""
    lengths = [_LEGEND_STEP + _LETTER * len(text) for _, text in legend]
    number = max(1, math.ceil(sum(lengths) / width)) if legend else 0
    lines, filled = [[] for _ in range(number)], 0.0
    for entry, length in zip(legend, lengths, strict=True):
        lines[min(int(filled / sum(lengths) * number), number - 1)].append(entry)
        filled += length
    return lines


def _wrapped(title: str, width: float) -> str:
    """A title in lines that fit over their column, `width` units wide, first cut after commas."""
    letters = max(1, int(width / _LETTER))
    lines = []
    for line in title.split("\n"):
        parts = [line] if len(line) <= letters else line.replace(", ", ",\n").split("\n")
        lines += itertools.chain(*(textwrap.wrap(part, letters) for part in parts))
    return "\n".join(lines)


def _axes_over(canvas: np.ndarray):
    """Axes over a whole figure that shows each pixel of the canvas as one pixel."""
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    axes.set_axis_off()
    return axes


def _place_legend(axes, texts, colors, unit: float, fill: bool) -> None:
    """Sets the texts of a legend in the middle of their line, each behind its colour."""
    swatch, line = 15 * unit, 2.5 * unit
    renderer = axes.figure.canvas.get_renderer()
    lengths = [text.get_window_extent(renderer).width for text in texts]
    step = swatch + (6 + 26) * unit
    total_width = axes.figure.bbox.width
    x = (total_width - sum(lengths) - step * len(texts) + 26 * unit) / 2
    for color, text, length in zip(colors, texts, lengths, strict=True):
        top = text.get_position()[1] - swatch / 2
        faces = ["#3c3c3c", np.array(color) / 255, *([] if fill else ["#3c3c3c"])]
        for number, face in enumerate(faces):
            inset = number * line
            side = swatch - 2 * inset
            axes.add_patch(Rectangle((x + inset, top + inset), side, side, facecolor=face))
        text.set_x(x + swatch + 6 * unit)
        x += length + step


def save(figure: Figure, out_dir: str | Path, name: str) -> Path:
    """Writes a figure at its own resolution into a folder, which is made where it is missing."""
    path = Path(out_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_files.replacing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."))
    return path


def check_rows(rows: int, **arrays) -> None:
    """Raises ValueError without a row, or where an array has another number of them."""
    if rows == 0:
        raise ValueError("there is no image to draw")
    for name, array in arrays.items():
        if len(array) != rows:
            raise ValueError(f"{name} has {len(array)} rows for {rows} images")
