"""Sources whose images keep their pixels, see `pixel_format`.

A file of several slices or frames is as many images, one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.images import decode, kept, medical
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.image_files import why
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import Pixels
from dppmask_jax.words import count

_SAMPLE = 16  # images of a split that are looked at before any work starts
_THREADS = 16  # that read headers


def of_splits(splits: tuple[Source, Source | None], pixels: Pixels) -> tuple[Source, Source | None]:
    """Both splits with images as their files have them.

    Raises:
      InputError: one of a sample is of other pixels, or none of it can be read.
    """
    changed = tuple(split and _of_split(split, pixels) for split in splits)
    for split in filter(None, changed):
        _check(split)
    return changed


def _of_split(source: Source, pixels: Pixels) -> Source:
    files = [i for i in range(len(source)) if medical.is_name(source.path(i))]
    counts = np.ones(len(source), np.int64)
    with ThreadPoolExecutor(_THREADS) as threads:
        counts[files] = list(threads.map(lambda i: _count(source.path(i), pixels.axis), files))
    whole = dataclasses.replace(
        source, read=functools.partial(_read, source.read, pixels), pixels=pixels
    )
    if not files:
        return whole
    several = int(np.sum(counts > 1))
    notes = (f"{count(several, 'file')} of several images",) * bool(several)
    return _in_slices(whole, counts, np.isin(np.arange(len(source)), files), notes)


def _count(path: str, axis: int) -> int:
    """The images of a file; 1 where it cannot be read, which is met when it is."""
    try:
        return max(1, medical.count(path, axis))
    except (OSError, decode.DecodeError):
        return 1


def _in_slices(source: Source, counts: np.ndarray, by_path: np.ndarray, notes) -> Source:
    """Every slice of the files of a source as an image.

    Args:
      counts: (n,) the images of each file.
      by_path: (n,) bool, which files are read by their path.
    """
    file_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    number_of = np.arange(len(file_of)) - (np.cumsum(counts) - counts)[file_of]
    labels = None if source.labels is None else source.labels()
    slices = _Slices(source, file_of, number_of.astype(np.int32), counts, by_path, labels)
    return dataclasses.replace(
        source,
        size=len(file_of),
        read=functools.partial(_read_slice, slices),
        name=functools.partial(_name_slice, slices),
        path=functools.partial(_path_of_file, slices),
        extras=functools.partial(_extras_of_file, slices),
        labels=None if labels is None else known(labels[file_of]),
        targets=source.targets and known(source.targets()[file_of]),
        identity=functools.partial(_identity, source, counts, source.pixels.axis),
        notes=(*source.notes, *notes),
    )


class _Slices(NamedTuple):
    """Which file an image is of, and the number of its slice."""

    files: Source
    file_of: np.ndarray
    number_of: np.ndarray
    counts: np.ndarray
    by_path: np.ndarray
    labels: np.ndarray | None


def _read_slice(slices: _Slices, i: int):
    file = int(slices.file_of[i])
    if not slices.by_path[file]:
        return slices.files.read(file)
    path, pixels = slices.files.path(file), slices.files.pixels
    label = -1 if slices.labels is None else int(slices.labels[file])
    return kept.read_from(path, int(slices.number_of[i]), pixels), label


def _name_slice(slices: _Slices, i: int) -> str:
    file = int(slices.file_of[i])
    number = f" [{slices.number_of[i]}]" if slices.counts[file] > 1 else ""
    return f"{slices.files.name(file)}{number}"


def _path_of_file(slices: _Slices, i: int) -> str:
    return slices.files.path(int(slices.file_of[i]))


def _extras_of_file(slices: _Slices, i: int) -> dict:
    return slices.files.extras(int(slices.file_of[i]))


def _identity(source: Source, counts: np.ndarray, axis: int) -> str:
    return identity.of_parts(source.identity(), f"axis {axis}", " ".join(map(str, counts)))


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
