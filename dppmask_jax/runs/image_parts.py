"""The images of a run with a map of their parts, from a file or from what the data set knows."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from dppmask_jax import masking
from dppmask_jax.data.images import crops
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import Source, first_extras
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.masking import semantic_parts
from dppmask_jax.patches import grid_shape

NAME = "parts"  # of the extra
_KNOWN = ("segments", "mask")  # extras that are maps of parts, the first that there is


def with_parts(config, train: Source, val: Source | None) -> tuple[Source, Source | None]:
    """The splits with a map of parts among their extras, under NAME: (H, W) uint8 of the size of
    the upright image, so that it is cropped and mirrored with it.

    Where the config's masks need none, the splits stay as they are. A file has no maps for
    validation images: all of such an image is one part, so that its mask is random.

    Raises:
      InputError: see `semantic_parts.check_maps`; or the data set knows no parts.
    """
    mask = config.get("mask")
    if not mask or NAME not in masking.masker_of(mask).needs:
        return train, val
    if mask.parts == semantic_parts.SOURCE:
        return of_source(mask.num_parts, train), val and of_source(mask.num_parts, val)
    grid = grid_shape(tuple(config.image_size), config.model.patch_size)
    semantic_parts.check_maps(mask.parts, len(train), grid, mask.num_parts)
    train = dataclasses.replace(
        train,
        extras=functools.partial(_from_file, mask.parts, train),
        identity=functools.partial(_identity, mask.parts, train.identity),
    )
    if val is not None:
        note = f"validation images have no parts in {mask.parts}: random masks"
        one_part = functools.partial(_one_part, val)
        val = dataclasses.replace(val, extras=one_part, notes=(*val.notes, note))
    return train, val


def of_source(num_parts: int, source: Source) -> Source:
    """A source with the parts that it knows: its segments, else its foreground masks.

    Raises:
      InputError: it knows neither.
    """
    where = f"config.mask.parts={semantic_parts.SOURCE}"
    for name in _KNOWN:
        try:
            first_extras(source, (name,), where)
        except NotServed:
            continue
        extras = functools.partial(_of_known, name, num_parts, source.extras)
        return dataclasses.replace(source, extras=extras)
    raise InputError(
        f"{where}: the data set of {source.name(0)} has neither segments nor foreground masks; "
        "name an .npy that dppmask part-maps makes"
    )


def numbered(values: np.ndarray, num_parts: int) -> np.ndarray:
    """(H, W) uint8: the values of a map, numbered in order; the last part has all that are left."""
    _, places = np.unique(values, return_inverse=True)
    return np.minimum(places.reshape(values.shape), num_parts - 1).astype(np.uint8)


def enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width): each pixel has the value of the cell of (rows, columns) that it lies in."""
    rows, columns = (
        np.arange(pixels) * cells // pixels
        for pixels, cells in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _of_known(name: str, num_parts: int, extras, i: int) -> dict:
    known = extras(i)
    if name not in known:  # the stream tells of it
        return known
    values = np.asarray(known[name])
    # Of a foreground mask grey values are no parts.
    values = values >= 128 if name == "mask" else values
    return {**known, NAME: numbered(values, num_parts)}


@functools.lru_cache(maxsize=4)  # once in each loading process
def _maps(path: str) -> np.ndarray:
    """In memory. A map of a file that is written anew while it is read ends the process with a bus
    error."""
    return semantic_parts.read(path).astype(np.uint8)


def _identity(path: str, of_images) -> str:
    with open(path, "rb") as file:
        return identity.of_parts(of_images(), hashlib.file_digest(file, "blake2b").hexdigest())


def _size(source: Source, i: int) -> tuple[int, int]:
    """(height, width) of the upright image."""
    return crops.size_of(source.read(i)[0])[::-1]


def _from_file(path: str, source: Source, i: int) -> dict:
    return {**source.extras(i), NAME: enlarged(_maps(path)[i], _size(source, i))}


def _one_part(source: Source, i: int) -> dict:
    return {**source.extras(i), NAME: np.zeros(_size(source, i), np.uint8)}
