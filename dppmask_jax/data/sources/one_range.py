"""Greyscale of more than 8 bits, made 8-bit RGB: one range of black and white for both splits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dppmask_jax.data.images import decode, greys
from dppmask_jax.data.sources.base import Source

_GREY_SAMPLE = 64  # files of a split that say what black and white are
_LOOKED_AT = 4096  # names among which these are chosen
_MAY_BE_WIDE = (".png", ".tif", ".tiff", ".pgm", ".ppm")


def of_splits(
    splits: tuple[Source, Source | None], given: tuple[float, float] | None
) -> tuple[Source, Source | None]:
    """Both splits with one `grey_range`."""
    if given is None:
        grey_range, notes = decode.grey_range_of(_sampled(splits))
    else:
        grey_range, notes = greys.Range(given, given), ()
    return tuple(
        split
        and dataclasses.replace(
            split,
            read=functools.partial(_read_in_range, split.read, grey_range),
            grey_range=grey_range,
            notes=split.notes + notes,
        )
        for split in splits
    )


def _sampled(splits: tuple[Source, Source | None]) -> Iterator[bytes]:
    """Some images of each split, as they are kept."""
    for split in filter(None, splits):
        for i in _sample(split):
            try:
                yield split.read(i)[0]
            except OSError:  # met, named and replaced when it is used
                continue


def _sample(source: Source) -> list[int]:
    """Images spread evenly over a source, most of them by names of files that may be wide."""
    some = _spread(range(len(source)), _LOOKED_AT)
    likely = [i for i in some if source.name(i).lower().endswith(_MAY_BE_WIDE)]
    rest = sorted(set(some) - set(likely))
    return _spread(likely, _GREY_SAMPLE) + _spread(rest, _GREY_SAMPLE // 4)


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    count = len(numbers)
    return [numbers[i] for i in np.linspace(0, count - 1, min(count, most)).round().astype(int)]


def _read_in_range(read, grey_range: greys.Range, i: int):
    data, label = read(i)
    return decode.narrowed(data, grey_range), label
