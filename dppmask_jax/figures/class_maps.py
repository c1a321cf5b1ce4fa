"""segmentation_maps.png: images and maps of classes, a colour for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from dppmask_jax.figures.panels import SMALL_PANEL, check_rows, compose, enlarge, panel_scale

NO_CLASS = (224, 224, 192)
_FEW = colormaps["tab10"].colors
_MOST_NAMED = 24  # classes in the legend, those with the most pixels


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """A colour for each class, black for the first: of few classes those that are told apart at a
    glance, of more than 11 those of VOC."""
    if count > 1 + len(_FEW):
        return [voc_color(number) for number in range(count)]
    return [(0, 0, 0), *(tuple(round(255 * part) for part in color) for color in _FEW)][:count]


def voc_color(number: int) -> tuple[int, int, int]:
    """The colour of a class in VOC's palette: black for 0, all different up to 255."""
    color = [0, 0, 0]
    for place in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (number >> channel & 1) << place
        number >>= 3
    return tuple(color)


def draw_class_maps(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    ignored: int | None = None,
) -> Figure:
    """One row an image: the image and its maps, and a legend of the classes that appear.

    Args:
      images: (R, H, W, 3) uint8.
      maps: {title: (R, H, W) int}, numbers of classes, or `ignored`.
      names: of the classes.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    check_rows(len(images), **maps)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    palette = class_colors(len(names))
    appear = np.zeros(len(names), np.int64)
    columns, is_ignored = [images], False
    for values in maps.values():
        none = np.zeros(values.shape, bool) if ignored is None else values == ignored
        appear += np.bincount(values[~none], minlength=len(names))
        is_ignored |= bool(none.any())
        colors = np.array(palette, np.uint8)[np.where(none, 0, values)]
        columns.append(np.where(none[..., None], np.uint8(NO_CLASS), colors))
    panels = [[enlarge(panel, scale) for panel in row] for row in zip(*columns, strict=True)]
    most = np.argsort(-appear, kind="stable")[:_MOST_NAMED]
    named = sorted(int(number) for number in most if appear[number])
    legend = [(palette[number], names[number]) for number in named]
    legend += [(NO_CLASS, "no class")] * is_ignored
    hidden = int((appear > 0).sum()) - len(named)
    note = f"{hidden} more classes with few pixels are not named" if hidden else ""
    return compose(panels, ["Image", *maps], None, legend, fill=True, note=note)
