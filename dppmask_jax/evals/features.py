"""Features of a whole data split, computed on all devices of all processes, no image left out."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dppmask_jax import parallel
from dppmask_jax.errors import InputError

_MOST_AT_ONCE = 256  # images
Batch = dict[str, np.ndarray]

NONE_READABLE = (
    "none of the images that are to be evaluated can be read; the lines above name them and say "
    "why: mend the files of data.source"
)


def batch_size(config) -> int:
    """How many images are encoded at once: `config.batch_size`, which may be thousands, but at most
    _MOST_AT_ONCE; rounded up to a multiple of the devices."""
    return parallel.round_up(min(config.batch_size, _MOST_AT_ONCE))


def extractor(encode: Callable) -> Callable:
    """Compiles `encode(params, extra, images) -> {name: (B, ...)}` into
    `extract(params, extra, batches, rows) -> ({name: (M, ...)}, labels (M, ...))`.

    `batches` are padded evaluation batches with "image", "label" and "valid", each process's own
    share of them; `rows(shape, dtype)` makes an array to fill, see `in_memory` and `on_disk`.
    Every process gets the features of all M valid images, in the order of the source. It raises
    InputError where there is none.
    """
    mapped = parallel.data_parallel_map(lambda state, images: encode(*state, images))

    def extract(params, extra, batches: Iterable[Batch], rows: Callable | None = None):
        filling = _Filling(rows or in_memory)
        for batch in batches:
            out = mapped((params, extra), batch["image"])
            out = parallel.all_rows({**out, "label": batch["label"], "valid": batch["valid"]})
            valid = out.pop("valid")
            if valid.any():
                filling.add({name: values[valid] for name, values in out.items()})
        if filling.is_empty:
            raise InputError(NONE_READABLE)
        arrays = filling.arrays()
        return arrays, arrays.pop("label")

    return extract


class _Filling:
    """Rows that arrive in batches; how many there will be is not known beforehand."""

    def __init__(self, rows: Callable):
        self._rows = rows
        self._buffers = {}

    @property
    def is_empty(self) -> bool:
        return not self._buffers

    def add(self, values: dict[str, np.ndarray]) -> None:
        for name, rows in values.items():
            if name not in self._buffers:
                self._buffers[name] = self._rows(rows.shape[1:], rows.dtype)
            self._buffers[name].append(rows)

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: buffer.array() for name, buffer in self._buffers.items()}


class _Memory:
    def __init__(self):
        self._parts = []

    def append(self, rows: np.ndarray) -> None:
        self._parts.append(rows)

    def array(self) -> np.ndarray:
        return np.concatenate(self._parts)


def in_memory(shape: tuple[int, ...], dtype) -> _Memory:
    """Rows that are kept in memory."""
    del shape, dtype
    return _Memory()


def on_disk(folder: str | Path) -> Callable[[tuple[int, ...], Any], _File]:
    """Rows that are streamed to a file without a name in `folder` and read through `np.memmap`.

    The file is gone when the array is, and when the process ends, however that happens.
    """
    return functools.partial(_File, folder)


class _File:
    def __init__(self, folder, shape: tuple[int, ...], dtype):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `array`)
        self._shape, self._dtype = shape, dtype
        self._rows = 0

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._rows += len(rows)

    def array(self) -> np.ndarray:
        with self._file as file:  # the map keeps the file open
            file.flush()
            return np.memmap(file, self._dtype, "r", shape=(self._rows, *self._shape))


def pooled_pixels(images, side: int = 32):
    """The floor that features have to beat: mean-pooled pixels.

    Pools each image over blocks so that about `side` blocks remain along each axis.

    Args:
      images: (B, H, W, C), NumPy or JAX.

    Returns:
      (B, rows * columns * C) float32.
    """
    block_h, block_w = (max(1, size // side) for size in images.shape[1:3])
    height, width = images.shape[1] // block_h, images.shape[2] // block_w
    cut = images[:, : height * block_h, : width * block_w].astype(np.float32)
    pooled = cut.reshape(len(cut), height, block_h, width, block_w, -1).mean(axis=(2, 4))
    return pooled.reshape(len(pooled), -1)
