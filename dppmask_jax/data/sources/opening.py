"""Where images come from: opens the data sets that `data.source` names.

`open_source` knows these kinds:

  shapes            the embedded data set (shapes.py); `shapes:size=96,train=2000,val=500,seed=1`
                    changes its options.
  folder:PATH       image files, with or without folders for their classes and for training and
                    validation; see folder.py.
  tfds:NAME         a TFDS data set prepared in the array_record format, with splits train and
                    validation (or val, or test); without one of those, `val_fraction` is held out.
  caltech256:PATH   Caltech-256, see caltech256.py.
  coco:ROOT, clevr:ROOT, csv:FILE
                    annotated images, with several labels an image; see coco.py, clevr.py
                    and csv_table.py.
  ade20k:ROOT, voc:ROOT
                    images with a class for each pixel; see dense.py.
  saliency:ROOT     images with foreground masks, see saliency.py.

docs/data.md has the same for users.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from dppmask_jax import pixel_format
from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import (
    caltech256,
    classes,
    clevr,
    coco,
    csv_table,
    dense,
    folder,
    identity,
    kept_pixels,
    one_range,
    saliency,
)
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field, Rule, fraction_below_1, is_text
from dppmask_jax.pixel_format import RGB, Pixels

# {data set: its unreadable images that were named}; a command opens some several times.
_NAMED: dict[tuple[str, str | None], set[str]] = {}
TFDS_VALIDATION = ("validation", "val", "test")
_RECORDS_AT_ONCE = 256  # while all labels are read


class _Layout(NamedTuple):
    """A layout of files in a folder."""

    place: str  # what stands behind the colon
    open: Callable[..., tuple[Source, Source | None]]  # of a path, a val_fraction and Pixels


_LAYOUTS = {
    "folder": _Layout("PATH", folder.open_folder),
    "coco": _Layout("ROOT", lambda path, *_: coco.open_coco(path)),
    "clevr": _Layout("ROOT", lambda path, *_: clevr.open_clevr(path)),
    "csv": _Layout("FILE", csv_table.open_csv),
    "caltech256": _Layout(
        "PATH", lambda path, fraction, _: caltech256.open_caltech256(path, fraction)
    ),
    "ade20k": _Layout("ROOT", lambda path, *_: dense.open_ade20k(path)),
    "voc": _Layout("ROOT", lambda path, *_: dense.open_voc(path)),
    "saliency": _Layout("ROOT", lambda path, *_: saliency.open_saliency(path)),
}
OF_PATHS = tuple(_LAYOUTS)  # kinds of sources with a path behind them
SOURCE = Rule(
    lambda value: (
        is_text(value)
        and (
            value == "shapes"
            or value.startswith(tuple(f"{kind}:" for kind in ("shapes", "tfds", *_LAYOUTS)))
        )
    ),
    " | ".join(
        ("shapes", *(f"{kind}:{layout.place}" for kind, layout in _LAYOUTS.items()), "tfds:NAME")
    ),
)
FIELDS = {
    "data.source": Field("shapes", SOURCE, "where the images are, see docs/data.md"),
    **classes.FIELDS,
    **pixel_format.FIELDS,
    "data.dir": Field("", TEXT, "where tfds: and shapes keep their files; '' is the usual place"),
    "data.val_fraction": Field(
        0.1, fraction_below_1, "share held out where the source has no validation split"
    ),
}


def open_source(
    spec: str, split: str, *, data_dir: str | None = None, val_fraction: float = 0.1
) -> Source | None:
    """Opens one split of a data set.

    Args:
      spec: see the module's docstring.
      split: "train" or "val".
      data_dir: where TFDS data sets lie, or where shapes is cached; None for the usual places.
      val_fraction: share, 0 to below 1, held out where the data set has no validation split.

    Returns:
      The split; None for "val" where there is no validation split and nothing is held out.

    Raises:
      InputError: an unknown spec, or a missing, empty, unreadable or unprepared data set.
    """
    train, val = open_splits(spec, data_dir=data_dir, val_fraction=val_fraction)
    return {"train": train, "val": val}[split]


def open_splits(
    spec: str,
    *,
    data_dir: str | None = None,
    val_fraction: float = 0.1,
    grey_range: tuple[float, float] | None = None,
    pixels: Pixels = RGB,
) -> tuple[Source, Source | None]:
    """(training split, validation split or None), as `open_source`; scans a folder once only.

    Args:
      grey_range: (black, white) in greyscale of more than 8 bits; None decides by a sample of the
        files, see `greys.of_sample`. It does not matter where pixels are kept.
      pixels: of the images; 8-bit RGB is made of all, or they are kept as they are.

    Raises:
      InputError: see `open_source`; or images of a sample are of other pixels.
    """
    splits = _opened(spec, data_dir, val_fraction, pixels)
    named = _NAMED.setdefault((spec, data_dir), set())
    splits = tuple(split and dataclasses.replace(split, named=named) for split in splits)
    if pixels.kept:
        return kept_pixels.of_splits(splits, pixels)
    return splits if spec.startswith("shapes") else one_range.of_splits(splits, grey_range)


def _opened(
    spec: str, data_dir: str | None, val_fraction: float, pixels: Pixels
) -> tuple[Source, Source | None]:
    kind, _, rest = spec.partition(":")
    if kind == "shapes":
        return _open_shapes(rest, data_dir)
    if kind == "tfds" and rest:
        return _open_tfds(rest, data_dir, val_fraction)
    if kind in _LAYOUTS and rest:
        return _LAYOUTS[kind].open(os.path.expanduser(rest), val_fraction, pixels)
    raise InputError(f"unknown data source {spec!r}; use {SOURCE.allowed}")


def of_data(data) -> tuple[Source, Source | None]:
    """The splits that `config.data` names, with the pixels that it says.

    Raises:
      InputError: see `open_splits`.
    """
    return open_splits(
        data.source,
        data_dir=data.dir or None,
        val_fraction=data.val_fraction,
        grey_range=pixel_format.named_range(data.range),
        pixels=pixel_format.of_data(data),
    )


# TFDS data sets, the embedded one among them. TFDS is imported only where it is used: it takes
# half a second, and folders do without.


def _open_shapes(options_text: str, cache: str | None) -> tuple[Source, Source]:
    import tensorflow_datasets as tfds

    from dppmask_jax.data.sources import shapes

    folder = shapes.prepare(_shapes_options(options_text), cache)
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
            labels=functools.partial(_column, records, "label", np.int32),
            targets=functools.partial(_column, records, "attributes", np.uint8),
            target_names=shapes.ATTRIBUTES,
            segment_names=shapes.SEGMENTS,
            identity=functools.partial(identity.of_texts, *Path(folder).parts[-2:], split),
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


def _open_tfds(
    name: str, data_dir: str | None, val_fraction: float
) -> tuple[Source, Source | None]:
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
            and functools.partial(_cached_labels, kept_in(split), records, label, rows),
            # What is held out depends on how many are.
            identity=functools.partial(
                identity.of_texts, kept_in(split), "all" if rows is None else str(len(rows))
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
    example = records[int(i if rows is None else rows[i])]
    return example[image], int(example[label]) if label else -1


def _column(records, name: str, dtype) -> np.ndarray:
    """(n, …) what all records say under a name."""
    rows = range(len(records))
    chunks = [rows[i : i + _RECORDS_AT_ONCE] for i in rows[::_RECORDS_AT_ONCE]]
    read = records.__getitems__  # several at a time, in parallel
    values = [np.stack([record[name] for record in read(chunk)]) for chunk in chunks]
    return np.concatenate(values).astype(dtype)


def _cached_labels(kept_in: str, records, label: str, rows) -> np.ndarray:
    """(n,) int32. All records must be read for them, images too: once, then a file keeps them."""
    from dppmask_jax.data.sources import shapes

    # The data set's own files say what it is called: no part of that may be a folder.
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", kept_in)
    path = shapes.default_cache() / "labels" / f"{name}.npy"
    labels = _kept_labels(path, len(records))
    if labels is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, building = tempfile.mkstemp(dir=path.parent, prefix=".")
        except OSError as error:
            raise InputError(
                f"cannot write the labels to {path} ({error.strerror}); "
                "set DPPMASK_CACHE to a writable folder"
            ) from error
        try:
            logging.info("reading all %d records once for their labels", len(records))
            with os.fdopen(handle, "wb") as file:
                labels = _column(records, label, np.int32)
                np.save(file, labels)
            os.replace(building, path)
        finally:
            Path(building).unlink(missing_ok=True)
    return labels if rows is None else labels[rows]


def _kept_labels(path: Path, count: int) -> np.ndarray | None:
    """The labels that a file keeps; None where there is none, or a damaged one."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(labels, np.ndarray) and labels.shape == (count,) and labels.dtype == np.int32
    return labels if fits else None


def _record_name(prefix: str, rows, i: int) -> str:
    return f"{prefix} record {i if rows is None else rows[i]}"


def _shapes_extras(records, i: int) -> dict:
    example = records[int(i)]
    return {
        "mask": decode.decode(example["mask"])[..., 0],
        "segments": decode.indices(example["segments"]),
        "attributes": example["attributes"],
        "background": int(example["background"]),
    }
