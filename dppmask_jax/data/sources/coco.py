"""coco:ROOT, the layout of COCO (arXiv 1405.0312).

ROOT/annotations/instances_train2014.json and instances_val2014.json, images in ROOT/train2014 and
ROOT/val2014; or another year, the newest that has both files. The targets are the categories by
ascending id: 1 if the image has any instance, also one of a crowd. Images without an annotation are
left out.
"""

from __future__ import annotations

import collections
import os
import re

import numpy as np

from dppmask_jax.data.sources.annotated import (
    Annotated,
    inside,
    load_json,
    names_in,
    source_of,
    words,
)
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError


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
        document = load_json(path, object_hook=_without_outline)
        try:
            annotated = _coco(document, f"{split}{year}")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} has not the format of COCO's instances ({words(error)}); download it again"
            ) from error
        splits[split], names[split] = source_of(root, annotated, path), annotated.names
    if names["train"] != names["val"]:
        raise InputError(
            f"instances_train{year}.json and _val{year}.json in {folder} differ in "
            "their categories; take two files that go together"
        )
    return splits["train"], splits["val"]


def _newest_year(folder: str) -> str:
    found = [re.fullmatch(r"instances_(train|val)(\d+)\.json", name) for name in names_in(folder)]
    splits_of = collections.Counter(match[2] for match in found if match)
    years = [year for year, splits in splits_of.items() if splits == 2]
    if not years:
        raise InputError(
            f"{folder} lacks instances_trainYEAR.json and instances_valYEAR.json of one year; "
            "unpack COCO's annotations there"
        )
    return max(years)


def _without_outline(thing: dict) -> dict:
    thing.pop("segmentation", None)
    return thing


def _coco(document, folder: str) -> Annotated:
    categories = sorted((category["id"], category["name"]) for category in document["categories"])
    column_of = {number: column for column, (number, _) in enumerate(categories)}
    row_of = {image["id"]: row for row, image in enumerate(document["images"])}
    targets = np.zeros((len(document["images"]), len(categories)), np.uint8)
    for annotation in document["annotations"]:
        targets[row_of[annotation["image_id"]], column_of[annotation["category_id"]]] = 1
    annotated = targets.any(axis=1)
    paths = [
        inside(folder, image["file_name"])
        for image, kept in zip(document["images"], annotated, strict=True)
        if kept
    ]
    return Annotated(paths, targets[annotated], tuple(name for _, name in categories))
