"""Files to pixels that are kept as they are: any number of channels, 8 bits, 16 bits, floats.

JPEG, PNG and what else Pillow reads have the channels of their mode: grey 1, RGB 3, RGBA 4; colours
of a palette are looked up, and the EXIF orientation is applied. TIFF (its pages are channels, too)
and PNG of more than 8 bits go through tifffile and imagecodecs, DICOM and NIfTI through pydicom and
nibabel; all of these are extras. `.npy` holds (h, w), (h, w, C) or (C, h, w).
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dppmask_jax.data.images import decode, medical
from dppmask_jax.data.images.decode import DecodeError, in_words
from dppmask_jax.data.images.libraries import needed
from dppmask_jax.pixel_format import ANY, RGB_CHANNELS, Pixels

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG"
_MOST_VALUES = 4 * decode.MAX_PIXELS  # of an image, over all channels
_ORIENTATION = 274  # TIFF's tag
_WHITE_IS_0, _PALETTE = 0, 3  # of its tag of photometric interpretation
# Modes of Pillow that say less than their pixels are.
_FEWEST = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


class Mismatch(DecodeError):
    """A readable image of other pixels than the data set is said to have."""


def read(data: bytes, pixels: Pixels) -> bytes | np.ndarray:
    """An encoded image as the stream takes it.

    Args:
      pixels: of the data set; `kept`.

    Returns:
      The bytes of a JPEG that is 8-bit RGB, which is decoded in part; else (h, w, C) upright, uint8
      where `pixels.range` is None, else float32 from 0 to 1.

    Raises:
      Mismatch: other channels, more than 8 bits without a range, values that are not finite.
      DecodeError: no readable image, or one that needs an extra that is not installed.
    """
    if _is_plain_jpeg(data) and (pixels.channels, pixels.range) == (RGB_CHANNELS, None):
        return data
    return fitted(values_of(data, pixels.channels or None, pixels.axis), pixels)


def read_from(path: str, number: int, pixels: Pixels) -> np.ndarray:
    """An image of a file that may hold several, see `medical`; otherwise as `read`.

    Raises:
      OSError: the file cannot be read.
    """
    values = medical.values_of(path, number, pixels.axis)
    return fitted(channels_last(values, pixels.channels or None), pixels)


def values_of(data: bytes, channels: int | None = None, axis: int = 2) -> np.ndarray:
    """(h, w, C) upright, of the type that the file has.

    Args:
      channels: which axis they are, where a file does not say: the last one, or the first where
        that alone has so many.
      axis: of a NIfTI volume, see `medical`.

    Raises:
      DecodeError: see `read`.
    """
    if data.startswith(NPY):
        values = _npy(data)
    elif medical.is_data(data):  # DICOM may begin as a TIFF does
        values = medical.only_values_of(data, axis)
    elif data.startswith(_TIFF):
        values = _tiff(data)
    elif data.startswith(_PNG) and data[24:25] == b"\x10":
        values = _wide_png(data)
    else:
        values = _by_pillow(decode.open_image(data))
    return channels_last(values, channels)


def fitted(values: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Values (h, w, C) as the stream takes them; raises and returns as `read`."""
    if pixels == ANY._replace(axis=pixels.axis):
        return values
    height, width, channels = values.shape
    if channels != pixels.channels:
        raise Mismatch(
            f"it has {channels} channel{'s' * (channels > 1)} ({values.dtype}, {width} x {height} "
            f"pixels), and config.data.channels={pixels.channels}; set that to {channels}, or "
            "convert or remove the file"
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise Mismatch(f"it holds {values.dtype}, which is no real number; convert it")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int(np.sum(~np.isfinite(values)))
        raise Mismatch(
            f"{bad} of its {values.size} values are NaN or infinite; give them a value, such as "
            "that of black"
        )
    if pixels.range is None and values.dtype != np.uint8:
        raise Mismatch(
            f"it holds {values.dtype} from {values.min():g} to {values.max():g}, not 8 bits: say "
            "which values are black and white, with config.data.range=BLACK,WHITE"
        )
    return values if pixels.range is None else pixels.scaled(values)


def channels_last(values: np.ndarray, channels: int | None) -> np.ndarray:
    """(h, w), (h, w, C) or (C, h, w) -> (h, w, C); axes of length 1 in front do not count.

    Raises:
      DecodeError: it has other axes, or too many pixels.
    """
    shape = values.shape
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in shape:
        raise DecodeError(
            f"it is an array of {'x'.join(map(str, shape))}, not (height, width), (height, width, "
            "channels) or (channels, height, width)"
        )
    first, last = values.shape[0] == channels, values.shape[-1] == channels
    # Where neither is what was asked for, what is short is more likely to be the channels.
    if not last and (first or values.shape[0] < min(values.shape[1:])):
        values = np.moveaxis(values, 0, -1)
    if values.shape[0] * values.shape[1] > decode.MAX_PIXELS:
        raise DecodeError(f"{shape} are more than {decode.MAX_PIXELS} pixels")
    return values


def _is_plain_jpeg(data: bytes) -> bool:
    if not data.startswith(b"\xff\xd8"):
        return False
    return decode.open_image(data).mode == "RGB"


def _npy(data: bytes) -> np.ndarray:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DecodeError(f"a broken .npy: {' '.join(str(error).split())}") from error


def _by_pillow(image: Image.Image) -> np.ndarray:
    try:
        image.load()
        mode = "PA" if image.mode == "P" and image.has_transparency_data else image.mode
        image = image.convert(_FEWEST[mode]) if mode in _FEWEST else image
        return np.asarray(decode.upright(image))
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise DecodeError(in_words(error)) from error


def _wide_png(data: bytes) -> np.ndarray:
    image = decode.open_image(data)  # refuses what has too many pixels
    if image.mode.startswith("I"):
        return _by_pillow(image)
    with needed("tiff", "a PNG of 16-bit colours"):
        import imagecodecs

        return imagecodecs.png_decode(data)


def _tiff(data: bytes) -> np.ndarray:
    with needed("tiff", "a TIFF whose pixels are kept"):
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages, first = file.series[0], file.pages[0]
            if np.prod(pages.shape, dtype=float) > _MOST_VALUES:
                raise DecodeError(f"{pages.shape} are more than {_MOST_VALUES} values")
            tag = first.tags.get(_ORIENTATION)
            return _as_meant(_upright(pages.asarray(), int(tag.value) if tag else 1), first)


def _as_meant(values: np.ndarray, page) -> np.ndarray:
    """A TIFF's pixels by its tag of photometric interpretation: colours of a palette as 8 bits, and
    more is brighter."""
    if page.photometric == _PALETTE:
        if page.samplesperpixel > 1 or page.colormap is None:
            raise DecodeError("a TIFF with a palette and more, or without its colours; convert it")
        colours = np.asarray(page.colormap)  # (3, n) of 16 bits, but some writers have 8 there
        return np.moveaxis(colours >> (8 if colours.max() > 255 else 0), 0, -1).astype(np.uint8)[
            values.astype(np.uint16)
        ]
    if page.photometric != _WHITE_IS_0:
        return values
    if values.dtype == bool:
        return ~values
    if values.dtype.kind != "u" or page.samplesperpixel > 1:
        raise DecodeError(
            f"a TIFF of {values.dtype} with {page.samplesperpixel} samples a pixel whose white is "
            "0, which leaves open what is black; convert it"
        )
    return values.dtype.type(2**page.bitspersample - 1) - values


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """A TIFF's pixels by its tag of orientation, as `decode` turns images."""
    if orientation not in range(2, 9):
        return values
    # Pages stand in front of rows and columns, samples behind them: (h, w, s) where s is small.
    rows = 0 if values.ndim == 3 and values.shape[-1] < min(values.shape[:2]) else values.ndim - 2
    image = np.moveaxis(values, (rows, rows + 1), (0, 1))
    if orientation in (5, 6, 7, 8):
        image = np.swapaxes(image, 0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.moveaxis(image, (0, 1), (rows, rows + 1))
