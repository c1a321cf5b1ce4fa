"""Decodes a part of a JPEG by libjpeg-turbo, through ctypes: no package for Python offers it.

Below the part nothing is decoded, above and beside it the entropy code alone. The library is
TurboJPEG 3, libturbojpeg.so.0 of the system or else that of the package `turbojpeg` (the extra
[jpeg]), which itself wraps other functions of it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata

import numpy as np

# Of turbojpeg.h, version 3.
_DECOMPRESS, _SUBSAMPLING, _WIDTH, _RGB = 1, 4, 5, 0
_MCU_WIDTHS = (8, 16, 16, 8, 8, 32, 8)  # of 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


class _Scale(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("num", "denom")]


_HANDLE, _DATA = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_size_t)
_SIGNATURES = {
    "tj3Init": (_HANDLE, ctypes.c_int),
    "tj3Destroy": (None, _HANDLE),
    "tj3Get": (ctypes.c_int, _HANDLE, ctypes.c_int),
    "tj3GetErrorStr": (ctypes.c_char_p, _HANDLE),
    "tj3DecompressHeader": (ctypes.c_int, _HANDLE, *_DATA),
    "tj3SetScalingFactor": (ctypes.c_int, _HANDLE, _Scale),
    "tj3SetCroppingRegion": (ctypes.c_int, _HANDLE, _Region),
    "tj3Decompress8": (ctypes.c_int, _HANDLE, *_DATA, _HANDLE, ctypes.c_int, ctypes.c_int),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """TurboJPEG 3, or None where it is not installed."""
    for path in _candidates():
        try:
            found = ctypes.CDLL(path)
            for name, (result, *arguments) in _SIGNATURES.items():
                function = getattr(found, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError):  # of another machine, or of version 2
            continue
        return found
    return None


def _candidates():
    yield "libturbojpeg.so.0"
    try:
        files = importlib.metadata.files("turbojpeg") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libturbojpeg"):
            yield str(file.locate())


def decode_part(data: bytes, box: tuple[int, int, int, int], shrink: int) -> np.ndarray:
    """Decodes what a box contains; damage below it goes unnoticed. Needs `library()`.

    Args:
      data: an encoded JPEG, RGB or grey once it is decoded, sequential: of a progressive one, of
        which some scans are missing, the edges of the box would come out differently.
      box: (left, top, right, bottom) in pixels of the image after `shrink`; not empty.
      shrink: 1, 2, 4 or 8; what both sides of the image are divided by, rounded up.

    Returns:
      (h, w, 3) uint8: the box, bit for bit as if all of the image had been decoded.

    Raises:
      ValueError: the decoder complains about the file, or cannot crop it.
    """
    turbo = library()
    handle = turbo.tj3Init(_DECOMPRESS)

    def check(failed):
        if failed:
            raise ValueError(turbo.tj3GetErrorStr(handle).decode(errors="replace"))

    try:
        check(turbo.tj3DecompressHeader(handle, data, len(data)))
        check(turbo.tj3SetScalingFactor(handle, _Scale(1, shrink)))
        subsampling = turbo.tj3Get(handle, _SUBSAMPLING)
        if not 0 <= subsampling < len(_MCU_WIDTHS):
            raise ValueError("an unusual chroma subsampling")
        # Chroma is interpolated between MCUs: the outermost columns want a neighbour.
        step = -(-_MCU_WIDTHS[subsampling] // shrink)
        left = max(box[0] // step - 1, 0) * step
        right = min((-(-box[2] // step) + 1) * step, -(-turbo.tj3Get(handle, _WIDTH) // shrink))
        region = _Region(left, box[1], right - left, box[3] - box[1])
        check(turbo.tj3SetCroppingRegion(handle, region))
        pixels = np.empty((region.h, region.w, 3), np.uint8)
        check(turbo.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 3 * region.w, _RGB))
        return pixels[:, box[0] - left : box[2] - left]
    finally:
        turbo.tj3Destroy(handle)
