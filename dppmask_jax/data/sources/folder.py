"""Folders of images as a data set: which files are images, which are for validation, and their
classes.

Files count as images by their extension (EXTENSIONS, in upper or lower case), whatever is in them:
what cannot be read is met, named and replaced while training. Hidden files and folders do not
count; a folder called x.jpg is a folder. Other files are ignored, and a note counts them.

Splits: where PATH has folders for training and for validation, they are used: `train` and `val`, or
other names that mean it (TRAIN, VALIDATION; Train, validation, train2017, the parts train.X1,
train.X2). A folder for testing stands in for one for validation that is missing, unless its images
lack the labels that those for training have. Without a folder for validation, `val_fraction` of the
images for training is held out, which depends on their relative paths alone: of each class this
share, rounded up, but never all. A note says which folders are used where they are not train and
val, and what lies beside them unused.

Classes: the folders of a split, in alphabetical order, if each image lies exactly one folder below
the split's root and there are two such folders; or CLASS/NAME, if NAME is the same for all. Images
directly in the root are left out, with a note, if they are fewer than a class has on average.
Otherwise the split is unlabelled.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.images import decode, medical
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.data.sources.image_files import Files, check_readable, file_source
from dppmask_jax.data.sources.trees import Listed, Tree, on_disk
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels
from dppmask_jax.words import count

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm",
) + (".avif",) * decode.READS_AVIF  # fmt: skip
KEPT_EXTENSIONS = (".npy", *medical.DICOM_NAMES, *medical.NIFTI_NAMES)  # where pixels are kept
_NAMED = 5  # kinds of files, or folders, that a note lists

_OF_A_SET = r"([._ -]?(set|\d{4}))?(\.x\d*)?"
TRAIN = re.compile(rf"(train|training){_OF_A_SET}", re.IGNORECASE)
VALIDATION = re.compile(rf"(val|valid|validation){_OF_A_SET}", re.IGNORECASE)
TEST = re.compile(rf"(test|testing){_OF_A_SET}", re.IGNORECASE)
_KEPT_BACK = re.compile(rf"({VALIDATION.pattern})|({TEST.pattern})", re.IGNORECASE)
# Names that hint at a split and are not taken for one: train_images, trainA, photos-val.
_LIKE_TRAIN = re.compile(r"(^|[^A-Za-z])([Tt]rain(ing)?|TRAIN(ING)?)(?![a-z])")
_LIKE_KEPT_BACK = re.compile(
    r"(^|[^A-Za-z])([Vv]al(id(ation)?)?|VAL(ID(ATION)?)?|[Tt]est(ing)?|TEST(ING)?)(?![a-z])"
)
_PART = re.compile(r".*\.x\d*", re.IGNORECASE)


def open_folder(
    path: str, val_fraction: float, pixels: Pixels = RGB
) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a folder; the docstring above has the rules.

    Raises:
      InputError: there is no such folder, no image, or none that can be read; it is not plain which
        folders are for training and which for validation; or some classes of the validation split
        have no training image.
    """
    if os.path.isfile(path) and path.lower().endswith((".tar", ".zip")):
        raise InputError(f"{path} is a file; give data.source=archive:{path}")
    if not os.path.isdir(path):
        raise InputError(f"there is no folder {path}; give data.source=folder:PATH an existing one")
    return open_tree(on_disk(path), val_fraction, pixels)


def open_tree(tree: Tree, val_fraction: float, pixels: Pixels) -> tuple[Source, Source | None]:
    """As open_folder, of a folder that need not be on disk."""
    chosen = _choose_splits(tree, pixels)
    splits, notes = _two_folders(tree, chosen, pixels) if chosen.val else (None, [])
    if splits is None:
        chosen = chosen._replace(val=())
        splits, more = _held_out(tree, chosen.train, val_fraction, pixels)
        notes += more
    notes = (*_notes_on(tree.path, chosen), *notes)
    return tuple(split and dataclasses.replace(split, notes=notes) for split in splits)


def is_image_name(name: str, pixels: Pixels = RGB) -> bool:
    """Whether a file counts as an image, by its extension; where pixels are kept, arrays and
    medical images do too."""
    name = name.lower()
    if os.path.splitext(name)[1] in EXTENSIONS:
        return True
    return pixels.kept and name.endswith(KEPT_EXTENSIONS)


