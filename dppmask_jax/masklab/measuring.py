"""Draws the masks and measures each, image by image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax import patches
from dppmask_jax.masklab import ways
from dppmask_jax.masklab.photographs import Photographs
from dppmask_jax.masklab.showing import Show
from dppmask_jax.masklab.ways import Terms, Way
from dppmask_jax.patches import PatchSize
from dppmask_jax.scores import coverage, filling, mask_shape

_BATCH = 50  # images that are masked at once
_TIMED = 3  # runs of which the fastest counts


class Found(NamedTuple):
    """What was measured of one way of masking.

    Attributes:
      of_images: {statistic: (seeds, B) float}; those of `filling` are of the first seed's masks
        alone, (1, B).
      of_objects: {statistic: (seeds, M) float}.
      visible_rate: (R, C) float, how often a place was visible.
      milliseconds: an image, of the fastest of some runs; what the masks are drawn from was there.
    """

    of_images: dict[str, np.ndarray]
    of_objects: dict[str, np.ndarray]
    visible_rate: np.ndarray
    milliseconds: float


class Setting(NamedTuple):
    """How all masks are measured: what they are drawn on, the size of patches, the number of seeds,
    and the part of its fair share below which an object is almost hidden."""

    terms: Terms
    patch_size: PatchSize
    seeds: int
    almost: float


def measure(
    photographs: Photographs, show: Show, chosen: Sequence[Way], setting: Setting
) -> dict[str, Found]:
    """{label: what was found of it}. Masks of an image and a seed are all drawn with one key."""
    found: dict[str, list[list]] = {way.label: [] for way in chosen}
    spent = {}
    for seed in range(setting.seeds):
        for rows in _batches(len(photographs.images)):
            numbers = padded(rows, len(photographs.images))
            shown = show(numbers, seed)
            keys = ways.keys_of(seed, numbers)
            seen = _Batch(photographs, rows, shown, with_pixels=seed == 0, setting=setting)
            for way in chosen:
                mask, metrics = jax.device_get(ways.draw(way, keys, shown, setting.terms))
                found[way.label].append([seed, *seen.measured(mask, metrics)])
            if not spent:
                spent = {way.label: _cost(way, keys, shown, setting) for way in chosen}
    return {label: _joined(pieces, setting, spent[label]) for label, pieces in found.items()}


def padded(numbers: Sequence[int], of: int) -> np.ndarray:
    """Numbers of images, filled up with copies to what is masked at once of so many images, so that
    there is one shape to compile for."""
    return np.resize(numbers, min(_BATCH, of))


def _batches(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), range(_BATCH, count, _BATCH))


class _Batch:
    """Some images, what is known of them once for all masks, and how a mask of them is measured."""

    def __init__(self, photographs: Photographs, rows, shown, with_pixels: bool, setting: Setting):
        self._count, self._grid, self._almost = len(rows), setting.terms.grid, setting.almost
        mine = np.flatnonzero((photographs.owner >= rows[0]) & (photographs.owner <= rows[-1]))
        self._place = photographs.owner[mine] - rows[0]
        self._objects = photographs.objects[mine]
        features = shown.get("features")
        self._kernel = None if features is None else coverage.kernel_of(features[: len(rows)])
        self._pixels = None
        if with_pixels:
            self._pixels = np.asarray(
                patches.patchify(photographs.images[rows], setting.patch_size), np.float32
            )

    def measured(self, mask, metrics: Mapping[str, Any]):
        """({statistic: (b,)}, {statistic: (m,)}, (R, C) how many masks show each place)."""
        flat = np.asarray(mask.hidden)[: self._count]
        hidden = flat.reshape(self._count, *self._grid)
        of_images = {
            "visible": (~flat).sum(axis=1).astype(float),
            "equal": mask_shape.equal_neighbours(hidden),
            "piece": mask_shape.largest_piece(hidden),
            "low": mask_shape.low_frequencies(hidden),
            "distance": mask_shape.distance_to_visible(hidden),
            "inner": mask_shape.inner_gap(hidden),
        }
        if mask.thrown is not None:
            of_images["thrown"] = np.asarray(mask.thrown)[: self._count].mean(axis=1)
        if "num_greedy" in metrics:
            of_images["num_greedy"] = np.asarray(metrics["num_greedy"][: self._count], float)
        if self._kernel is not None:
            order = np.asarray(mask.order)[: self._count]
            of_images["log_det"] = _log_det(self._kernel, order, (~flat).sum(axis=1))
        if self._pixels is not None:
            of_images["copied"] = filling.copied(self._pixels, hidden)
            of_images["interpolated"] = filling.interpolated(self._pixels, hidden)
        of_objects = coverage.coverage(~flat[self._place], self._objects, self._almost)
        return of_images, of_objects, (~hidden).sum(axis=0)


def _log_det(kernel: np.ndarray, order: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """(B,): of the first patches of each order (B, N), as many as are visible (B,)."""
    found = np.empty(len(order))
    for number in np.unique(visible):
        rows = visible == number
        found[rows] = coverage.log_det(kernel[rows], order[rows, :number])
    return found


def _cost(way: Way, keys, shown, setting: Setting) -> float:
    """Milliseconds an image, once compiled."""
    spent = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        jax.block_until_ready(ways.draw(way, keys, shown, setting.terms))
        spent.append(time.perf_counter() - start)
    return 1000 * min(spent) / len(keys)


def _joined(pieces: list[list], setting: Setting, milliseconds: float) -> Found:
    """What was found of all seeds and batches."""

    def by_seed(which: int) -> dict[str, np.ndarray]:
        rows: dict[str, dict[int, list]] = {}
        for seed, *found in pieces:
            for name, values in found[which].items():
                rows.setdefault(name, {}).setdefault(seed, []).append(values)
        return {
            name: np.stack([np.concatenate(values) for values in of_seeds.values()])
            for name, of_seeds in rows.items()
        }

    of_images = by_seed(0)
    masks = of_images["equal"].size
    visible_rate = sum(shows for *_, shows in pieces) / masks
    return Found(of_images, by_seed(1), visible_rate, milliseconds)
