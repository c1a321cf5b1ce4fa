"""Where images come from: opens the data sets that `data.source` names.

`open_source` knows these kinds:

  shapes            the embedded data set (shapes.py); `shapes:size=96,train=2000,val=500,seed=1`
                    changes its options.
  folder:PATH       image files, with or without folders for their classes and for training and
                    validation; see folder.py.
  archive:FILE      a tar or zip file of the same; see archive.py.
  wds:PATTERN       shards of WebDataset; see webdataset.py.
  hf:PATH_OR_NAME   a data set of Hugging Face's datasets; see hugging_face.py.
  arrayrecord:PATTERN
                    files of tf.train.Example; see array_records.py.
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
import os
from collections.abc import Callable
from typing import NamedTuple

from dppmask_jax import pixel_format
from dppmask_jax.data.sources import (
    archive,
    array_records,
    caltech256,
    classes,
    clevr,
    coco,
    csv_table,
    dense,
    folder,
    hugging_face,
    kept_pixels,
    one_range,
    saliency,
    tfds_records,
    webdataset,
)
from dppmask_jax.data.sources.base import Source
from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field, Rule, fraction_below_1, is_text
from dppmask_jax.pixel_format import RGB, Pixels

# {data set: its unreadable images that were named}; a command opens some several times.
_NAMED: dict[tuple[str, str | None], set[str]] = {}


class Asked(NamedTuple):
    """What is asked of a source beside its place."""

    val_fraction: float
    pixels: Pixels
    data_dir: str | None


class Kind(NamedTuple):
    """A kind of source: what stands before the colon is its name in KINDS."""

    place: str  # what stands behind the colon
    open: Callable[[str, Asked], tuple[Source, Source | None]]  # what stands there -> both splits
    of_path: bool = True  # whether a path of this machine stands there


KINDS = {
    "folder": Kind(
        "PATH", lambda path, asked: folder.open_folder(path, asked.val_fraction, asked.pixels)
    ),
    "archive": Kind(
        "FILE", lambda path, asked: archive.open_archive(path, asked.val_fraction, asked.pixels)
    ),
    "wds": Kind(
        "PATTERN",
        lambda text, asked: webdataset.open_webdataset(text, asked.val_fraction, asked.pixels),
    ),
    "hf": Kind(
        "PATH_OR_NAME",
        lambda text, asked: hugging_face.open_hugging_face(
            text, asked.val_fraction, asked.pixels, asked.data_dir
        ),
        of_path=False,
    ),
    "arrayrecord": Kind(
        "PATTERN",
        lambda text, asked: array_records.open_array_records(
            text, asked.val_fraction, asked.pixels
        ),
    ),
    "coco": Kind("ROOT", lambda path, _: coco.open_coco(path)),
    "clevr": Kind("ROOT", lambda path, _: clevr.open_clevr(path)),
    "csv": Kind(
        "FILE", lambda path, asked: csv_table.open_csv(path, asked.val_fraction, asked.pixels)
    ),
    "caltech256": Kind(
        "PATH", lambda path, asked: caltech256.open_caltech256(path, asked.val_fraction)
    ),
    "ade20k": Kind("ROOT", lambda path, _: dense.open_ade20k(path)),
    "voc": Kind("ROOT", lambda path, _: dense.open_voc(path)),
    "saliency": Kind("ROOT", lambda path, _: saliency.open_saliency(path)),
    "tfds": Kind(
        "NAME",
        lambda name, asked: tfds_records.open_tfds(name, asked.data_dir, asked.val_fraction),
        of_path=False,
    ),
}
OF_PATHS = tuple(name for name, kind in KINDS.items() if kind.of_path)
SOURCE = Rule(
    lambda value: (
        is_text(value)
        and (
            value == "shapes" or value.startswith(tuple(f"{name}:" for name in ("shapes", *KINDS)))
        )
    ),
    " | ".join(("shapes", *(f"{name}:{kind.place}" for name, kind in KINDS.items()))),
)
FIELDS = {
    "data.source": Field("shapes", SOURCE, "where the images are, see docs/data.md"),
    **classes.FIELDS,
    **pixel_format.FIELDS,
    "data.dir": Field(
        "", TEXT, "where tfds:, hf: and shapes keep their files; '' is the usual place"
    ),
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
    splits = encoded_splits(spec, data_dir=data_dir, val_fraction=val_fraction, pixels=pixels)
    named = _NAMED.setdefault((spec, data_dir), set())
    splits = tuple(split and dataclasses.replace(split, named=named) for split in splits)
    if pixels.kept:
        return kept_pixels.of_splits(splits, pixels)
    return splits if spec.startswith("shapes") else one_range.of_splits(splits, grey_range)


def encoded_splits(
    spec: str, *, data_dir: str | None = None, val_fraction: float = 0.1, pixels: Pixels = RGB
) -> tuple[Source, Source | None]:
    """As `open_splits`, but images stay as they are encoded in their files."""
    name, _, rest = spec.partition(":")
    if name == "shapes":
        return tfds_records.open_shapes(rest, data_dir)
    if name not in KINDS or not rest:
        raise InputError(f"unknown data source {spec!r}; use {SOURCE.allowed}")
    kind = KINDS[name]
    place = os.path.expanduser(rest) if kind.of_path else rest
    return kind.open(place, Asked(val_fraction, pixels, data_dir))


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
