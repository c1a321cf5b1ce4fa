"""Encoded image bytes to upright 8-bit RGB.

What becomes of unusual files: greyscale is repeated over the channels; that of more than 8 bits is
scaled to 8 (greys.py says how); of 16-bit colours Pillow keeps the upper 8 bits; CMYK goes through
Pillow's own conversion; palettes are looked up; whatever is transparent is laid over white; the
EXIF orientation is applied; of an animation the first frame counts; what a file is called does not
matter. A file that ends early is unreadable, not grey at the bottom.

While it is decoded, an image of the most pixels that are allowed takes up to 0.8 GB of memory, or
1.1 GB if it is a WebP or AVIF, and smaller ones in proportion. A JPEG that is shrunk takes a part
of that. AVIF is read where Pillow can, from 11.3 on.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

from dppmask_jax.data.images import greys

# Pillow warns of broken metadata and large images; where pixels are unreadable, it raises. The
# filter is global, because warnings.catch_warnings does not work in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 89_478_485  # refused beyond this, before decoding; where Pillow starts to warn
# Not all that Pillow knows: some formats start other programs or are documents.
READS_AVIF = "avif" in features.get_supported_modules()
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM") + ("AVIF",) * READS_AVIF
_BAND = 2**20  # pixels converted at a time
_ORIENTATION = 0x0112
_SOF3 = b"\xff\xc3"  # the marker of a lossless JPEG
_MAY_BE_WIDE = (b"\x89PNG", b"II", b"MM", b"P")  # PNG, TIFF and PGM
_TILE = (322, 323)  # TIFF's tags of a tile's width and height
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(ValueError):
    """The bytes are no readable image."""


def open_image(data: bytes) -> Image.Image:
    """Reads the header; the pixels stay encoded.

    Raises:
      DecodeError: not an image, or one of more than MAX_PIXELS pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        sizes = [image.size]
        if image.format == "TIFF":  # its decoder allocates a whole tile, however small the image
            sizes.append([int(image.tag_v2.get(tag, 0)) for tag in _TILE])
    except UnidentifiedImageError as error:
        raise DecodeError(_instead(data)) from error
    except Exception as error:  # on broken bytes Pillow's plugins raise nearly anything
        raise DecodeError(in_words(error)) from error
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise DecodeError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    return image


def to_rgb(image: Image.Image, grey_range: greys.Range | None = None) -> Image.Image:
    """Decodes the pixels of an image from `open_image`.

    Args:
      grey_range: what black and white are, in greyscale of more than 8 bits; None judges by the
        image alone, see `greys.of_one`.

    Returns:
      An upright image of mode RGB.

    Raises:
      DecodeError: the file is broken or cut short.
    """
    try:
        image.load()
        turn = _TO_UPRIGHT.get(orientation(image))
        image = _rgb(image, grey_range)
        return image if turn is None else image.transpose(turn)
    except Exception as error:
        raise DecodeError(in_words(error)) from error


