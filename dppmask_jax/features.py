"""Features of a whole data split, computed on all devices, no image left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from dppmask_jax import parallel


def extractor(encode: Callable) -> Callable:
    """Compiles `encode(params, extra, images) -> {name: (B, ...)}` into
    `extract(params, extra, batches) -> ({name: (M, ...)}, labels (M,))`.

    `batches` are padded evaluation batches with "image", "label" and "valid"; what is not valid
    is left out of the result. Only this process's images are returned.
    """
    mapped = parallel.data_parallel_map(lambda state, images: encode(*state, images))

    def extract(params, extra, batches: Iterable[dict[str, np.ndarray]]):
        parts, labels = [], []
        for batch in batches:
            out = mapped((params, extra), batch["image"])
            valid = batch["valid"]
            parts.append({name: values[valid] for name, values in out.items()})
            labels.append(batch["label"][valid])
        features = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return features, np.concatenate(labels)

    return extract


def raw_pixels(batches: Iterable[dict[str, np.ndarray]], side: int = 32):
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
