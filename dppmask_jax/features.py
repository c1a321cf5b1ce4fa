"""Features of a whole data split, computed on all devices of all processes, no image left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dppmask_jax import parallel

Batch = dict[str, np.ndarray]


def extractor(encode: Callable) -> Callable:
    """Compiles `encode(params, extra, images) -> {name: (B, ...)}` into
    `extract(params, extra, batches, rows) -> ({name: (M, ...)}, labels (M, ...))`.

    `batches` are padded evaluation batches with "image", "label" and "valid", each process's own
    share of them; `rows(name, shape, dtype)` makes the arrays to fill, see `in_memory` and
    `OnDisk`. Every process gets the features of all M valid images, in the order of the source.
    """
    mapped = parallel.data_parallel_map(lambda state, images: encode(*state, images))

    def extract(params, extra, batches: Iterable[Batch], rows: Callable | None = None):
        filling = None
        for batch in batches:
            out = mapped((params, extra), batch["image"])
            out = parallel.all_rows({**out, "label": batch["label"], "valid": batch["valid"]})
            valid = out.pop("valid")
            filling = filling or _Filling(rows or in_memory)
            filling.add({name: values[valid] for name, values in out.items()})
        arrays = filling.arrays()
        return arrays, arrays.pop("label")

    return extract


class _Filling:
    """Rows that arrive in batches; how many there will be is not known beforehand."""

    def __init__(self, rows: Callable):
        self._rows = rows
        self._buffers = {}

    def add(self, values: dict[str, np.ndarray]) -> None:
        for name, rows in values.items():
            if name not in self._buffers:
                self._buffers[name] = self._rows(name, rows.shape[1:], rows.dtype)
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


def in_memory(name: str, shape: tuple[int, ...], dtype) -> _Memory:
    """Rows that are kept in memory."""
    del name, shape, dtype
    return _Memory()


class OnDisk:
    """Rows that are streamed to files of a temporary folder and read through `np.memmap`.

    Use it as a context manager; the files are gone at its end.

    Args:
      folder: where the temporary folder is made.
    """

    def __init__(self, folder: str | Path):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix=".features-", dir=folder)
        self._count = 0

    def __call__(self, name: str, shape: tuple[int, ...], dtype) -> _File:
        self._count += 1
        return _File(Path(self._folder.name) / f"{self._count}-{name}", shape, dtype)

    def __enter__(self) -> OnDisk:
        return self

    def __exit__(self, *error) -> None:
        self._folder.cleanup()


class _File:
    def __init__(self, path: Path, shape: tuple[int, ...], dtype):
        self._path, self._shape, self._dtype = path, shape, dtype
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `array`)
        self._rows = 0

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._rows += len(rows)

    def array(self) -> np.ndarray:
        self._file.close()
        return np.memmap(self._path, self._dtype, "r", shape=(self._rows, *self._shape))


def raw_pixels(batches: Iterable[Batch], side: int = 32):
    """The floor that features have to beat: (M, rows * columns * 3) mean-pooled pixels, labels.

    Pools each image over blocks so that about `side` blocks remain along each axis.
    """
    parts, labels = [], []
    for batch in batches:
        images = batch["image"][batch["valid"]].astype(np.float32)
        block_h, block_w = (max(1, size // side) for size in images.shape[1:3])
        height, width = images.shape[1] // block_h, images.shape[2] // block_w
        cut = images[:, : height * block_h, : width * block_w]
        pooled = cut.reshape(len(cut), height, block_h, width, block_w, 3).mean(axis=(2, 4))
        parts.append(pooled.reshape(len(pooled), -1))
        labels.append(batch["label"][batch["valid"]])
    return np.concatenate(parts), np.concatenate(labels)
