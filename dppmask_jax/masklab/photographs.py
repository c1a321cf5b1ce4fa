"""The images that masks are measured on, and the objects in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dppmask_jax import patches
from dppmask_jax.data import loader
from dppmask_jax.data.sources import opening
from dppmask_jax.data.sources.base import Source, first_extras
from dppmask_jax.errors import InputError
from dppmask_jax.masking import semantic_parts
from dppmask_jax.patches import PatchSize
from dppmask_jax.runs import image_parts
from dppmask_jax.scores import coverage
from dppmask_jax.words import count

_BATCH = 32


class Photographs(NamedTuple):
    """What is masked.

    Attributes:
      images: (B, H, W, 3) uint8.
      parts: (B, N) int32, the part that each patch belongs to, as the data set knows them.
      objects: (M, N) bool, the patches of each object, at least one.
      owner: (M,) int, the image that it lies in, ascending.
      without: how many images were left out, as they have no foreground or cannot be read.
    """

    images: np.ndarray
    parts: np.ndarray
    objects: np.ndarray
    owner: np.ndarray
    without: int


def chosen_split(spec: str, split: str) -> Source:
    """A split of a source that has foreground masks: "train", "val", or "" for the latter where
    there is one.

    Raises:
      InputError: there is no such source, split or mask.
    """
    if not opening.SOURCE.holds(spec):
        raise InputError(f"--source={spec}: it must be {opening.SOURCE.allowed}")
    train, val = opening.open_splits(spec)
    source = {"train": train, "val": val, "": val or train}[split]
    if source is None:
        raise InputError(f"--source={spec} has no validation images; take --split=train")
    first_extras(source, ("mask",), f"--source={spec}")
    source.check_extras()
    return source


def read(
    source: Source,
    spec: str,
    *,
    image_size: tuple[int, int],
    patch_size: PatchSize,
    limit: int,
    foreground: int,
    pieces: bool,
    num_parts: int,
) -> Photographs:
    """Reads images and masks, cropped alike as for an evaluation.

    Args:
      spec: what the source is called in messages.
      limit: how many images, spread evenly over the source; 0: all.
      foreground: grey value from which a pixel of a mask is foreground.
      pieces: whether each connected piece of a foreground is an object; else all of it is.
      num_parts: the most that an image has.

    Raises:
      InputError: no image has any foreground.
    """
    number = min(limit or len(source), len(source))
    indices = np.linspace(0, len(source) - 1, number).round().astype(np.int64)
    source = image_parts.of_source(num_parts, source)
    grid = patches.grid_shape(image_size, patch_size)
    images, masks, parts = [], [], []
    for batch in loader.eval_batches(
        source,
        image_size=image_size,
        batch_size=min(_BATCH, number),
        indices=indices,
        extras=("mask", image_parts.NAME),
    ):
        whole = batch["valid"] & (batch["mask"] >= foreground).any(axis=(1, 2))
        images.append(batch["image"][whole])
        masks.append(batch["mask"][whole] >= foreground)
        maps = batch[image_parts.NAME][whole]
        parts.append(np.asarray(semantic_parts.of_patches(maps, grid, num_parts)))
    kept = np.concatenate(images)
    if not len(kept):
        raise InputError(
            f"--source={spec}: none of {count(number, 'image')} has any foreground of "
            f"--foreground={foreground} or more"
        )
    areas, owner = np.concatenate(masks), np.arange(len(kept))
    if pieces:
        areas, owner = coverage.pieces(areas)
    return Photographs(
        kept,
        np.concatenate(parts),
        coverage.object_patches(areas, patch_size),
        owner,
        number - len(kept),
    )
