"""DICOM and NIfTI files: how many images they are, and the values of each.

Each frame of a DICOM file is an image, and each slice of a NIfTI volume along one axis. Values are
those that the format means: of DICOM behind the rescale slope and intercept (Hounsfield units of a
CT) or the modality's table, colours as RGB, MONOCHROME1 turned so that more is brighter; of NIfTI
behind slope and intercept. A fourth axis of NIfTI holds channels.

pydicom and nibabel, of the extra [medical], are imported where they are first used.
"""

from __future__ import annotations

import gzip
import io
from typing import Any

import numpy as np

from dppmask_jax.data.images.decode import MAX_PIXELS, DecodeError
from dppmask_jax.data.images.libraries import needed

DICOM_NAMES = (".dcm", ".dicom")
NIFTI_NAMES = (".nii", ".nii.gz")
_DICOM, _NIFTI = ("medical", "a DICOM file"), ("medical", "a NIfTI file")
_MOST_BYTES = 2**31  # of a NIfTI file that was packed


def is_name(name: str) -> bool:
    """Whether a file is of such a format, by its name."""
    return name.lower().endswith(DICOM_NAMES + NIFTI_NAMES)


def is_data(data: bytes) -> bool:
    """Whether bytes are of such a format, by what they begin with."""
    return _is_dicom(data) or data[344:347] in (b"n+1", b"ni1") or data.startswith(b"\x1f\x8b")


def count(path: str, axis: int) -> int:
    """The number of images in a file, by its header.

    Raises:
      DecodeError: it cannot be read, or the library is not installed.
      OSError: there is no such file.
    """
    if path.lower().endswith(DICOM_NAMES):
        with needed(*_DICOM):
            import pydicom

            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["NumberOfFrames"]
            )
            return int(header.get("NumberOfFrames") or 1)
    with needed(*_NIFTI):
        import nibabel

        return _slices(nibabel.load(path), axis)


def values_of(path: str, number: int, axis: int) -> np.ndarray:
    """An image of a file: (h, w) or (h, w, C), of the type that the file has, or floats.

    Args:
      number: which one, from 0.
      axis: of a NIfTI volume, along which its slices are images.

    Raises:
      DecodeError, OSError: as for `count`.
    """
    if path.lower().endswith(DICOM_NAMES):
        with open(path, "rb") as file:
            return _frame(file, number)
    with needed(*_NIFTI):
        import nibabel

        return _slice(nibabel.load(path), number, axis)


def only_values_of(data: bytes, axis: int) -> np.ndarray:
    """The image of an encoded file that holds one.

    Raises:
      DecodeError: it holds several, which are read by the path of a file alone.
    """
    if _is_dicom(data):
        with needed(*_DICOM):
            import pydicom

            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
            _check_single(int(header.get("NumberOfFrames") or 1))
        return _frame(io.BytesIO(data), 0)
    with needed(*_NIFTI):
        import nibabel

        if data.startswith(b"\x1f\x8b"):
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_MOST_BYTES)
        image = nibabel.Nifti1Image.from_bytes(data)
        _check_single(_slices(image, axis))
        return _slice(image, 0, axis)


def _is_dicom(data: bytes) -> bool:
    return data[128:132] == b"DICM"


def _check_single(number: int) -> None:
    if number > 1:
        raise DecodeError(
            f"it holds {number} slices or frames, which are read from files named "
            f"{' '.join(DICOM_NAMES + NIFTI_NAMES)} of a folder: or a csv: alone"
        )


def _frame(file: Any, number: int) -> np.ndarray:
    with needed(*_DICOM):
        import pydicom

        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        if header.Rows * header.Columns > MAX_PIXELS:
            raise DecodeError(f"{header.Columns} x {header.Rows} pixels are more than {MAX_PIXELS}")
        file.seek(0)
        about = pydicom.Dataset()
        values = pydicom.pixels.pixel_array(file, ds_out=about, index=number)
        kind = about.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            return pydicom.pixels.apply_color_lut(values, about)
        if kind == "MONOCHROME1":
            signed = about.get("PixelRepresentation", 0)
            values = (-1 if signed else 2**about.BitsStored - 1) - values
        if about.get("ModalityLUTSequence") or (
            (about.get("RescaleSlope", 1), about.get("RescaleIntercept", 0)) != (1, 0)
        ):
            values = pydicom.pixels.apply_modality_lut(values, about)
        return values


def _axes(image: Any, axis: int) -> tuple[int, ...]:
    """The shape without axes of length 1 behind the third.

    Raises:
      DecodeError: it is no slice, volume or volume of channels.
    """
    shape = (*image.shape[:3], *(side for side in image.shape[3:] if side > 1))
    if not 2 <= len(shape) <= 4 or 0 in shape:
        words = "x".join(map(str, image.shape))
        raise DecodeError(f"it is an array of {words}, not of two, three or four axes")
    sides = [side for i, side in enumerate(shape[:3]) if len(shape) == 2 or i != axis]
    if np.prod(sides, dtype=float) > MAX_PIXELS:
        raise DecodeError(f"{sides[0]} x {sides[1]} pixels are more than {MAX_PIXELS}")
    return shape


def _slices(image: Any, axis: int) -> int:
    shape = _axes(image, axis)
    return 1 if len(shape) == 2 else shape[axis]


def _slice(image: Any, number: int, axis: int) -> np.ndarray:
    """A slice with the second of its axes upwards and the first to the right: how viewers show
    volumes that are stored in the usual order (RAS)."""
    shape = _axes(image, axis)
    if len(shape) == 2:
        values = np.asarray(image.dataobj)
    else:
        where = [slice(None)] * 3
        where[axis] = slice(number, number + 1)
        values = np.asarray(image.dataobj[tuple(where)]).take(0, axis=axis)
    channels = [side for side in values.shape[2:] if side > 1]
    return np.rot90(values.reshape(*values.shape[:2], *channels))
