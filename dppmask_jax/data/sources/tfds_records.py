"""tfds:NAME and shapes: data sets that TFDS keeps as array_record files.

tfds:NAME has splits train and validation (or val, or test); without one of those, a share is held
out. TFDS is imported only where it is used: it takes half a second, and folders do without.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import cache, identity
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.errors import InputError, one_line

TFDS_VALIDATION = ("validation", "val", "test")
_RECORDS_AT_ONCE = 256  # while all labels are read


def open_shapes(options_text: str, data_dir: str | None) -> tuple[Source, Source]:
    """(training split, validation split) of the embedded data set, drawn where it is missing.

    Raises:
      InputError: options that it has not, or a cache that cannot be written.
    """
    import tensorflow_datasets as tfds

    from dppmask_jax.data.sources import shapes

    folder = shapes.prepare(_shapes_options(options_text), data_dir)
    builder = tfds.builder_from_directory(folder)
    encoded = ("image", "mask", "segments")
    decoders = {name: tfds.decode.SkipDecoding() for name in encoded}

    def source(split):
        records = builder.as_data_source(split, decoders=decoders)
        return Source(
            size=len(records),
            read=functools.partial(_read_record, records, "image", "label", None),
            name=functools.partial(_record_name, f"shapes {split}", None),
            class_names=shapes.CLASSES,
            extras=functools.partial(_shapes_extras, records),
            labels=functools.partial(_column, records, f"shapes {split}", "label", np.int32),
            targets=functools.partial(_column, records, f"shapes {split}", "attributes", np.uint8),
            target_names=shapes.ATTRIBUTES,
            segment_names=shapes.SEGMENTS,
            identity=functools.partial(identity.of_parts, *Path(folder).parts[-2:], split),
        )

    return source("train"), source("val")


def _shapes_options(text: str):
    from dppmask_jax.data.sources import shapes

    values = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in shapes.Options._fields or not value.isdecimal():
            raise InputError(
                f"unknown option {part!r} in the data source shapes:{text}; "
                "use shapes:size=64,train=4000,val=1000,seed=0 or some of these"
            )
        values[name] = int(value)
    return shapes.Options(**values)


def open_tfds(name: str, data_dir: str | None, val_fraction: float) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a prepared data set.

    Raises:
      InputError: it is unknown, not prepared as array_record, or without images for training.
    """
    import tensorflow_datasets as tfds

    builder = _tfds_builder(tfds, name, data_dir)
    features = builder.info.features
    images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
    if not images:
        raise InputError(f"tfds:{name} has no image feature, only {', '.join(features)}")
    image = "image" if "image" in images else images[0]
    label, class_names = None, ()
    if "label" in features and isinstance(features["label"], tfds.features.ClassLabel):
        label, class_names = "label", tuple(features["label"].names)
    because = "" if class_names else f"tfds:{name} has no feature 'label' with class names"
    if "train" not in builder.info.splits:
        raise InputError(
            f"tfds:{name} has no split train, only {', '.join(builder.info.splits) or 'none'}"
        )

    decoders = {key: tfds.decode.SkipDecoding() for key in images}

    def kept_in(split):  # the sizes tell data sets of one name in several folders apart
        info = builder.info.splits[split]
        return f"{builder.info.full_name}/{split}-{info.num_examples}-{info.num_bytes}"

    def source(split, rows):
        records = builder.as_data_source(split, decoders=decoders)
        return Source(
            size=len(records) if rows is None else len(rows),
            read=functools.partial(_read_record, records, image, label, rows),
            name=functools.partial(_record_name, f"tfds:{name} {split}", rows),
            class_names=class_names,
            unlabelled_because=because,
            labels=label
            and functools.partial(
                _cached_labels, kept_in(split), records, f"tfds:{name} {split}", label, rows
            ),
            # What is held out depends on how many are.
            identity=functools.partial(
                identity.of_parts, kept_in(split), "all" if rows is None else str(len(rows))
            ),
        )

    for split in TFDS_VALIDATION:
        if split in builder.info.splits:
            return source("train", None), source(split, None)
    count = builder.info.splits["train"].num_examples
    keys = [str(i).encode() for i in range(count)]
    out = held_out(keys, np.zeros(count, np.int32), val_fraction)
    val_rows = np.flatnonzero(out)
    return source("train", np.flatnonzero(~out)), source("train", val_rows) if out.any() else None


