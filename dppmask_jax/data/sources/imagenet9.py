"""ImageNet-9: its folders, and which of its classes a class of ImageNet belongs to.

The data set of the background challenge (Xiao et al., arXiv 2006.09994). A root holds one folder
for each variant, ROOT/VARIANT/val/CLASS/*.JPEG; the classes are the class folders in sorted order
(00_dog, 01_bird, 02_wheeled vehicle, 03_reptile, 04_carnivore, 05_insect, 06_musical instrument,
07_primate, 08_fish). mixed_backgrounds.write makes the same layout of other data.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
from absl import logging

from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.folder import is_image_name
from dppmask_jax.data.sources.image_files import check_readable, file_source, from_names
from dppmask_jax.errors import InputError

VARIANTS = (
    "original",
    "only_fg",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
)


def open_variants(root: str) -> dict[str, Source]:
    """Opens the variants below a folder; other folders, such as fg_mask, do not count.

    Returns:
      Of each of VARIANTS that is there, in that order, its images and labels.

    Raises:
      InputError: there is no variant, one lacks its folder val, class folders or images, or two
        have different classes.
    """
    root = os.path.expanduser(root)
    names = [name for name in VARIANTS if os.path.isdir(os.path.join(root, name))]
    if not names:
        raise InputError(
            f"{root} has none of the folders {', '.join(VARIANTS)}; give the folder that holds "
            "VARIANT/val/CLASS/*.JPEG, as in ImageNet-9"
        )
    variants = {name: _open(os.path.join(root, name, "val")) for name in names}
    first = variants[names[0]].class_names
    for name, variant in variants.items():
        if variant.class_names != first:
            (odd, *_) = sorted(set(variant.class_names) ^ set(first))
            raise InputError(
                f"{names[0]} and {name} in {root} do not have the same class folders: "
                f"{odd!r} is in one only"
            )
    return variants


def in9_of_model_class(
    classes: int | Sequence[str], kind: str, *, log: Callable[[str], None] = logging.warning
) -> np.ndarray:
    """Which class of the challenge each class of a model counts as.

    Args:
      classes: of the model: how many, or their names (needed for "wnid").
      kind: what they are. "imagenet1k": the 1000 of ImageNet, by number. "imagenet100": those of
        imagenet100_map.csv, by number. "wnid": any classes of ImageNet named by WordNet id, such
        as n01440764. "same": the classes of the test themselves.
      log: called with one line where names of "wnid" are not ImageNet's; these count as none.

    Returns:
      (C,) int32: class of the test, -1 for none. Except for "same", these are those of ImageNet-9.

    Raises:
      InputError: an unknown kind, one that does not go with the number or names of the classes, or
        "wnid" without a single known name.
    """
    names = () if isinstance(classes, int) else tuple(classes)
    count = classes if isinstance(classes, int) else len(names)
    if kind == "same":
        return np.arange(count, dtype=np.int32)
    if kind == "wnid":
        return _of_wnids(names, log)
    read = {"imagenet1k": _of_imagenet1k, "imagenet100": _of_imagenet100}
    if kind not in read:
        raise InputError(
            f"unknown kind of classes {kind!r}; use imagenet1k, imagenet100, wnid or same"
        )
    in9 = read[kind]()
    if count != len(in9):
        raise InputError(
            f"the model has {count} classes, {kind} has {len(in9)}; say wnid if they are named by "
            "WordNet ids, or same if they are the test's"
        )
    return in9


def _of_imagenet1k() -> np.ndarray:
    in9_of_index = json.loads(_shipped("in9.json"))
    return np.array([in9_of_index[str(index)] for index in range(1000)], np.int32)


def _of_imagenet100() -> np.ndarray:
    rows = csv.DictReader(_shipped("imagenet100_map.csv").splitlines())
    in9_of_label = {int(row["in100_label"]): int(row["in9_class"]) for row in rows}
    return np.array([in9_of_label[label] for label in range(len(in9_of_label))], np.int32)


def _of_wnids(names: Sequence[str], log: Callable[[str], None]) -> np.ndarray:
    wnids = _shipped("imagenet1k_wnids.txt").split()
    in9_of_wnid = dict(zip(wnids, _of_imagenet1k(), strict=True))
    unknown = [name for name in names if name not in in9_of_wnid]
    if len(unknown) == len(names):
        example = f", such as {unknown[0]!r}," if unknown else ""
        raise InputError(
            f"none of the model's {len(names)} classes{example} is named by a WordNet id of "
            "ImageNet; say imagenet1k, imagenet100 or same"
        )
    if unknown:
        log(
            f"{len(unknown)} of the model's {len(names)} classes are not ImageNet's and count as "
            f"wrong, such as {unknown[0]!r}"
        )
    return np.array([in9_of_wnid.get(name, -1) for name in names], np.int32)


def _shipped(name: str) -> str:
    return resources.files("dppmask_jax.data.sources").joinpath(name).read_text(encoding="utf-8")


def _open(folder: str) -> Source:
    classes = _listed(folder, lambda entry: entry.is_dir())
    if not classes:
        raise InputError(f"{folder} has no class folders; it needs CLASS/*.JPEG, as in ImageNet-9")
    names, labels = [], []
    for label, name in enumerate(classes):
        images = _listed(os.path.join(folder, name), _is_image)
        if not images:
            raise InputError(f"{os.path.join(folder, name)} has no image; add some or remove it")
        names.extend(images)
        labels.extend([label] * len(images))
    files = from_names(folder, classes, labels, names)
    check_readable(files)
    return file_source(
        files,
        np.arange(files.size),
        labels=np.array(labels, np.int32),
        class_names=tuple(classes),
    )


def _is_image(entry: os.DirEntry) -> bool:
    return is_image_name(entry.name)


def _listed(folder: str, counts: Callable[[os.DirEntry], bool]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            kept = (entry for entry in entries if not entry.name.startswith("."))
            return sorted(entry.name for entry in kept if counts(entry))
    except OSError as error:
        raise InputError(
            f"cannot list {folder}: {error.strerror}; ImageNet-9 is VARIANT/val/CLASS/*.JPEG"
        ) from error
