"""Images with a class for each pixel, in the layouts of two published data sets.

ade20k:ROOT, the layout of ADEChallengeData2016 (SceneParse150, arXiv 1608.05442): images in
ROOT/images/training and validation, maps of the same names in ROOT/annotations. A map says 0 for
"other", which is no class, and 1 to 150 for the classes.

voc:ROOT, the layout of PASCAL VOC (VOC2012): images in ROOT/JPEGImages, maps in
ROOT/SegmentationClass, the names of both in ROOT/ImageSets/Segmentation/train.txt and val.txt. A
map says 0 for background, 1 to 20 for the classes and 255 for their outlines, which are no class.

In "segments" classes count from 0, and `segments.IGNORED` is no class. The maps need only be there
for what reads them.
"""

from __future__ import annotations

import functools
import importlib.resources
import os

import numpy as np

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import segments
from dppmask_jax.data.sources.annotated import inside, names_in
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import (
    Files,
    check_present,
    check_readable,
    file_source,
    from_paths,
    read_file,
)
from dppmask_jax.errors import InputError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip
_UNLABELLED = "its labels are of pixels"
_IMAGES = (".jpg", ".jpeg", ".png")


def ade20k_classes() -> tuple[str, ...]:
    """The 150 classes of SceneParse150, the first word for each."""
    path = importlib.resources.files("dppmask_jax.data.sources") / "ade20k.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def open_ade20k(root: str) -> tuple[Source, Source]:
    """(training split, validation split) of a folder in ADE20K's layout.

    Raises:
      InputError: a missing folder, or one without a readable image.
    """
    return _ade20k(root, "training"), _ade20k(root, "validation")


def _ade20k(root: str, split: str) -> Source:
    folder = os.path.join(root, "images", split)
    found = [name for name in names_in(folder) if name.lower().endswith(_IMAGES)]
    if not found:
        raise InputError(f"{folder} holds no image (.jpg); unpack ADEChallengeData2016 there")
    images = [os.path.join("images", split, name) for name in found]
    stems = [os.path.splitext(name)[0] for name in found]
    maps = [os.path.join("annotations", split, f"{stem}.png") for stem in stems]
    return _source(root, images, maps, folder, _from_one, ade20k_classes())


def _from_one(values: np.ndarray) -> np.ndarray:
    """A map whose classes begin at 1: one less, and 0 becomes IGNORED."""
    lower = values.astype(np.int32) - 1
    return np.where(lower < 0, segments.IGNORED, lower).astype(values.dtype)


def open_voc(root: str) -> tuple[Source, Source]:
    """(training split, validation split) of a folder in VOC's layout.

    Raises:
      InputError: a missing or empty list of a split, or a missing or unreadable image.
    """
    return _voc(root, "train"), _voc(root, "val")


def _voc(root: str, split: str) -> Source:
    path = os.path.join(root, "ImageSets", "Segmentation", f"{split}.txt")
    try:
        with open(path, encoding="utf-8") as file:
            stems = file.read().split()
        images, maps = (
            [inside(folder, f"{stem}.{end}") for stem in stems]
            for folder, end in (("JPEGImages", "jpg"), ("SegmentationClass", "png"))
        )
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the folder of one year, such as "
            "VOCdevkit/VOC2012"
        ) from error
    except ValueError as error:  # UnicodeDecodeError too
        raise InputError(f"{path} is no list of images: {error}") from error
    if not stems:
        raise InputError(f"{path} names no image; it needs a name on each line")
    return _source(root, images, maps, path, _as_it_is, VOC_CLASSES)


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values


def _source(root, images, maps, named_by: str, classes, names) -> Source:
    files, map_files = from_paths(root, images), from_paths(root, maps)
    check_present(files, named_by)
    check_readable(files)
    return file_source(
        files,
        np.arange(files.size, dtype=np.int32),
        unlabelled_because=_UNLABELLED,
        extras=functools.partial(_segments, map_files, classes),
        check_extras=functools.partial(check_present, map_files, named_by),
        segment_names=names,
        ignored_segment=segments.IGNORED,
    )


def _segments(files: Files, classes, i: int) -> dict[str, np.ndarray]:
    return {"segments": classes(decode.indices(read_file(files.path(i))))}