# Splits.


class _Splits(NamedTuple):
    """What is in a folder, and what of it is used."""

    train: tuple[str, ...]  # folders; () is all of it
    val: tuple[str, ...]  # folders; () is none
    folders: list[str]  # that are there
    images: int  # beside them


def _choose_splits(tree: Tree, pixels: Pixels) -> _Splits:
    path = tree.path
    _, folders, files = _listed(tree, "")
    images = sum(is_image_name(name, pixels) for name in files)
    train, val = _meant(path, folders, TRAIN, "train"), _meant(path, folders, VALIDATION, "val")
    if not train and val == ("val",):
        raise InputError(f"{path} has a folder val but no folder train; add it")
    # A folder Train among others may be a class, where nothing is for validation.
    beside = [name for name in folders if name not in train and not TEST.fullmatch(name)]
    if not train or (train != ("train",) and not val and beside):
        return _Splits((), (), folders, images)
    return _Splits(train, val or _meant(path, folders, TEST, "test"), folders, images)


def _notes_on(path: str, chosen: _Splits) -> list[str]:
    train, val = chosen.train, chosen.val
    if not train:
        alike = [f for f in chosen.folders if TRAIN.fullmatch(f) or _KEPT_BACK.fullmatch(f)]
        missing = "validation" if any(map(TRAIN.fullmatch, alike)) else "training"
        note = (
            f"all folders of {path} are taken together, {_list(alike)} too: none is for {missing}"
        )
        return [note] if alike else _hints(path, chosen.folders)
    notes = []
    if train != ("train",) or val not in ((), ("val",)):
        for_val = f", for validation from {_list(val)}" if val else ""
        notes.append(f"training images from {_list(train)} in {path}{for_val}")
    unused = [name for name in chosen.folders if name not in (*train, *val)]
    parts = [_list(unused)] * bool(unused) + [count(chosen.images, "image")] * bool(chosen.images)
    if parts:
        notes.append(f"not used in {path}: {' and '.join(parts)}")
    return notes


def _hints(path: str, folders: list[str]) -> list[str]:
    kinds = (_LIKE_TRAIN, _LIKE_KEPT_BACK)
    if not all(any(map(kind.search, folders)) for kind in kinds):
        return []
    alike = [name for name in folders if any(kind.search(name) for kind in kinds)]
    return [
        f"all folders of {path} are taken together, {_list(alike)} too: if these are for training "
        "and for validation, call them train and val"
    ]


def _listed(tree: Tree, folder: str) -> Listed:
    try:
        return tree.listed(folder)
    except OSError as error:
        raise InputError(f"cannot list {error.filename}: {error.strerror}") from error


def _meant(path: str, folders: list[str], kind: re.Pattern, plain: str) -> tuple[str, ...]:
    """The folders that are one split, by their names."""
    alike = [name for name in folders if kind.fullmatch(name)]
    if plain in alike:
        return (plain,)
    if len(alike) > 1 and not all(map(_PART.fullmatch, alike)):
        raise InputError(
            f"{path} has {_list(alike)}, any of which may be {plain}; call the right one {plain}"
        )
    return tuple(alike)


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _two_folders(tree: Tree, chosen: _Splits, pixels: Pixels):
    """((training split, validation split), notes) of two folders; (None, notes that say why) where
    that for testing lacks the labels of the other."""
    train, val = (_scan_images(tree, parts, pixels) for parts in (chosen.train, chosen.val))
    classes, val_classes = _classes(train, least=2), _classes(val, least=1)
    names, there = _sorted_names(classes), _sorted_names(val_classes)
    unknown = [name for name in there if name not in set(names)]
    because = val_classes.because
    if not names:
        because = because or f"the training images have no labels: {classes.because}"
    elif not because and unknown == there:
        because = f"none of its folders ({_list(there)}) is a class of {train.title}"
    if names and (because or unknown) and TEST.fullmatch(chosen.val[0]):
        because = because or f"{_list(unknown)} is no class of {train.title}"
        return None, [f"a share of the training images is for validation, since {because}"]
    if because:
        val_classes = _unlabelled(val, because)
    elif unknown:
        raise InputError(
            f"class {unknown[0]!r} is in {val.title} but not in {train.title}, so no training "
            "image shows it; add it there, or remove it here"
        )
    notes = [*train.notes, *classes.notes, *val.notes, *val_classes.notes]
    return (_source(train, classes, names), _source(val, val_classes, names)), notes


