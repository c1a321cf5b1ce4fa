"""csv:FILE: a table of images in UTF-8, a row for each.

Values are separated by commas, semicolons, tabs or vertical bars; the first row names the columns.
The names path, split, label, mask and segments may have capitals.

  path    (or one of PATH_NAMES) relative to the file's folder, or absolute: a CSV file is the
          user's own and may name any image on the machine.
  split   values that start with "train" are for training, others for validation; those for tests
          are left out where some are called val. Without the column, `val_fraction` of each label
          is held out.
  label   numbers or names; the classes are the different ones in ascending order.
  mask    the path of a greyscale foreground mask, or nothing. The files need only be there for what
          reads them.
  segments  the path of a map of classes, or nothing: an image of a palette or of grey values that
          are the numbers of classes from 0 up, 255 for no class. As for masks.

Every other column whose values are all 0 or 1 is a target of that name; others are ignored.
"""

from __future__ import annotations

import csv
import functools
import os
import re

import numpy as np

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import classes, segments
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.folder import TEST, TRAIN, VALIDATION
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.data.sources.image_files import (
    Files,
    check_present,
    check_readable,
    file_source,
    from_paths,
    read_file,
)
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels

PATH_NAMES = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path",
    "image_file", "image_name", "img", "img_path",
)  # fmt: skip
_READERS = {"mask": lambda data: decode.decode(data)[..., 0], "segments": decode.indices}
_COLUMNS = ("path", "split", "label", *_READERS)
_DELIMITERS = ",;\t|"


def open_csv(path: str, val_fraction: float, pixels: Pixels = RGB) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a CSV file of the format above.

    Raises:
      InputError: a missing or broken file, missing images, a label that no training image has.
    """
    columns = _columns_of(path)
    root = os.path.dirname(path)
    files = from_paths(root, columns["path"])
    check_present(files, path)
    check_readable(files, pixels)
    labels, class_names, because = _labels(columns, path)
    target_names = tuple(
        name
        for name, values in columns.items()
        if name not in _COLUMNS and set(values) <= {"0", "1"}
    )
    targets = np.array([columns[name] for name in target_names]).T.astype(np.uint8)
    train, val, notes = _splits(columns, labels, val_fraction, path)
    maps = {
        name: from_paths(root, columns[name]) for name in _READERS if any(columns.get(name, []))
    }

    def source(rows):
        extras = {}
        if maps:
            extras["extras"] = functools.partial(_maps_of, maps, rows)
            named = [columns[name][row] for name in maps for row in rows if columns[name][row]]
            extras["check_extras"] = functools.partial(check_present, from_paths(root, named), path)
        if "segments" in maps:
            extras["ignored_segment"] = segments.IGNORED
        return file_source(
            files,
            rows,
            labels=labels[rows] if class_names else None,
            class_names=class_names,
            unlabelled_because=because,
            targets=targets[rows] if target_names else None,
            target_names=target_names,
            notes=notes,
            **extras,
        )

    untrained = np.setdiff1d(labels[val], labels[train])
    if class_names and untrained.size:
        raise InputError(
            f"{path}: no training image has the label {class_names[untrained[0]]!r}, which some "
            "for validation have; add one, or take these out"
        )
    return source(train), source(val) if val.size else None


def _columns_of(path: str) -> dict[str, list[str]]:
    """The columns by name, without spaces around values; the names of _COLUMNS in lower case."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _header([name.strip() for name in next(reader, [])], path)
            rows = [[value.strip() for value in row] for row in _complete(reader, header, path)]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not rows:
        raise InputError(f"{path} names no image; it needs a row for each below the header")
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def _delimiter(header: str) -> str:
    # csv.Sniffer takes the comma in "path;label;red, round".
    return max(_DELIMITERS, key=header.count)


def _header(header: list[str], path: str) -> list[str]:
    """The names of the columns, where _COLUMNS are called by these names."""
    plain = [re.sub(r"[\s_-]+", "_", name.lower()) for name in header]
    header = [low if low in _COLUMNS else name for low, name in zip(plain, header, strict=True)]
    if "path" not in header:
        named = [name for low, name in zip(plain, header, strict=True) if low in PATH_NAMES]
        if len(named) != 1:
            several = f"{len(named)} columns that may be it ({', '.join(named)})"
            raise InputError(
                f"{path} has no column 'path', only "
                f"{several if named else ', '.join(header) or 'none'}; its first line must name "
                "the columns, and one of them be called path"
            )
        header = ["path" if name == named[0] else name for name in header]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path} has two columns {twice!r}; rename one")
    return header


def _complete(reader, header: list[str], path: str):
    for row in reader:
        if row and len(row) != len(header):
            raise InputError(
                f"{path} line {reader.line_num} has {len(row)} values for {len(header)} columns"
            )
        if row:
            yield row


def _labels(columns, path: str) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(n,) int32 labels, class names, and why there are none; labels 0 for all then."""
    if "label" not in columns:
        return _no_labels(columns, f"{path} has no column 'label'")
    values = columns["label"]
    if "" in values:
        nameless = columns["path"][values.index("")]
        return _no_labels(columns, f"image {nameless} in {path} has no label")
    if len(set(values)) < 2:
        return _no_labels(columns, f"{path} has one label only")
    return *classes.numbered(values), ""


def _no_labels(columns, because: str):
    return np.zeros(len(columns["path"]), np.int32), (), because


def _splits(columns, labels: np.ndarray, val_fraction: float, path: str):
    """(rows for training, rows for validation, notes)."""
    if "split" not in columns:
        keys = [os.fsencode(name) for name in columns["path"]]
        val = held_out(keys, labels, val_fraction)
        return *map(_rows, (~val, val)), _looks_like_a_split(columns, path)
    values = [value.lower() for value in columns["split"]]
    train = np.array([value.startswith("train") for value in values])
    test, validation = (
        np.array([kind.fullmatch(value) is not None for value in values])
        for kind in (TEST, VALIDATION)
    )
    if not train.any():
        raise InputError(f"{path} has no training image; write train into the column split")
    if not validation.any() or not test.any():
        return _rows(train), _rows(~train), ()
    note = f"{test.sum():,} images for testing in {path} are not used: others are for validation"
    return _rows(train), _rows(~train & ~test), (note,)


def _looks_like_a_split(columns, path: str) -> tuple[str, ...]:
    kinds = (TRAIN, VALIDATION, TEST)
    for name, values in columns.items():
        different = set(values)
        if len(different) > 1 and all(any(k.fullmatch(v) for k in kinds) for v in different):
            return (
                f"the column {name!r} of {path} looks like splits, and is not used: all images are "
                "taken together; call it split",
            )
    return ()


def _rows(chosen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen).astype(np.int32)


def _maps_of(maps: dict[str, Files], rows, i: int) -> dict[str, np.ndarray]:
    row = int(rows[i])
    given = {name: files.path(row) for name, files in maps.items() if files.base_name(row)}
    return {name: _READERS[name](read_file(path)) for name, path in given.items()}
