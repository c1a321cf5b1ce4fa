"""Data sets whose annotation file says what is in each image.

coco:ROOT   the layout of COCO (arXiv 1405.0312): ROOT/annotations/instances_train2014.json and
            instances_val2014.json, images in ROOT/train2014 and ROOT/val2014; or another year,
            the newest that has both files. The targets are the categories by ascending id: 1 if
            the image has any instance, also one of a crowd. Images without an annotation are
            left out.
clevr:ROOT  CLEVR v1.0 (arXiv 1612.06890): ROOT/scenes/CLEVR_train_scenes.json and
            CLEVR_val_scenes.json, images in ROOT/images/train and ROOT/images/val. Target
            colour + 8 * shape says whether an object of that colour and shape is there, as in
            ADIOS (arXiv 2201.13100). With one file of scenes only, in ROOT/scenes, 30 % of its
            images are for validation, chosen by their names; they lie in ROOT/images/SPLIT for
            CLEVR_SPLIT_scenes.json if there is that folder, else in ROOT/images.
csv:FILE    a row an image, in UTF-8, with commas, semicolons, tabs or vertical bars between the
            values; the first row names the columns. `path` (or one of PATH_NAMES), relative to the
            file's folder, or absolute (a CSV file is your own: it may name any image on the
            machine); `split`, where what starts with "train" is for training and the rest for
            validation, without rows for testing if there are some called val (without the
            column, `val_fraction` of each label is held out); `label`, numbers or names, of which
            the classes are the different ones in ascending order; `mask`, the path of a greyscale
            foreground mask, may be empty, and the files need only be there for a task that reads
            them. Every other column whose values are all 0 or 1 is a target of that name; further
            columns do not matter. These four names may have capitals.
"""

from __future__ import annotations

import collections
import csv
import functools
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax.data.images import decode
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

CLEVR_COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
CLEVR_SHAPES = ("cube", "sphere", "cylinder")
CLEVR_TARGETS = tuple(f"{color} {shape}" for shape in CLEVR_SHAPES for color in CLEVR_COLORS)
PATH_NAMES = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path",
    "image_file", "image_name", "img", "img_path",
)  # fmt: skip
CLEVR_HELD_OUT = 0.3  # where there is one file of scenes; ADIOS's share
_SEVERAL = "the images have several labels each"


class _Annotated(NamedTuple):
    """Images that an annotation file names."""

    paths: list[str]  # relative to the root
    targets: np.ndarray  # (n, C) uint8
    names: tuple[str, ...]


def _source(root: str, annotated: _Annotated, named_by: str, chosen=slice(None)) -> Source:
    if not annotated.paths:
        raise InputError(f"{named_by} annotates no image; take a complete file")
    files = from_paths(root, annotated.paths)
    check_present(files, named_by)
    check_readable(files)
    return file_source(
        files,
        np.arange(files.size, dtype=np.int32)[chosen],
        unlabelled_because=_SEVERAL,
        targets=annotated.targets[chosen],
        target_names=annotated.names,
    )


def _load(path: str, **options) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, **options)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; download it again") from error


# COCO.


def open_coco(root: str) -> tuple[Source, Source]:
    """(training split, validation split) of a folder in COCO's layout.

    Raises:
      InputError: a missing, broken or empty annotation file, or missing images.
    """
    folder = os.path.join(root, "annotations")
    year = _newest_year(folder)
    splits, names = {}, {}
    for split in ("train", "val"):
        path = os.path.join(folder, f"instances_{split}{year}.json")
        # The outlines are nearly all of the file, and no use.
        document = _load(path, object_hook=_without_outline)
        try:
            annotated = _coco(document, f"{split}{year}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} has not the format of COCO's instances ({_words(error)}); "
                "download it again"
            ) from error
        splits[split], names[split] = _source(root, annotated, path), annotated.names
    if names["train"] != names["val"]:
        raise InputError(
            f"instances_train{year}.json and _val{year}.json in {folder} differ in "
            "their categories; take two files that go together"
        )
    return splits["train"], splits["val"]


def _newest_year(folder: str) -> str:
    found = [re.fullmatch(r"instances_(train|val)(\d+)\.json", name) for name in _names_in(folder)]
    splits_of = collections.Counter(match[2] for match in found if match)
    years = [year for year, splits in splits_of.items() if splits == 2]
    if not years:
        raise InputError(
            f"{folder} lacks instances_trainYEAR.json and instances_valYEAR.json of one year; "
            "unpack COCO's annotations there"
        )
    return max(years)


def _names_in(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def _without_outline(thing: dict) -> dict:
    thing.pop("segmentation", None)
    return thing


def _coco(document, folder: str) -> _Annotated:
    categories = sorted((category["id"], category["name"]) for category in document["categories"])
    column_of = {number: column for column, (number, _) in enumerate(categories)}
    row_of = {image["id"]: row for row, image in enumerate(document["images"])}
    targets = np.zeros((len(document["images"]), len(categories)), np.uint8)
    for annotation in document["annotations"]:
        targets[row_of[annotation["image_id"]], column_of[annotation["category_id"]]] = 1
    annotated = targets.any(axis=1)
    paths = [
        _inside(folder, image["file_name"])
        for image, kept in zip(document["images"], annotated, strict=True)
        if kept
    ]
    return _Annotated(paths, targets[annotated], tuple(name for _, name in categories))


def _inside(folder: str, name: str) -> str:
    """The path of a file that a downloaded annotation names: it may not lead out of the folder.

    Raises:
      ValueError: it does, or can be no file's name.
    """
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name!r} names a file outside of the folder {folder}")
    os.fsencode(name)
    return os.path.join(folder, name)