def _held_out(tree: Tree, parts: tuple[str, ...], val_fraction: float, pixels: Pixels):
    """((training split, validation split or None), notes) of one folder."""
    scanned = _scan_images(tree, parts, pixels)
    notes = [] if parts else _nested_splits(tree.path, scanned.inside)
    classes = _classes(scanned, least=2)
    names = _sorted_names(classes)
    files, rows = scanned.files, np.flatnonzero(classes.kept)
    labels = _labels(files, classes, names)[rows] if names else np.zeros(len(rows), np.int32)
    out = np.zeros(files.size, bool)
    keys = [os.fsencode(files.relative(i)) for i in rows.tolist()]
    out[rows] = held_out(keys, labels, val_fraction)
    train = _source(scanned, classes, names, ~out)
    val = _source(scanned, classes, names, out) if out.any() else None
    return (train, val), [*notes, *scanned.notes, *classes.notes]


def _nested_splits(path: str, inside: Sequence[str]) -> list[str]:
    """A note where folders further down are named as splits, all of which are trained on.

    Raises:
      InputError: all images lie in one folder that has the splits.
    """
    kinds_in = collections.defaultdict(set)
    for folder in inside:
        parts = folder.split(os.sep)
        for depth, part in enumerate(parts):
            kind = "train" if TRAIN.fullmatch(part) else "val" if _KEPT_BACK.fullmatch(part) else ""
            if kind:
                kinds_in[os.sep.join(parts[:depth])].add(kind)
    holders = sorted(folder for folder, kinds in kinds_in.items() if folder and len(kinds) == 2)
    if not holders:
        return []
    first = holders[0]
    if all(folder.startswith(first + os.sep) for folder in inside):
        raise InputError(
            f"the folders for training and validation are in {os.path.join(path, first)}; give "
            f"data.source=folder:{os.path.join(path, first)}"
        )
    return [
        f"all images below {path} are taken, those for validation or testing in {_list(holders)} "
        "as well; to keep them apart, give folder:PATH of a folder that has train and val"
    ]


# Files.


class _Scanned(NamedTuple):
    """The images below a folder, or below some folders of one split."""

    title: str  # what to call it in messages
    files: Files
    inside: tuple[str, ...]  # of each of the files' folders: where in the split it is
    notes: list[str]


def _scan_images(tree: Tree, parts: tuple[str, ...], pixels: Pixels) -> _Scanned:
    root, path = "", tree.path
    if len(parts) == 1:
        root, path, parts = parts[0], os.path.join(path, parts[0]), ()
    files, ignored = _scan(tree, root, parts, pixels)
    title = f"{path} ({_list(parts)})" if parts else path
    known = " ".join(EXTENSIONS + KEPT_EXTENSIONS * pixels.kept)
    if not files.size:
        needs = any(extension in KEPT_EXTENSIONS for extension in ignored) and not pixels.kept
        raise InputError(
            f"there is no image below {title}{_in_words(ignored)}; known are {known}"
            + "; arrays and medical images need config.data.channels" * needs
        )
    check_readable(files, pixels)
    inside = tuple(folder.partition(os.sep)[2] if parts else folder for folder in files.folders)
    notes = [f"ignored below {title}{_in_words(ignored)}; images are {known}"] * bool(ignored)
    return _Scanned(title, files, inside, notes)


def _scan(
    tree: Tree, root: str, parts: tuple[str, ...], pixels: Pixels
) -> tuple[Files, collections.Counter]:
    """All images below a folder (or those folders in it), ordered by folder, then by name; and how
    many other files there are of each extension."""
    folders, folder_of, names = [], [], []
    ignored = collections.Counter()

    def visit(relative: str, above: frozenset) -> None:
        identity, inner, files = _listed(tree, os.path.join(root, relative) if relative else root)
        if identity in above:
            return  # a symbolic link back to a folder that we are in
        before = len(names)
        images = sorted(name for name in files if is_image_name(name, pixels))
        others = (name for name in files if not is_image_name(name, pixels))
        ignored.update(os.path.splitext(name)[1].lower() for name in others)
        if images:
            folder_of.append((len(folders), len(images)))
            folders.append(relative)
            names.extend(images)
        for name in inner:
            visit(os.path.join(relative, name), above | {identity})
        name = os.path.basename(relative)
        if is_image_name(name, pixels) and len(names) == before:
            ignored[f"folder called {name}"] += 1

    for part in parts or ("",):
        visit(part, frozenset())
    numbers = np.array([number for number, _ in folder_of], np.int32)
    of_each = np.repeat(numbers, [n for _, n in folder_of])
    return tree.files(root, folders, of_each, names), ignored


