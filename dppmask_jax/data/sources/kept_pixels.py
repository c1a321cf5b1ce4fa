"""Sources whose images keep their pixels, see `pixel_format`."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from dppmask_jax.data.images import decode, kept
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import why
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import Pixels

_SAMPLE = 16  # images of a split that are looked at before any work starts


def of_splits(splits: tuple[Source, Source | None], pixels: Pixels) -> tuple[Source, Source | None]:
    """Both splits with images as their files have them.

    Raises:
      InputError: one of a sample is of other pixels, or none of it can be read.
    """
    changed = tuple(
        split
        and dataclasses.replace(
            split, read=functools.partial(_read, split.read, pixels), pixels=pixels
        )
        for split in splits
    )
    for split in filter(None, changed):
        _check(split)
    return changed


def sampled(source: Source, most: int) -> list[int]:
    """Images spread evenly over a source."""
    count = len(source)
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def _read(read, pixels: Pixels, i: int):
    data, label = read(i)
    return kept.read(data, pixels), label


def _check(source: Source) -> None:
    readable, first = 0, ""
    for i in sampled(source, _SAMPLE):
        try:
            source.read(i)
            readable += 1
        except kept.Mismatch as error:
            raise InputError(one_line(f"{source.name(i)}: {error}")) from error
        except (OSError, decode.DecodeError) as error:  # met, named and replaced when it is used
            first = first or f"{source.name(i)}: {why(error)}"
    if not readable:
        raise InputError(one_line(f"no image of a sample can be read; {first}"))
