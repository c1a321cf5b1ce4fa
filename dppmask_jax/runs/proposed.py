"""The images of a run with masks that come with them, from a file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from dppmask_jax import masking
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import Source
from dppmask_jax.masking import from_file
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.patches import grid_shape

NAME = "proposed"  # of the extra


def with_masks(config, train: Source, val: Source | None) -> tuple[Source, Source | None]:
    """The splits with the masks of `mask.path` among their extras, under NAME.

    Where the config's masks come from elsewhere, the splits stay as they are. The file has no masks
    for validation images, which get random ones of as many patches.

    Raises:
      InputError: see `from_file.check_rows`.
    """
    mask = config.get("mask")
    if not mask or NAME not in masking.masker_of(mask).needs:
        return train, val
    rows, columns = grid_shape(tuple(config.image_size), config.model.patch_size)
    method = METHODS[config.method].build(config, Plan(1, 1))
    fewest, most = method.num_hidden
    from_file.check_rows(mask.path, len(train), rows * columns, fewest, most)
    train = dataclasses.replace(
        train,
        extras=functools.partial(_row, mask.path, rows * columns, train.extras),
        identity=functools.partial(_identity, mask.path, train.identity),
    )
    if val is not None:
        at_random = functools.partial(_random_row, rows * columns, most, val.extras)
        note = f"validation images have no mask in {mask.path}: random ones of {most} patches"
        val = dataclasses.replace(val, extras=at_random, notes=(*val.notes, note))
    return train, val


@functools.lru_cache(maxsize=4)  # once in each loading process
def _bits(path: str) -> np.ndarray:
    """The masks of a file in memory, eight patches a byte. A map of a file that is written anew
    while it is read ends the process with a bus error."""
    return np.packbits(from_file.read(path).astype(bool), axis=1)


def _identity(path: str, of_images) -> str:
    with open(path, "rb") as file:
        return identity.of_parts(of_images(), hashlib.file_digest(file, "blake2b").hexdigest())


def _row(path: str, num_patches: int, extras, i: int) -> dict:
    mask = np.unpackbits(_bits(path)[i], count=num_patches).astype(bool)
    return {**extras(i), NAME: mask}


def _random_row(num_patches: int, num_masked: int, extras, i: int) -> dict:
    order = np.random.default_rng(i).permutation(num_patches)
    return {**extras(i), NAME: order < num_masked}
