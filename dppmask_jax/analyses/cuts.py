"""Images cut by TokenCut, each compared with its foreground mask, on all processes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dppmask_jax import parallel, patches
from dppmask_jax.analyses import base, bilateral, masked_images
from dppmask_jax.analyses.tokencut import mean_cosine, tokencut
from dppmask_jax.data import loader
from dppmask_jax.data.images import crops
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.figures import colours
from dppmask_jax.figures.saliency import SIDE, Found, from_0_to_1, panels_of
from dppmask_jax.runs import metrics
from dppmask_jax.runs.run import Run
from dppmask_jax.scores import saliency as scores

_TOKENS_AT_ONCE = 2**15  # of a batch, which all go to the host
_MEAN_SIDE = 56  # pixels of the means over all images
Groups = Mapping[tuple[int, int], np.ndarray]  # (height, width) -> numbers of images


class Cuts(NamedTuple):
    """What was found in M images, with K masks of each: TokenCut's, and that of the bilateral
    solver where `config.bilateral` asks for it.

    Attributes:
      numbers: "f_beta" (M, K, 255), "iou" and "accuracy" (M, K); "truth", the share of the image
        that is foreground, "cosine", the mean one of its tokens, and "uncut", 1 where nothing could
        be cut (M,); "index" (M,), the number of the image.
      panels: {number of an image that is shown: its `panels_of`}.
      mean: the means over all images, squeezed into a square.
    """

    numbers: dict[str, np.ndarray]
    panels: dict[int, np.ndarray]
    mean: Found


def of_images(evaluation: Evaluation, groups: Groups, shown: Sequence[int]) -> Cuts:
    """Cuts images at the sizes at which they are seen.

    Args:
      shown: the numbers of images whose pictures are kept.

    Raises:
      InputError: none of them can be read.
    """
    found = _Gathering(shown, 2 if evaluation.config.bilateral else 1)
    with ThreadPoolExecutor() as threads:
        for indices, valid, images, tokens, grid in _encoded(evaluation, groups):
            images = colours.shown(base.split_of(evaluation).pixels, images)
            rows = [(int(indices[i]), images[i], tokens[i]) for i in np.flatnonzero(valid)]
            cut = functools.partial(_cut, evaluation, grid)
            found.add(list(threads.map(lambda row, cut=cut: cut(*row), rows)), valid)
    return found.all()


def _encoded(evaluation: Evaluation, groups: Groups) -> Iterator[tuple]:
    """(numbers (b,), valid (b,), images (b, H, W, C), patch tokens (b, N, D), grid) of this
    process's share of batches, one size after the other: each compiles the encoder once."""
    config, (shard, num_shards) = evaluation.config, parallel.process_shard()

    def batches():
        for size, indices in groups.items():
            run = evaluation.run.at_size(size)
            encode = _encoder(run)
            grid = run.method.encoder.grid
            with loader.eval_batches(
                base.split_of(evaluation),
                image_size=size,
                batch_size=batch_sizes[size],
                view=_lanczos,
                indices=indices,
                workers=config.data.workers,
                shard=shard,
                num_shards=num_shards,
                log=evaluation.say,
            ) as stream:
                for batch in stream:
                    tokens = encode(run.encoder, batch["image"])
                    yield batch["index"], batch["valid"], batch["image"], tokens, grid

    batch_sizes = {
        size: _batch_size(config, size, len(indices)) for size, indices in groups.items()
    }
    total = sum(-(-len(indices) // batch_sizes[size]) for size, indices in groups.items())
    return metrics.counted(batches(), total, "images", parallel.is_main())


def _batch_size(config, size: tuple[int, int], images: int) -> int:
    rows, columns = patches.grid_shape(size, config.model.patch_size)
    most = max(1, _TOKENS_AT_ONCE // (rows * columns))
    return parallel.round_up(min(features.batch_size(config), most, images))


def _encoder(run: Run):
    encoder = run.method.encoder
    return parallel.data_parallel_map(
        lambda params, images: encoder.encode(params, encoder.pixels.normalize(images)).patches
    )


def _lanczos(data: bytes, *, image_size: tuple[int, int]) -> np.ndarray:
    """The whole image, resized as SOAP does it."""
    return crops.whole_image(data, image_size=image_size, resample=Image.Resampling.LANCZOS)


class _Cut(NamedTuple):
    """An image that was cut; `numbers` as `Cuts` has them."""

    index: int
    numbers: dict[str, Any]
    found: Found


def _cut(evaluation: Evaluation, grid: tuple[int, int], index: int, image, tokens) -> _Cut:
    """Cuts one image and compares it with its truth."""
    config, source = evaluation.config, base.split_of(evaluation)
    truth = scores.foreground(source.extras(index)["mask"])
    cut = tokencut(tokens, grid, config.threshold)
    mask = nearest(cut.mask, truth.shape)
    masks, soft = [mask], [mask]
    if config.bilateral:
        size = masked_images.within(truth.shape, config.max_side)
        pixels = _lanczos(source.read(index)[0], image_size=size)
        pixels = colours.shown(source.pixels, pixels)
        coarse = nearest(cut.mask, size)
        smooth = bilateral.smoothed(pixels, coarse)
        masks.append(nearest(bilateral.object_of(smooth, coarse), truth.shape))
        soft.append(nearest(smooth, truth.shape))
    numbers = {
        "f_beta": [scores.f_beta(scores.precision_recall(each, truth)) for each in soft],
        "iou": [scores.iou(each, truth) for each in masks],
        "accuracy": [scores.accuracy(each, truth) for each in masks],
        "truth": truth.mean(),
        "cosine": mean_cosine(tokens),
        "uncut": not cut.eigenvector.any(),
    }
    return _Cut(index, numbers, Found(image, cut.eigenvector.reshape(grid), (*masks, truth)))


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) -> (H, W), each pixel from the cell that it lies in."""
    rows, columns = (
        np.arange(wanted) * had // wanted for wanted, had in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


class _Gathering:
    """Gathers what was found in the images of this process, and then of all."""

    def __init__(self, shown: Sequence[int], masks: int):
        self._shown = np.array(shown)
        self._panels = np.zeros((len(shown), 3 + masks, SIDE, SIDE, 3), np.uint8)
        self._sums = np.zeros((4 + masks + 1, _MEAN_SIDE, _MEAN_SIDE), np.float32)
        self._masks = masks
        self._rows = []

    def add(self, cuts: list[_Cut], valid: np.ndarray) -> None:
        """Adds the valid images of a batch; every process adds the same number of batches."""
        shapes = {"f_beta": (self._masks, len(scores.THRESHOLDS))}
        shapes |= {name: (self._masks,) for name in ("iou", "accuracy")}
        shapes |= {name: () for name in ("truth", "cosine", "uncut")}
        rows = {name: np.zeros((len(valid), *shape), np.float32) for name, shape in shapes.items()}
        rows |= {"valid": valid, "index": np.zeros(len(valid), np.int32)}
        for place, cut in zip(np.flatnonzero(valid), cuts, strict=True):
            rows["index"][place] = cut.index
            for name in shapes:
                rows[name][place] = cut.numbers[name]
            if cut.index in self._shown:
                self._panels[self._shown == cut.index] = panels_of(cut.found)
            self._sums += _small(cut.found)
        self._rows.append(parallel.all_rows(rows))

    def all(self) -> Cuts:
        """Raises InputError where no image could be read."""
        rows = {name: np.concatenate([some[name] for some in self._rows]) for name in self._rows[0]}
        rows = {name: values[rows["valid"]] for name, values in rows.items()}
        if not len(rows["index"]):
            raise InputError(features.NONE_READABLE)
        ours = {"panels": self._panels[None], "sums": self._sums[None]}
        whole = {name: values.sum(axis=0) for name, values in parallel.all_rows(ours).items()}
        means = whole["sums"] / len(rows["index"])
        image = np.moveaxis(means[:3], 0, -1).round().astype(np.uint8)
        panels = dict(zip(self._shown.tolist(), whole["panels"].astype(np.uint8), strict=True))
        return Cuts(rows, panels, Found(image, means[3], tuple(means[4:])))


def _small(found: Found) -> np.ndarray:
    """(4 + masks, side, side): the channels of the image, the eigenvector from 0 to 1, masks."""
    size = (_MEAN_SIDE, _MEAN_SIDE)
    colours = [nearest(found.image[..., channel], size) for channel in range(3)]
    maps = (from_0_to_1(found.eigenvector), *found.masks)
    return np.stack([*colours, *(nearest(values, size) for values in maps)])