def _tfds_builder(tfds, name: str, data_dir: str | None):
    how = (
        'prepare it with: pip install "dppmask-jax[prepare]" && '
        f"tfds build {name.partition('/')[0]} --file_format=array_record"
        + (f" --data_dir={data_dir}" if data_dir else "")
    )
    where = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of folders where the error below says more
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        prepared = builder.is_prepared()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]  # a list of all known names follows
        raise InputError(f"cannot open tfds:{name} in {where}: {reason} {how}") from error
    finally:
        logging.set_verbosity(verbosity)
    if not prepared:
        raise InputError(f"tfds:{name} is not prepared as array_record in {where}; {how}")
    return builder


def _read_record(records, image: str, label: str | None, rows, i: int) -> tuple[bytes, int]:
    example = _example(records, int(i if rows is None else rows[i]))
    return example[image], int(example[label]) if label else -1


def _example(records, i: int) -> dict[str, Any]:
    """A record; raises OSError where it, or the file that it is in, is damaged or gone."""
    with _damage_is_an_oserror():
        return records[i]


@contextlib.contextmanager
def _damage_is_an_oserror() -> Iterator[None]:
    from google.protobuf.message import DecodeError as NoMessage

    try:
        yield
    except (RuntimeError, NoMessage) as error:  # the only kinds that the libraries raise
        raise OSError(errno.EIO, one_line(f"the record cannot be read: {error}")) from error


def _column(records, title: str, name: str, dtype) -> np.ndarray:
    """(n, …) what all records say under a name.

    Args:
      title: of the split, for messages.

    Raises:
      InputError: a record is damaged.
    """
    rows = range(len(records))
    chunks = [rows[i : i + _RECORDS_AT_ONCE] for i in rows[::_RECORDS_AT_ONCE]]
    values = [np.stack([one[name] for one in _some(records, title, chunk)]) for chunk in chunks]
    return np.concatenate(values).astype(dtype)


def _some(records, title: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Several records, read in parallel; raises InputError that names the first damaged one."""
    try:
        with _damage_is_an_oserror():
            return records.__getitems__(rows)
    except OSError:
        for i in rows:
            try:
                _example(records, i)
            except OSError as error:
                name = _record_name(title, None, i)
                raise InputError(f"{name}: {error.strerror}; prepare the data again") from error
        raise


def _cached_labels(kept_in: str, records, title: str, label: str, rows) -> np.ndarray:
    """(n,) int32. All records must be read for them, images too: once, then a file keeps them."""
    # The data set's own files say what it is called: no part of that may be a folder.
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", kept_in)
    path = cache.default_cache() / "labels" / f"{name}.npy"
    labels = cache.load(path)
    if not _are_labels(labels, len(records)):
        logging.info("reading all %d records once for their labels", len(records))
        labels = cache.written(path, lambda: _column(records, title, label, np.int32), "the labels")
    return labels if rows is None else labels[rows]


def _are_labels(kept, count: int) -> bool:
    """Whether a file of the cache keeps the labels of so many images."""
    return isinstance(kept, np.ndarray) and kept.shape == (count,) and kept.dtype == np.int32


def _record_name(prefix: str, rows, i: int) -> str:
    return f"{prefix} record {i if rows is None else rows[i]}"


def _shapes_extras(records, i: int) -> dict:
    example = _example(records, int(i))
    return {
        "mask": decode.decode(example["mask"])[..., 0],
        "segments": decode.indices(example["segments"]),
        "attributes": example["attributes"],
        "background": int(example["background"]),
    }
