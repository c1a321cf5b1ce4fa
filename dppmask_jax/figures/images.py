"""Images from files, to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dppmask_jax.data.images import crops, decode, greys, kept, medical
from dppmask_jax.data.images.decode import DecodeError
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels


def read_images(
    paths: Sequence[str | Path],
    image_size: tuple[int, int],
    num: int,
    grey_range: tuple[float, float] | None = None,
    pixels: Pixels = RGB,
) -> np.ndarray:
    """The first images of files and folders, cropped as for evaluation.

    Files of a folder, at any depth, come in the order of their names; those that are no image are
    passed over. In greyscale of more than 8 bits `grey_range` is (black, white); None decides by
    all of these images. Where `pixels` are kept, all images have these; a volume gives slices,
    evenly spread.

    Returns:
      (at most `num`, H, W, C) as they are loaded.

    Raises:
      InputError: a path is missing, a file named is no image, or there is no image at all.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"--images: there is no file or folder {path}")
        for file in files:
            if len(found) >= num:
                break
            try:
                found += _read(file, pixels, num - len(found))
            except DecodeError as error:
                if file == path:
                    raise InputError(f"--images: {file} is no readable image: {error}") from error
            except OSError as error:
                raise InputError(f"--images: cannot read {file}: {error.strerror}") from error
    if not found:
        raise InputError(f"--images: no readable image in {', '.join(map(str, paths))}")
    if pixels.kept:
        return np.stack([crops.center_crop(image, image_size=image_size) for image in found])
    if grey_range is None:
        of_all, _ = decode.grey_range_of(found)
    else:
        of_all = greys.Range(grey_range, grey_range)
    narrowed = (decode.narrowed(data, of_all) for data in found)
    return np.stack([crops.center_crop(data, image_size=image_size) for data in narrowed])


def _read(file: Path, pixels: Pixels, most: int) -> list[bytes | np.ndarray]:
    """The images of a file, at most so many of its slices."""
    if pixels.kept and medical.is_name(file.name):
        number = medical.count(str(file), pixels.axis)
        places = np.linspace(0, number - 1, min(number, most)).round().astype(int)
        return [kept.read_from(str(file), int(i), pixels) for i in places]
    data = file.read_bytes()
    if pixels.kept:
        return [kept.read(data, pixels)]
    decode.decode(data)
    return [data]