def _in_words(ignored: collections.Counter) -> str:
    """ ": 40 .heic, 3 .txt", the most frequent first; "" where there are none."""
    if not ignored:
        return ""
    kinds = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{n:,} {kind or 'without an extension'}" for kind, n in kinds[:_NAMED]]
    rest = sum(n for _, n in kinds[_NAMED:])
    words += [f"{rest:,} others"] * bool(rest)
    old = " (this Pillow reads no AVIF; 11.3 does)" * (".avif" in ignored)
    return f": {', '.join(words)}{old}"


# Classes.


class _Classes(NamedTuple):
    """What a split's folders say of its images."""

    names: tuple[str, ...]  # of each folder its class, "" where its images are left out; or ()
    kept: np.ndarray  # (n,) bool, of the files
    because: str  # why there are no classes
    notes: list[str]


def _classes(scanned: _Scanned, least: int) -> _Classes:
    """The classes of a split; none where there are fewer than `least`."""
    files, inside = scanned.files, scanned.inside
    below = [folder.split(os.sep) for folder in inside if folder]
    # CLASS, or CLASS/NAME with one NAME.
    if not (all(len(parts) == 1 for parts in below) or _is_named_once(below)):
        odd = next(i for i, folder in enumerate(inside) if os.sep in folder)
        return _unlabelled(scanned, _does_not_lie(scanned, odd))
    names = tuple(folder.partition(os.sep)[0] for folder in inside)
    kept = np.array([bool(name) for name in names])[files.folder_of]
    num_classes, astray = len(set(filter(None, names))), int((~kept).sum())
    if astray and (num_classes < least or astray * num_classes >= kept.sum()):
        return _unlabelled(scanned, _does_not_lie(scanned, inside.index("")))
    if num_classes < least:
        return _unlabelled(scanned, f"{scanned.title} has one folder of images only")
    left_out = f"{astray:,} of {files.size:,} images are left out"
    where = (
        f"they lie directly in {scanned.title}, the others in folders of {num_classes:,} classes"
    )
    return _Classes(names, kept, "", [f"{left_out}: {where}"] * bool(astray))


def _is_named_once(below: list[list[str]]) -> bool:
    return all(len(parts) == 2 for parts in below) and len({parts[-1] for parts in below}) == 1


def _does_not_lie(scanned: _Scanned, folder: int) -> str:
    example = scanned.files.relative(int(np.argmax(scanned.files.folder_of == folder)))
    return f"{example} does not lie exactly one folder below {scanned.title}"


def _unlabelled(scanned: _Scanned, because: str) -> _Classes:
    return _Classes((), np.ones(scanned.files.size, bool), because, [])


def _sorted_names(classes: _Classes) -> list[str]:
    return sorted(set(filter(None, classes.names)))


def _labels(files: Files, classes: _Classes, names: Sequence[str]) -> np.ndarray:
    """(n,) int32 of all files; -1 for those that are left out."""
    number_of = {name: number for number, name in enumerate(names)}
    return np.array([number_of.get(name, -1) for name in classes.names], np.int32)[files.folder_of]


def _source(scanned: _Scanned, classes: _Classes, names: Sequence[str], chosen=True) -> Source:
    """Those of the files that are kept and chosen; `names` are the classes of the data set."""
    rows = np.flatnonzero(classes.kept & chosen).astype(np.int32)
    labelled = bool(classes.names)
    return file_source(
        scanned.files,
        rows,
        labels=_labels(scanned.files, classes, names)[rows] if labelled else None,
        class_names=tuple(names) if labelled else (),
        unlabelled_because=classes.because,
    )
