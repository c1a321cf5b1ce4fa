"""A few images of each class of a data set, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.figures import colours, panels
from dppmask_jax.pixel_format import RGB, Pixels

_SIDE = 128  # of an image, in pixels
_COLUMNS, _ROWS = 6, 12
_LETTERS = 18  # of a caption


def write_sheet(path: Path, source: Source, rows: Sequence[int]) -> Path:
    """Draws images of a source: a row a class, or all together where there are no labels.

    Args:
      rows: which of its images may be drawn, readable ones.

    Returns:
      The path of the PNG.

    Raises:
      InputError: there is no image to draw, or the file cannot be written.
    """
    if not len(rows):
        raise InputError("there is no readable image for the contact sheet")
    labels = None if source.labels is None else source.labels()
    table, note = [], ""
    if labels is None:
        table = [list(part) for part in np.array_split(_spread(rows, _COLUMNS * _ROWS), _ROWS)]
    else:
        there = [k for k in range(source.num_classes) if (labels[np.asarray(rows)] == k).any()]
        for k in _spread(there, _ROWS):
            table.append(_spread([i for i in rows if labels[i] == k], _COLUMNS))
        if len(there) > _ROWS:
            note = f"{_ROWS} of {len(there):,} classes"
    table = [row for row in table if len(row)]
    images = iter(_shown(source, [int(i) for row in table for i in row]))
    width = max(map(len, table))
    blank = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    drawn = [[next(images) for _ in row] + [blank] * (width - len(row)) for row in table]
    captions = [[_caption(source, labels, int(i)) for i in row] for row in table]
    captions = [row + [""] * (width - len(row)) for row in captions]
    figure = panels.compose(drawn, [""] * width, captions, [], note=note)
    try:
        return panels.save(figure, path.parent, path.name)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _spread(values: Sequence[int], most: int) -> list[int]:
    places = np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)
    return [values[place] for place in places]


def _shown(source: Source, rows: list[int]) -> np.ndarray:
    """(n, H, W, 3) uint8."""
    found = [source.read(i)[0] for i in rows]
    if isinstance(found[0], bytes):
        wide, _ = decode.grey_range_of(found)
        found = [decode.narrowed(data, wide) for data in found]
        return np.stack([crops.center_crop(data, image_size=(_SIDE, _SIDE)) for data in found])
    whole = all(values.dtype == np.uint8 for values in found)
    values = [one if whole else one.astype(np.float32) for one in found]
    images = np.stack([crops.center_crop(one, image_size=(_SIDE, _SIDE)) for one in values])
    pixels = RGB if whole else Pixels(range=(0.0, 1.0))
    return colours.shown(pixels._replace(channels=images.shape[-1], kept=True), images)


def _caption(source: Source, labels, i: int) -> str:
    text = source.name(i).rpartition("/")[2] if labels is None else source.class_names[labels[i]]
    text = one_line(text)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"
