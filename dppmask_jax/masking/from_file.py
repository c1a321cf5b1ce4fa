"""Masks from a file: (M, N) bool, or uint8 of 0 and 1; True = masked, row i for image i of the
training images.

The masks are of the patches that the model sees: crops and flips do not move them. Where they
belong to what an image shows, data.crop_scale=(1.0, 1.0) and data.flip=False keep it in place.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, per_image
from dppmask_jax.masking.random_patches import random

FIELDS = {
    "mask.path": Field("", TEXT, "file: an .npy of (images, patches) bool or uint8, True = masked")
}


def read(path: str) -> np.ndarray:
    """The masks of a file, (M, N) bool or uint8, not yet in memory.

    Raises:
      InputError: there is no such file, or it holds something else.
    """
    where = f"config.mask.path={path}"
    if not path:
        raise InputError(
            "config.mask.path is empty; name the masks of config.mask.strategy=file: an .npy of "
            "(images, patches), True = masked"
        )
    masks = opened(path, where)
    if masks.ndim != 2 or masks.dtype not in (bool, np.uint8):
        raise InputError(
            f"{where} holds {masks.dtype} {masks.shape}; it takes (images, patches) bool or uint8"
        )
    return masks


def opened(path: str, where: str) -> np.ndarray:
    """The array of an .npy, not yet in memory.

    Args:
      where: what names the file, for messages.

    Raises:
      InputError: there is no such file, or it holds no array of numbers, or several.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it is no .npy of numbers"
        raise InputError(f"{where} cannot be read: {reason}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{where} holds several arrays; it takes one")
    return array


def check_rows(path: str, num_images: int, num_patches: int, fewest: int, most: int) -> None:
    """Raises InputError unless a file has a mask for each training image that hides as many patches
    as the method can do with."""
    masks, where = read(path), f"config.mask.path={path}"
    if masks.shape != (num_images, num_patches):
        raise InputError(
            f"{where} is {masks.shape}; this config has {num_images} training images of "
            f"{num_patches} patches"
        )
    if masks.dtype != bool and masks.max() > 1:
        raise InputError(f"{where} holds {masks.max()}; masks are 0 and 1")
    counts = masks.sum(axis=1, dtype=np.int64)
    wrong = np.flatnonzero((counts < fewest) | (counts > most))
    if len(wrong):
        wanted = f"{most}" if fewest == most else f"{fewest} to {most}"
        raise InputError(
            f"{where}: row {wrong[0]} masks {counts[wrong[0]]} of {num_patches} patches, and "
            f"config.mask.ratio wants {wanted} masked in every row"
        )


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        num_patches = seen.grid[0] * seen.grid[1]
        if seen.proposed is None:  # other images than those of the file
            return per_image(lambda key, count: random(key, num_patches, count), keys, count), {}
        # A method may leave views unmasked, whatever the file says: their count is N.
        is_masked = jnp.broadcast_to(jnp.asarray(count) < num_patches, len(keys))
        return jax.vmap(_in_order)(keys, seen.proposed().astype(bool) & is_masked[:, None]), {}

    name = Path(mask.path).name
    return Masker(draw, frozenset({"proposed"}), f"file ({name})")


def _in_order(key, mask) -> Mask:
    """A Mask, visible and masked patches each in random order."""
    noise = jax.random.uniform(key, mask.shape, jnp.float32)
    index = lax.iota(jnp.int32, len(mask))
    order = lax.sort((mask.astype(jnp.int32), noise, index), num_keys=2)[2]
    return Mask(order, mask, jnp.sum(~mask, dtype=jnp.int32))


def _check(mask) -> None:
    read(mask.path)


KIND = MaskerKind(_build, FIELDS, _check)
