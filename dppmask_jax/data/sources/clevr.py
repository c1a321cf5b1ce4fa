"""clevr:ROOT, CLEVR v1.0 (arXiv 1612.06890).

ROOT/scenes/CLEVR_train_scenes.json and CLEVR_val_scenes.json, images in ROOT/images/train and
ROOT/images/val. Target colour + 8 * shape says whether an object of that colour and shape is there,
as in ADIOS (arXiv 2201.13100). With one file of scenes only, in ROOT/scenes, 30 % of its images are
for validation, chosen by their names; they lie in ROOT/images/SPLIT for CLEVR_SPLIT_scenes.json if
there is that folder, else in ROOT/images.
"""

from __future__ import annotations

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
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.errors import InputError

CLEVR_COLORS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
CLEVR_SHAPES = ("cube", "sphere", "cylinder")
CLEVR_TARGETS = tuple(f"{color} {shape}" for shape in CLEVR_SHAPES for color in CLEVR_COLORS)
CLEVR_HELD_OUT = 0.3  # where there is one file of scenes; ADIOS's share


def open_clevr(root: str) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a folder in CLEVR's layout.

    Raises:
      InputError: a missing, broken or empty scene file, or missing images.
    """
    folder = os.path.join(root, "scenes")
    files = [name for name in names_in(folder) if name.endswith(".json")]
    pair = [f"CLEVR_{split}_scenes.json" for split in ("train", "val")]
    if set(pair) <= set(files):
        train, val = (_clevr_file(root, name) for name in pair)
        return source_of(root, *train), source_of(root, *val)
    if len(files) != 1:
        raise InputError(
            f"{folder} has neither {pair[0]} and {pair[1]} nor a single JSON file; "
            "unpack CLEVR v1.0 there"
        )
    annotated, path = _clevr_file(root, files[0])
    keys = [os.fsencode(os.path.basename(path)) for path in annotated.paths]
    out = held_out(keys, np.zeros(len(keys), np.int32), CLEVR_HELD_OUT)
    train = source_of(root, annotated, path, ~out)
    return train, source_of(root, annotated, path, out) if out.any() else None


def _clevr_file(root: str, name: str) -> tuple[Annotated, str]:
    path = os.path.join(root, "scenes", name)
    split = re.fullmatch(r"CLEVR_(\w+)_scenes\.json", name)
    folder = os.path.join("images", split[1]) if split else "images"
    if not os.path.isdir(os.path.join(root, folder)):
        folder = "images"
    document = load_json(path)
    try:
        return _clevr(document, folder), path
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has not the format of CLEVR's scenes ({words(error)}); download it again"
        ) from error


def _clevr(document, folder: str) -> Annotated:
    scenes = document["scenes"]
    targets = np.zeros((len(scenes), len(CLEVR_TARGETS)), np.uint8)
    for row, scene in enumerate(scenes):
        for thing in scene["objects"]:
            color, shape = CLEVR_COLORS.index(thing["color"]), CLEVR_SHAPES.index(thing["shape"])
            targets[row, color + len(CLEVR_COLORS) * shape] = 1
    paths = [inside(folder, scene["image_filename"]) for scene in scenes]
    return Annotated(paths, targets, CLEVR_TARGETS)