def _words(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


# CLEVR.


def open_clevr(root: str) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a folder in CLEVR's layout.

    Raises:
      InputError: a missing, broken or empty scene file, or missing images.
    """
    folder = os.path.join(root, "scenes")
    files = [name for name in _names_in(folder) if name.endswith(".json")]
    pair = [f"CLEVR_{split}_scenes.json" for split in ("train", "val")]
    if set(pair) <= set(files):
        train, val = (_clevr_file(root, name) for name in pair)
        return _source(root, *train), _source(root, *val)
    if len(files) != 1:
        raise InputError(
            f"{folder} has neither {pair[0]} and {pair[1]} nor a single JSON file; "
            "unpack CLEVR v1.0 there"
        )
    annotated, path = _clevr_file(root, files[0])
    keys = [os.fsencode(os.path.basename(path)) for path in annotated.paths]
    out = held_out(keys, np.zeros(len(keys), np.int32), CLEVR_HELD_OUT)
    train = _source(root, annotated, path, ~out)
    return train, _source(root, annotated, path, out) if out.any() else None


def _clevr_file(root: str, name: str) -> tuple[_Annotated, str]:
    path = os.path.join(root, "scenes", name)
    split = re.fullmatch(r"CLEVR_(\w+)_scenes\.json", name)
    folder = os.path.join("images", split[1]) if split else "images"
    if not os.path.isdir(os.path.join(root, folder)):
        folder = "images"
    document = _load(path)
    try:
        return _clevr(document, folder), path
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has not the format of CLEVR's scenes ({_words(error)}); download it again"
        ) from error


def _clevr(document, folder: str) -> _Annotated:
    scenes = document["scenes"]
    targets = np.zeros((len(scenes), len(CLEVR_TARGETS)), np.uint8)
    for row, scene in enumerate(scenes):
        for thing in scene["objects"]:
            color, shape = CLEVR_COLORS.index(thing["color"]), CLEVR_SHAPES.index(thing["shape"])
            targets[row, color + len(CLEVR_COLORS) * shape] = 1
    paths = [_inside(folder, scene["image_filename"]) for scene in scenes]
    return _Annotated(paths, targets, CLEVR_TARGETS)


# CSV.


def open_csv(path: str, val_fraction: float) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a CSV file; the docstring above has the format.

    Raises:
      InputError: a missing or broken file, missing images, a label that no training image has.
    """
    columns = _read_csv(path)
    root = os.path.dirname(path)
    files = from_paths(root, columns["path"])
    check_present(files, path)
    check_readable(files)
    labels, class_names, because = _csv_labels(columns, path)
    target_names = tuple(
        name
        for name, values in columns.items()
        if name not in _CSV_COLUMNS and set(values) <= {"0", "1"}
    )
    targets = np.array([columns[name] for name in target_names]).T.astype(np.uint8)
    train, val, notes = _csv_splits(columns, labels, val_fraction, path)
    masks = None
    if any(columns.get("mask", [])):
        masks = from_paths(root, columns["mask"])

    def source(rows):
        extras = {}
        if masks is not None:
            extras["extras"] = functools.partial(_mask, files, masks, rows)
            given = [name for name in map(columns["mask"].__getitem__, rows) if name]
            extras["check_extras"] = functools.partial(check_present, from_paths(root, given), path)
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


_CSV_COLUMNS = ("path", "split", "label", "mask")
_DELIMITERS = ",;\t|"


def _read_csv(path: str) -> dict[str, list[str]]:
    """The columns by name, without spaces around the values; those of _CSV_COLUMNS as it has
    them."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _csv_header([name.strip() for name in next(reader, [])], path)
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


def _csv_header(header: list[str], path: str) -> list[str]:
    """The names of the columns, where _CSV_COLUMNS are called by these names."""
    plain = [re.sub(r"[\s_-]+", "_", name.lower()) for name in header]
    header = [low if low in _CSV_COLUMNS else name for low, name in zip(plain, header, strict=True)]
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


def _csv_labels(columns, path: str) -> tuple[np.ndarray, tuple[str, ...], str]:
    """(n,) int32 labels, class names, and why there are none; labels 0 for all then."""
    if "label" not in columns:
        return _no_labels(columns, f"{path} has no column 'label'")
    values = columns["label"]
    if "" in values:
        nameless = columns["path"][values.index("")]
        return _no_labels(columns, f"image {nameless} in {path} has no label")
    different = set(values)
    if len(different) < 2:
        return _no_labels(columns, f"{path} has one label only")
    numbers = all(re.fullmatch(r"\d+", value) for value in different)
    names = sorted(different, key=int if numbers else None)
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[value] for value in values], np.int32), tuple(names), ""


def _no_labels(columns, because: str):
    return np.zeros(len(columns["path"]), np.int32), (), because


def _csv_splits(columns, labels: np.ndarray, val_fraction: float, path: str):
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


def _mask(files: Files, masks: Files, rows, i: int) -> dict[str, np.ndarray]:
    row = int(rows[i])
    if not masks.base_name(row):
        return {}
    mask = decode.decode(read_file(masks.path(row)))[..., 0]
    image = decode.open_image(read_file(files.path(row)))
    width, height = image.size if decode.orientation(image) < 5 else image.size[::-1]
    if mask.shape != (height, width):
        raise InputError(
            f"the mask {masks.path(row)} has {mask.shape[1]} x {mask.shape[0]} pixels, its image "
            f"{width} x {height}; they must have one size"
        )
    return {"mask": mask}
