"""Which classes the maps of a data set have, found before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dppmask_jax import parallel
from dppmask_jax.analyses import base
from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.classes import class_list
from dppmask_jax.data.sources.segments import IGNORED, segmented
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import Evaluation, require_validation
from dppmask_jax.fields import Field, Rule, is_text, optional, whole
from dppmask_jax.runs import metrics

_MOST_CLASSES = 1000
FIELDS = {
    "train_images": Field(1000, whole(2), "training images, evenly spread over the split"),
    "tokens": Field(
        50_000, whole(2), "patch tokens that heads are fitted to, as many of each training image"
    ),
    "segments": Field(
        "",
        Rule(
            lambda value: (
                is_text(value) and (value == "" or value.endswith(".txt") or _is_number(value))
            ),
            f"2 to {_MOST_CLASSES}, a FILE.txt with a name on each line, or ''",
        ),
        "the classes of pixels: how many, or their names from 0 up; '' is what the data set says, "
        "or as many as its maps have",
    ),
    "ignored": Field(
        None, optional(whole(0, 2**16 - 1)), "value of pixels of no class; None is the data set's"
    ),
}
_THREADS = 4  # decoding leaves Python's lock


class Maps(NamedTuple):
    """Both splits with "segments" for all images, what their values mean, and the images used."""

    train: Source
    val: Source
    names: tuple[str, ...]
    ignored: int | None
    train_rows: np.ndarray
    val_rows: np.ndarray


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 6 and 2 <= int(text) <= _MOST_CLASSES


def opened(evaluation: Evaluation) -> Maps:
    """The maps of `config.train_images` images, at most `config.tokens`, and of `config.images` for
    validation; each is read once.

    Raises:
      NotServed: there is no validation split, there are no maps, or fewer than two images or
        classes.
      InputError: maps have another size than their image, or values that are no class.
    """
    require_validation(evaluation)
    config = evaluation.config
    splits = [segmented(split) for split in (evaluation.train, evaluation.val)]
    if None in splits:
        raise NotServed(
            f"task {config.task} needs classes of pixels or foreground masks, and "
            f"config.data.source={config.data.source} has none; set it to shapes, ade20k:ROOT, "
            "voc:ROOT or a csv:FILE with a column segments or mask"
        )
    train, val = splits
    ignored = train.ignored_segment if config.ignored is None else config.ignored
    names = _names(config.segments) or train.segment_names
    found = []
    for source, count, what in (
        (train, min(config.train_images, config.tokens), "training"),
        (val, config.images, "validation"),
    ):
        rows = base.spread(len(source), count)
        found.append((rows, _values(source, rows, names, ignored, what)))
    (train_rows, train_values), (val_rows, val_values) = found
    names = names or tuple(f"class {i}" for i in range(max(train_values | val_values) + 1))
    if len(train_values) < 2 or len(names) > _MOST_CLASSES:
        raise NotServed(
            f"the maps of config.data.source={config.data.source} have {len(names)} classes, of "
            f"which {len(train_values)} appear in {len(train_rows):,} training images; task "
            f"{config.task} needs 2 that appear, and takes {_MOST_CLASSES} at most"
        )
    return Maps(train, val, names, ignored, train_rows, val_rows)


def _names(chosen: str) -> tuple[str, ...]:
    if chosen.endswith(".txt"):
        return class_list(chosen, "segments")
    return tuple(f"class {i}" for i in range(int(chosen or 0)))


def _values(source: Source, rows, names, ignored, what: str) -> set[int]:
    """The classes in the maps of some images; those that cannot be read do not count: they are
    named when they are used."""

    def look(row):
        try:
            known = source.extras(int(row)).get("segments")
            if known is None:
                return None
            size = crops.size_of(source.read(int(row))[0])
        except (OSError, decode.DecodeError):
            return None
        return _checked(known, size, source.name(int(row)), names, ignored)

    threads = ThreadPoolExecutor(_THREADS)
    try:
        looked = threads.map(look, rows)
        looked = metrics.counted(looked, len(rows), f"{what} maps", parallel.is_main())
        readable = [values for values in looked if values is not None]
    finally:
        threads.shutdown(cancel_futures=True)
    if len(readable) < 2:
        raise NotServed(
            f"{len(readable)} of {len(rows)} {what} images can be read with their map of classes; "
            "at least 2 are needed"
        )
    values = set().union(*readable)
    if not values:
        raise NotServed(f"no pixel of {len(rows)} {what} images has a class; see config.ignored")
    return values


def _checked(known: np.ndarray, size, name: str, names, ignored) -> set[int]:
    if known.shape != size[::-1]:
        raise InputError(
            f"the map of classes of {name} has {known.shape[1]} x {known.shape[0]} pixels, the "
            f"image {size[0]} x {size[1]}; give it a map of its own size"
        )
    values = set(_different(known)) - {ignored}
    if outside := [value for value in values if not 0 <= value < (len(names) or _MOST_CLASSES)]:
        none = "" if ignored is None else f", and {ignored} for none"
        raise InputError(
            f"the map of classes of {name} has the value {outside[0]}; there are the classes 0 to "
            f"{(len(names) or _MOST_CLASSES) - 1}{none}: correct it, or set config.segments and "
            "config.ignored"
        )
    return values


def _different(known: np.ndarray) -> Iterable[int]:
    if known.dtype == np.uint8:
        return np.flatnonzero(np.bincount(known.ravel(), minlength=IGNORED + 1)).tolist()
    return np.unique(known).tolist()
