"""wds:PATTERN, shards of WebDataset: tar files whose members KEY.EXTENSION make a sample each.

    wds:PATH/train-{000000..000012}.tar    wds:PATH/*.tar    wds:PATH
    wds:PATTERN,val=PATTERN,image=jpg,label=cls

A key ends at the first dot of the file's name, as in the package webdataset; members of one key in
one shard are a sample. Its image is the member whose extension is one of images (`image` says which
one where there are several), its label what is in KEY.cls, or the value of "label" in KEY.json;
`label` names another extension, or json.NAME another value, and label=none leaves labels out.
Classes are the different labels in ascending order.

Shards are not streamed: where every image lies is read from the headers once, see packed.py, and
rows are drawn as those of all other sources. The position in training is the step alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.sources import cache, classes, folder, options, packed, shards
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import check_readable, file_source, from_names
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels
from dppmask_jax.words import count

EXTENSION = ".tar"
_LABELS = ("cls", "json.label")  # where a label is looked for
_JSON = "json."
_MOST_TEXT, _MOST_JSON = 1000, 2**24  # bytes that a label is looked for in
_THREADS = 8  # that read headers


def open_webdataset(
    text: str, val_fraction: float, pixels: Pixels = RGB
) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of the shards that a pattern names.

    Raises:
      InputError: no shard or no image is found; a shard is compressed, cut short or no tar file, or
        has a name twice; a sample has several images; a class for validation has no training image.
    """
    pattern, chosen = options.parted("wds", text, ("val", "image", "label"))
    files = shards.found("wds", pattern, chosen["val"], EXTENSION)
    packed.check(files.paths)
    wanted = _Wanted(chosen["image"], chosen["label"], pixels)
    how = f"samples {wanted.image} {wanted.label} {pixels.kept}"
    arrays = cache.of_files(files.paths, how, functools.partial(_table, files.paths, wanted))
    names = cache.texts_of(arrays["names"])
    if not names:
        raise InputError(f"wds:{pattern}: no sample has an image; name its extension: ,image=jpg")
    members = packed.of_arrays(files.paths, False, arrays)
    images = from_names(files.root, files.relative(), members.file_of, names)
    images = images._replace(packed=members)
    check_readable(images, pixels)
    val = _flags(f"wds:{pattern}", files, members.file_of)
    texts = cache.texts_of(arrays["labels"])
    labels = classes.of_splits(texts, f"wds:{pattern}", images.path, val)
    train, kept_back, notes = shards.parted(files, val, labels, images.relative, val_fraction)
    if left_out := int(arrays["without"].sum()):
        notes += (f"{count(left_out, 'sample')} without an image left out",)

    def split(part: shards.Part) -> Source:
        labels = part.labels
        source = file_source(
            images,
            part.rows.astype(np.int32),
            labels=labels.numbers if labels.names else None,
            class_names=labels.names,
            unlabelled_because=labels.because,
        )
        return dataclasses.replace(source, notes=notes)

    return split(train), split(kept_back) if len(kept_back.rows) else None


def _flags(title: str, files: shards.Shards, file_of: np.ndarray) -> np.ndarray:
    """(n,) bool, which images are for validation.

    Raises:
      InputError: no image is for training, or none for validation although shards are.
    """
    val = files.val[file_of]
    if val.all():
        raise InputError(f"{title}: no shard for training has an image")
    if files.val.any() and not val.any():
        first = files.paths[int(np.argmax(files.val))]
        raise InputError(
            f"{title}: no shard for validation has an image, the first is {first}; name others, "
            "or leave these out"
        )
    return val


class _Wanted(NamedTuple):
    """Which members of a sample are its image and its label."""

    image: str  # an extension; "" for that of an image
    label: str  # an extension, or json.NAME; "" for _LABELS, "none" for none
    pixels: Pixels


def _table(paths, wanted: _Wanted) -> dict[str, np.ndarray]:
    """The arrays of packed.ARRAYS for all images, with "names", "labels" and "without", the number
    of samples without an image in each shard."""
    with ThreadPoolExecutor(_THREADS) as threads:
        of_shards = list(threads.map(lambda path: _samples(path, wanted), paths))
    arrays = packed.table([[image for _, image, _ in samples] for samples, _ in of_shards])
    rows = [sample for samples, _ in of_shards for sample in samples]
    names = packed.names_of(paths[0], [name for name, _, _ in rows])
    labels = cache.joined([label.replace("\0", " ") for _, _, label in rows])
    without = np.array([number for _, number in of_shards])
    return arrays | {"names": names, "labels": labels, "without": without}


