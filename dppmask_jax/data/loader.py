"""Batches of images: an endless training stream and one pass for evaluation.

Batch s of the training stream is a function of (seed, s) alone: resuming means starting at
another s, and nothing is stored. The images of an epoch are a permutation of the source; batches
run across the border of two epochs. Neither the number of workers or threads nor the number of
shards changes which image stands where or what random numbers it gets: shard k of n gets the k-th
n-th of each batch.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import grain
import numpy as np
from absl import flags, logging

from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources import image_files
from dppmask_jax.data.sources.base import Source, first_extras
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.fields import Field, whole

Batch = dict[str, np.ndarray]
# Image, encoded or as its pixels, random numbers and, where any are asked for, extras by their
# names -> the arrays of one example; DecodeError if it is unreadable.
Example = Callable[..., dict[str, np.ndarray]]

_CHUNK = 32  # images that a thread or worker loads at a time, at most
_MAX_REPLACEMENTS = 1000  # unreadable images in a row before giving up
_REASON = 200  # bytes of why an image is unreadable that are kept
FIELDS = {
    "data.workers": Field(
        0, whole(0, 256), "loader processes; 0 loads in threads", free="carried out"
    ),
}


class Batches:
    """An iterator over batches that owns threads or processes.

    Close it, or use it as a context manager; at its end it closes itself.
    """

    def __init__(self, batches: grain.DatasetIterator, finish: Callable[[Batch], Batch]):
        # Grain prints errors if the interpreter ends while one of its iterators is around, even a
        # closed one. So the only reference is in a cell that can be emptied, at the latest at exit.
        self._cell = [batches]
        self._finish = finish
        self._finalizer = weakref.finalize(self, _close, self._cell)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._cell:
            raise StopIteration
        try:
            return self._finish(next(self._cell[0]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and processes; there are no batches after that."""
        self._finalizer()


def _close(cell: list) -> None:
    while cell:
        cell.pop().close()


