"""The images of a split that have foreground masks, and at which sizes an encoder sees them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dppmask_jax import patches
from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources.base import Source, first_extras
from dppmask_jax.data.sources.image_files import why
from dppmask_jax.errors import InputError, NotServed

LEAST = 3  # patches a side, of a grid on which anything can be told apart


class Looked(NamedTuple):
    """What is known of an image before it is decoded: its number in the source, (height, width),
    and why it is left out; "" where it is not."""

    index: int
    size: tuple[int, int] = (0, 0)
    left_out: str = ""


def look_at(source: Source, indices: np.ndarray, where: str) -> list[Looked]:
    """Looks at the headers of images and at their masks.

    Args:
      where: what needs the masks, for messages.

    Raises:
      NotServed: there are no masks.
      InputError: some have another size than their image.
    """
    first_extras(source, ("mask",), where)
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda i: _look_at(source, int(i)), indices))
    wrong = [words for _, words in found if words]
    if wrong:
        raise InputError(
            f"{len(wrong):,} of {len(found):,} masks have another size than their image, the first "
            f"is that of {wrong[0]}; mend or remove them"
        )
    return [looked for looked, _ in found]


def _look_at(source: Source, i: int) -> tuple[Looked, str]:
    """What is known of an image, and in which way its mask has another size."""
    try:
        width, height = crops.size_of(source.read(i)[0])
        mask = source.extras(i).get("mask")
    except (OSError, decode.DecodeError) as error:  # the caller names it
        return Looked(i, left_out=why(error)), ""
    if mask is None:
        return Looked(i, left_out="it has no mask"), ""
    rows, columns = mask.shape
    words = f"{source.name(i)}: {columns} x {rows} pixels, the image {width} x {height}"
    return Looked(i, (height, width)), words * ((rows, columns) != (height, width))


def within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """(height, width) of an image whose longer side is to be at most so many pixels."""
    scale = min(1.0, most / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def native_size(size: tuple[int, int], patch_size: patches.PatchSize, most: int) -> tuple[int, int]:
    """The (height, width) nearest to an image's own that is a multiple of the patches.

    Halves go to the even multiple, as in the code of SOAP: 40 pixels at 16 give 32.

    Args:
      most: pixels of the longer side; larger images are shrunk to it.
    """
    scale = min(1.0, most / max(size))
    of_patch = patches.sides(patch_size)
    return tuple(
        max(1, round(side * scale / each)) * each for side, each in zip(size, of_patch, strict=True)
    )


def by_size(
    looked: Sequence[Looked], patch_size: patches.PatchSize, most: int
) -> dict[tuple[int, int], np.ndarray]:
    """{native size: numbers of the images that have it}, in the order of the sizes."""
    groups: dict[tuple[int, int], list[int]] = {}
    for image in looked:
        groups.setdefault(native_size(image.size, patch_size, most), []).append(image.index)
    return {size: np.array(groups[size]) for size in sorted(groups)}


def check_grid(size: tuple[int, int], patch_size: patches.PatchSize, mend: str) -> None:
    """Raises NotServed where the grid of a size has fewer than LEAST patches a side; `mend` says
    what to do then."""
    rows, columns = patches.grid_shape(size, patch_size)
    if min(rows, columns) < LEAST:
        raise NotServed(
            f"an image of {size[0]}x{size[1]} pixels is a grid of {rows}x{columns} patches, and at "
            f"least {LEAST}x{LEAST} are needed; {mend}"
        )