def _samples(path: str, wanted: _Wanted) -> tuple[list[tuple[str, packed.Member, str]], int]:
    """([(name, image, label)], the number of samples without an image) of one shard."""
    images: dict[str, dict[str, packed.Member]] = {}
    labels: dict[str, dict[str, str]] = {}
    faults: dict[str, InputError] = {}  # of JSON, which do not matter where another member counts
    seen = set()
    for info, read in packed.members_of_tar(path):
        above, slash, base = info.name.removeprefix("./").rpartition("/")
        stem, dot, extension = base.partition(".")
        if not info.isreg() or not stem or not dot:  # as webdataset leaves them out
            continue
        key, extension = f"{above}{slash}{stem}", extension.lower()
        if (key, extension) in seen:
            raise InputError(
                f"{path} has {key}.{extension} twice, so its samples cannot be told apart; write "
                "each under a key of its own"
            )
        seen.add((key, extension))
        of_key = images.setdefault(key, {})
        if _is_image(extension, wanted):
            of_key[extension] = packed.in_tar(info)
        elif place := _place_of_label(extension, wanted):
            try:
                labels.setdefault(key, {})[place] = _label(path, key, place, info.size, read)
            except InputError as error:
                if not place.startswith(_JSON):
                    raise
                faults[key] = error
    rows = []
    for key, of_key in images.items():
        if extension := _chosen(path, key, of_key):
            label = _first(labels.get(key, {}))
            if not label and key in faults:
                raise faults[key]
            rows.append((f"{key}.{extension}", of_key[extension], label))
    return rows, len(images) - len(rows)


def _is_image(extension: str, wanted: _Wanted) -> bool:
    if wanted.image:
        return extension == wanted.image.lower()
    return folder.is_image_name(f"x.{extension}", wanted.pixels)


def _chosen(path: str, key: str, of_key: dict[str, packed.Member]) -> str:
    """The extension of a sample's image: jpg, where there is a seg.png as well."""
    plain = [extension for extension in of_key if "." not in extension]
    candidates = plain or list(of_key)
    if len(candidates) > 1:
        raise InputError(
            f"{path}: the sample {key} has several images, {', '.join(sorted(of_key))}; name the "
            f"one to take: wds:PATTERN,image={candidates[0]}"
        )
    return candidates[0] if candidates else ""


def _place_of_label(extension: str, wanted: _Wanted) -> str:
    places = (wanted.label,) if wanted.label else _LABELS
    return next((place for place in places if place.partition(".")[0] == extension), "")


def _first(labels: dict[str, str]) -> str:
    return next((labels[place] for place in (*_LABELS, *labels) if labels.get(place)), "")


def _label(path: str, key: str, place: str, size: int, read: Callable[[], bytes]) -> str:
    """A label by what is in a member of so many bytes; "" where it says none."""
    name = place.removeprefix(_JSON) if place.startswith(_JSON) else ""
    most = _MOST_JSON if name else _MOST_TEXT
    what, fault = "JSON" if name else "text", ""
    try:
        if size > most:
            fault = f"has {size:,} bytes, more than {most:,}"
        else:
            text = read().decode()
            label, fault = _json_label(text, name) if name else (text.strip(), "")
    except ValueError as error:
        fault = f"is no {what} ({error})"
    except RecursionError:
        fault = "is no JSON of data: it is nested too deeply"
    if fault:
        extension = place.partition(".")[0]
        raise InputError(
            f"{path}: {key}.{extension} {fault}; write it again, or name another label, "
            "wds:PATTERN,label=json.NAME, or none, label=none"
        )
    return label


def _json_label(text: str, name: str) -> tuple[str, str]:
    """(label, "") or ("", what is wrong with it)."""
    values = json.loads(text)
    value = values.get(name) if isinstance(values, dict) else None
    if value is None:
        return "", ""
    if not isinstance(value, int | str):
        return "", f"has {type(value).__name__} for {name}, not a text or a whole number"
    label = str(value).strip()
    long = len(label) > _MOST_TEXT
    return ("", f"has {len(label):,} characters for {name}") if long else (label, "")
