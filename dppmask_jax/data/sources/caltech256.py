"""caltech256:PATH, the layout of Caltech-256.

PATH is the folder `256_ObjectCategories`, or the one that holds it. A class is a folder NNN.NAME,
its images are NNN.NAME/NNN_IIII.jpg; other files in there, such as a folder of somebody's copies in
056.dog, do not count. 257.clutter is left out: 29,780 images of 256 classes remain.

There is no split of its own: `val_fraction` is held out, by hashes of the paths. Of all images the
share is exact (at .2 the 5,956 of 29,780 that paired overlay is tested on), and of each class to
within one image. The overlay paper does not say how its images were split; this is ours.
"""

from __future__ import annotations

import os
import re

import numpy as np

from dppmask_jax.data.sources.annotated import names_in
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.holdout import held_out_of_all
from dppmask_jax.data.sources.image_files import check_readable, file_source, from_names
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

INSIDE = "256_ObjectCategories"
NUM_CLASSES, NUM_IMAGES = 256, 29_780  # without clutter
_CLASS = re.compile(r"(\d{3})\..+")
_CLUTTER = "clutter"


def open_caltech256(path: str, val_fraction: float) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a folder of the layout above.

    Raises:
      InputError: there is no such folder, no class, a class without images, or no image that can be
        read.
    """
    root = os.path.join(path, INSIDE)
    root = root if os.path.isdir(root) else path
    folders = [name for name in names_in(root) if os.path.isdir(os.path.join(root, name))]
    classes = [name for name in folders if _CLASS.fullmatch(name)]
    clutter = [name for name in classes if name.partition(".")[2] == _CLUTTER]
    classes = sorted(set(classes) - set(clutter))
    if not classes:
        raise InputError(
            f"{root} has no folder such as 001.ak47; caltech256:PATH is {INSIDE} or the folder "
            "that holds it"
        )
    names, labels = _images(root, classes)
    files = from_names(root, classes, labels, names)
    check_readable(files)
    keys = [os.fsencode(files.relative(i)) for i in range(files.size)]
    out = held_out_of_all(keys, labels, val_fraction)
    notes = _notes(len(classes), files.size, clutter)

    def split(chosen: np.ndarray) -> Source:
        rows = np.flatnonzero(chosen).astype(np.int32)
        return file_source(
            files, rows, labels=labels[rows], class_names=tuple(classes), notes=notes
        )

    return split(~out), split(out) if out.any() else None


def _images(root: str, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """(names of all images, their classes (n,) int32)."""
    names, labels = [], []
    for label, name in enumerate(classes):
        wanted = re.compile(rf"{_CLASS.fullmatch(name).group(1)}_\d{{4}}\.jpg", re.IGNORECASE)
        found = sorted(filter(wanted.fullmatch, names_in(os.path.join(root, name))))
        if not found:
            raise InputError(
                f"{os.path.join(root, name)} has no image such as {name[:3]}_0001.jpg; add some or "
                "take the folder out"
            )
        names += found
        labels += [label] * len(found)
    return names, np.array(labels, np.int32)


def _notes(num_classes: int, num_images: int, clutter: list[str]) -> tuple[str, ...]:
    notes = tuple(f"{name} is left out" for name in clutter)
    if (num_classes, num_images) == (NUM_CLASSES, NUM_IMAGES):
        return notes
    return (
        *notes,
        f"{count(num_images, 'image')} of {count(num_classes, 'class', 'classes')}; all of "
        f"Caltech-256 without clutter is {NUM_IMAGES:,} of {NUM_CLASSES}",
    )