def jpeg_pixels(
    data: bytes, image: Image.Image, shrink: int, box: tuple[int, int, int, int]
) -> np.ndarray:
    """A part of an upright JPEG, decoded to a fraction of its size if wanted.

    Args:
      data: the encoded image.
      image: what `open_image` made of it.
      shrink: what both sides are divided by, rounded up: 1, or where `can_be_shrunk` 2, 4 or 8; at
        most the shorter side.
      box: (left, top, right, bottom) of the part, in pixels of the shrunk image; not empty.

    Returns:
      (bottom - top, right - left, 3) uint8, bit for bit what Pillow decodes, in less time.

    Raises:
      DecodeError: the file is broken or cut short.
    """
    left, top, right, bottom = box
    if image.mode in ("RGB", "L"):
        try:
            width, height = (-(-side // shrink) for side in image.size)
            whole = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
            return whole[top:bottom, left:right]
        except ValueError:  # Pillow decides below what is broken: it tolerates some faults
            pass
    image = open_image(data)  # a fresh one: `draft` needs pixels that are not loaded
    image.draft(None, tuple(side // shrink for side in image.size))
    return np.asarray(to_rgb(image))[top:bottom, left:right]


def can_be_shrunk(data: bytes) -> bool:
    """Whether `jpeg_pixels` may be given a `shrink` above 1.

    libjpeg-turbo decodes a lossless JPEG to its full size whatever it is asked for, and simplejpeg
    then writes past the memory that it took.
    """
    return _SOF3 not in data


def decode(data: bytes, grey_range: greys.Range | None = None) -> np.ndarray:
    """Decodes a whole image.

    Args:
      grey_range: as for `to_rgb`.

    Returns:
      (H, W, 3) uint8.

    Raises:
      DecodeError: the bytes are no readable image.
    """
    return np.asarray(to_rgb(open_image(data), grey_range))


def indices(data: bytes) -> np.ndarray:
    """The numbers that an image of a palette or of grey values keeps, such as a map of classes.

    Returns:
      (H, W) uint8, or int32 where the file has more than 8 bits; upright.

    Raises:
      DecodeError: no readable image, or one of colours.
    """
    image = open_image(data)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise DecodeError(
            f"a map of classes has a palette or grey values, and this is of mode {image.mode}"
        )
    try:
        values = np.asarray(upright(image))
    except Exception as error:
        raise DecodeError(in_words(error)) from error
    return values.astype(np.int32 if values.dtype.itemsize > 1 else np.uint8)


def grey_range_of(encoded: Iterable[bytes]) -> tuple[greys.Range, tuple[str, ...]]:
    """What is black and what is white in some images, judged by all of them, and what the user
    should know of it, see `greys.of_sample`; unreadable ones do not count. The pixels of those that
    have no more than 8 bits stay encoded."""
    extents = []
    for data in encoded:
        try:
            image = open_image(data)
            if is_wide(image):
                extents.append((grey_extent(image), image.mode == "F"))
        except DecodeError:
            continue
    return greys.of_sample(extents)


def narrowed(data: bytes, grey_range: greys.Range) -> bytes:
    """An encoded image; greyscale of more than 8 bits is encoded anew, upright and in 8.

    Raises:
      DecodeError: the bytes may hold such an image, and are no readable one.
    """
    if not data.startswith(_MAY_BE_WIDE) or (data[:4] == b"\x89PNG" and data[24:25] != b"\x10"):
        return data
    image = open_image(data)
    if not is_wide(image):
        return data
    buffer = io.BytesIO()
    to_rgb(image, grey_range).getchannel(0).save(buffer, "PPM")
    return buffer.getvalue()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or it is broken."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # getexif would decode the pixels to look for a chunk behind them
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata does not make the pixels unreadable
        return 1


def upright(image: Image.Image) -> Image.Image:
    """An image of any mode, turned by its EXIF orientation."""
    turn = _TO_UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image once it is upright; the pixels stay encoded."""
    return image.size if orientation(image) < 5 else image.size[::-1]


def is_wide(image: Image.Image) -> bool:
    """Whether the pixels are grey values that 8 bits do not hold: 16 or 32 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def grey_extent(image: Image.Image) -> tuple[float, float]:
    """(smallest, largest) finite value of an image that `is_wide`.

    Raises:
      DecodeError: the file is broken or cut short.
    """
    try:
        image.load()
        low, high = np.inf, -np.inf
        for _, band in _bands(image):
            values = _finite(np.asarray(band))
            low = min(low, float(values.min(initial=np.inf)))
            high = max(high, float(values.max(initial=-np.inf)))
    except Exception as error:
        raise DecodeError(in_words(error)) from error
    return (low, high) if low <= high else (0.0, 0.0)


def _rgb(image: Image.Image, grey_range: greys.Range | None) -> Image.Image:
    if is_wide(image):
        floats = image.mode == "F"
        low, high = (grey_range or greys.of_one(grey_extent(image), floats)).of(floats)
        return _in_bands(image, lambda band: _from_grey(np.asarray(band), low, high))
    if image.has_transparency_data:
        return _in_bands(image, _over_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _bands(image: Image.Image):
    """(top, part) of the image, from above: what is done in steps takes memory for a part."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    out = Image.new("RGB", image.size)
    for top, band in _bands(image):
        out.paste(convert(band), (0, top))
    return out


def _finite(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values[np.isfinite(values)]


def _from_grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    values = np.nan_to_num(values.astype(np.float32), nan=low, posinf=high, neginf=low)
    scaled = (np.clip(values, low, high) - low) * 255 / (high - low)
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


def _over_white(band: Image.Image) -> Image.Image:
    white = Image.new("RGBA", band.size, "white")
    return Image.alpha_composite(white, band.convert("RGBA")).convert("RGB")


def in_words(error: Exception) -> str:
    """An error of a library, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


# (offset, bytes there, what it is) of files that are often taken for images and are not read.
_OTHERS = (
    (4, b"ftypavi", "AVIF, which this Pillow does not read; install Pillow 11.3 or later"),
    (4, b"ftyphe", "HEIC; convert it to JPEG or PNG"),
    (4, b"ftypmif1", "HEIF; convert it to JPEG or PNG"),
    (0, b"\xff\x0a", "JPEG XL; convert it to JPEG or PNG"),
    (4, b"JXL ", "JPEG XL; convert it to JPEG or PNG"),
    (4, b"jP  ", "JPEG 2000; convert it to JPEG or PNG"),
)


def _instead(data: bytes) -> str:
    """What bytes that Pillow does not recognise seem to be, in words."""
    if not data:
        return "the file is empty"
    for start, words, what in _OTHERS:
        if data[start : start + len(words)] == words and not (READS_AVIF and "AVIF" in what):
            return f"this is {what}"
    if data.lstrip()[:1] == b"<":
        return "this is a page of HTML or XML"
    return f"damaged, or of no format that is read ({', '.join(FORMATS)})"