def train_stream(
    source: Source,
    *,
    example: Example,
    batch_size: int,
    seed: int,
    extras: tuple[str, ...] = (),
    start_step: int = 0,
    workers: int = 0,
    shard: int = 0,
    num_shards: int = 1,
    log: Callable[[str], None] = logging.warning,
) -> Batches:
    """Shuffled, randomly cropped training batches, from batch `start_step` on, for ever.

    Args:
      example: makes the arrays of one example from an encoded image and random numbers of its own,
        such as a functools.partial of crops.single_view or crops.multi_crop; picklable if there
        are workers.
      batch_size: images in a batch of all shards together; a multiple of num_shards.
      seed: 0 to 2**32 - 1.
      extras: names of what the source knows of its images that `example` is given as well; an
        image without one of them counts as unreadable. See `base.first_extras`.
      workers: processes that load; 0 loads in threads of this one.
      shard: which part of each batch to yield, 0 to num_shards - 1.
      log: called with one line for each unreadable image of the source, the first time that it is
        met in this process.

    Yields:
      The arrays of `example`, each with a leading axis of b = batch_size / num_shards; "label" (b,)
      int32, -1 where there is none, or (b, C) int32 where the source's labels are C numbers;
      "index" (b,) int32, the example's position in the stream (step * batch_size + place in the
      batch, modulo 2**31); "row" (b,) int32, the number of its image in the source; "bad" (b,)
      bool, True where the image that was drawn is unreadable, and the next readable one of the
      source stands for it.

    Raises:
      InputError: while iterating, where a thousand images in a row (or all) are unreadable.
    """
    share = _share(batch_size, shard, num_shards)
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    load = functools.partial(_load_drawn, source, order, example, extras, share, seed)
    first = start_step * share.size
    # The length of a grain data set must fit into 64 bits.
    positions = grain.MapDataset.range(first, sys.maxsize // 2)
    batches = _iterate(positions.map(load), share.size, workers)
    name = _Namer(source, log)

    def finish(batch):
        name(batch.pop("wanted")[batch["bad"]], batch.pop("reason")[batch["bad"]])
        return batch

    return Batches(batches, finish)


def eval_batches(
    source: Source,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    extras: tuple[str, ...] = (),
    indices: np.ndarray | None = None,
    view: Callable[..., np.ndarray] = crops.center_crop,
    workers: int = 0,
    shard: int = 0,
    num_shards: int = 1,
    log: Callable[[str], None] = logging.warning,
) -> Batches:
    """One pass over a source, in order.

    Args:
      image_size: (H, W) in pixels.
      batch_size: images in a batch of all shards together; a multiple of num_shards.
      extras: names of what the source knows of its images that batches hold as well, maps cropped
        as crops.center_crop does; an image without one of them counts as unreadable.
      indices: which images of the source, in which order; None for all.
      view: what is taken of an image, crops.center_crop or crops.whole_image.
      workers, shard, num_shards, log: as for train_stream. Every shard gets the same number of
        batches.

    Yields:
      "image" (b, H, W, C), uint8 or float32 as `source.pixels` says; "label" (b,) int32, or
      (b, L) where the source's labels are L numbers; "index" (b,) int32, the image's number in
      the source; "valid" (b,) bool, False for unreadable images and for those that fill up the
      last batch (black, labels all -1).
      b = batch_size / num_shards.
    """
    indices = np.arange(len(source)) if indices is None else np.asarray(indices)
    share = _share(batch_size, shard, num_shards)
    image_size = tuple(image_size)
    blank = {
        name: np.zeros(image_size if value.ndim == 2 else value.shape, value.dtype)
        for name, value in first_extras(source, extras, "this evaluation").items()
    }
    load = functools.partial(_load_listed, source, indices, view, image_size, blank, share)
    length = math.ceil(len(indices) / batch_size) * share.size
    batches = _iterate(grain.MapDataset.range(length).map(load), share.size, workers)
    name = _Namer(source, log)

    def finish(batch):
        bad = batch.pop("bad")
        name(batch["index"][bad], batch.pop("reason")[bad])
        return batch

    return Batches(batches, finish)


class _Share(NamedTuple):
    """The part of each batch that one shard loads."""

    batch_size: int
    size: int
    offset: int

    def position(self, local: int) -> int:
        step, place = divmod(local, self.size)
        return step * self.batch_size + self.offset + place


def _share(batch_size: int, shard: int, num_shards: int) -> _Share:
    if batch_size % num_shards:
        raise InputError(f"a batch of {batch_size} does not split over {num_shards} processes")
    size = batch_size // num_shards
    return _Share(batch_size, size, shard * size)


def _iterate(examples: grain.MapDataset, batch_size: int, workers: int) -> grain.DatasetIterator:
    # Threads and workers load chunks, which are put together here: a whole batch each would
    # multiply the memory, and single images the overhead. Workers must deal out whole chunks in
    # turn, so the batch is put together after them.
    chunk = max(size for size in range(1, _CHUNK + 1) if batch_size % size == 0)
    per_batch = batch_size // chunk
    threads = 1 if workers else _cores()
    options = grain.ReadOptions(threads, 2 * threads + (0 if workers else per_batch))
    chunks = examples.batch(chunk).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read flags, which only absl.app parses
            flags.FLAGS.mark_as_parsed()
        ahead = max(1, 2 * per_batch // workers)
        chunks = chunks.mp_prefetch(
            grain.MultiprocessingOptions(workers, ahead), worker_init_fn=_begin_worker
        )
    return iter(chunks.batch(per_batch, batch_fn=_concatenate))


def _begin_worker(number: int, count: int) -> None:
    """Makes a worker ignore the signals that a whole job gets, and end with its parent."""
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _concatenate(chunks: list[Batch]) -> Batch:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


# One example. These run in threads and in worker processes.


def _load_drawn(source, order, example: Example, extras, share: _Share, seed: int, local: int):
    position = share.position(local)
    wanted, reason = order[position], ""
    for step in range(min(len(source), _MAX_REPLACEMENTS)):
        index = (wanted + step) % len(source)
        rng = np.random.default_rng((seed, position))
        try:
            data, label = source.read(index)
            asked = [_extras_of(source, extras, index)] if extras else []
            arrays = example(data, rng, *asked)
        except (OSError, decode.DecodeError) as error:
            reason = reason or image_files.why(error)
            continue
        return {
            **arrays,
            "label": np.asarray(label, np.int32),
            "index": np.int32(position % 2**31),
            "row": np.int32(index),
            "bad": np.bool_(step > 0),
            "wanted": np.int64(wanted),
            "reason": _kept(reason),
        }
    raise InputError(
        f"{step + 1} images in a row are unreadable, from {source.name(wanted)} on ({reason}); "
        "check data.source"
    )


def _extras_of(source: Source, names: Iterable[str], index: int) -> Batch:
    known = source.extras(index)
    for name in names:
        if name not in known:
            raise decode.DecodeError(f"it has no {name}")
    return {name: np.asarray(known[name]) for name in names}


def _load_listed(source, indices, view, image_size, blank, share: _Share, local: int):
    position = share.position(local)
    index = int(indices[position]) if position < len(indices) else 0
    image, label = source.pixels.blank(image_size), np.full(source.label_shape, -1)
    valid, bad, reason, extras = position < len(indices), False, "", blank
    if valid:
        try:
            data, known = source.read(index)
            found = view(data, image_size=image_size)
            if blank:
                extras = crops.evaluation_extras(data, _extras_of(source, blank, index), image_size)
            image, label = found, known
        except (OSError, decode.DecodeError) as error:
            valid, bad, reason = False, True, image_files.why(error)
    return {
        **extras,
        "image": image,
        "label": np.asarray(label, np.int32),
        "index": np.int32(index),
        "valid": np.bool_(valid),
        "bad": np.bool_(bad),
        "reason": _kept(reason),
    }


def _kept(reason: str) -> np.ndarray:
    # Of one size, so that the reasons of a batch are an array that workers can hand over.
    return np.array(reason.encode(errors="replace")[:_REASON], f"S{_REASON}")


class _Namer:
    """Names each unreadable image of a source once."""

    def __init__(self, source: Source, log: Callable[[str], None]):
        self._source = source
        self._log = log

    def __call__(self, indices: np.ndarray, reasons: np.ndarray) -> None:
        for index, reason in zip(indices.tolist(), reasons.tolist(), strict=True):
            name = self._source.name(index)
            if name not in self._source.named:
                self._source.named.add(name)
                words = reason.decode(errors="ignore")  # it may be cut within a character
                self._log(one_line(f"unreadable image: {name}: {words}"))
