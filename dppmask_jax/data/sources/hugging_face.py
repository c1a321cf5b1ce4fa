"""hf:PATH_OR_NAME, a data set of Hugging Face's library `datasets`, of the extra [hf].

    hf:PATH                      as save_to_disk wrote it, or a folder that load_dataset reads
    hf:OWNER/NAME                from the cache, or downloaded by load_dataset
    hf:PLACE,config=NAME,train=SPLIT,val=SPLIT,image=COLUMN,label=COLUMN

Images are taken as they are encoded. Without `image` and `label`, the image is the only column of
the type Image, or that called image; the label the only one of the type ClassLabel, or that called
label. label=none leaves labels out.

Splits are train and validation (or val, valid, dev), else test if all of it has labels, or those
that are named; without one for validation a share is held out.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Any

import numpy as np

from dppmask_jax.data.sources import classes, identity, options
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.folder import TEST, TRAIN, VALIDATION
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.data.sources.image_files import check_some, read_file, try_image
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import RGB, Pixels

_OPTIONS = ("config", "train", "val", "image", "label")
_ON_DISK = ("dataset_dict.json", "state.json")  # of save_to_disk
_DEV = re.compile(rf"({VALIDATION.pattern})|dev", re.IGNORECASE)


def open_hugging_face(
    text: str, val_fraction: float, pixels: Pixels = RGB, cache: str | None = None
) -> tuple[Source, Source | None]:
    """(training split, validation split or None).

    Args:
      cache: where load_dataset keeps its files; None is the usual place.

    Raises:
      InputError: the library is missing; there is no such data set; splits or columns cannot be
        told; a class for validation has no training image; or no image can be read.
    """
    place, chosen = options.parted("hf", text, _OPTIONS)
    place = os.path.expanduser(place)
    title = f"hf:{place}"
    loaded = _loaded(place, chosen["config"], cache)
    parts = {name: loaded[name] for name in _splits(title, loaded, chosen)}
    first = next(iter(parts.values()))
    image = _image_column(title, first.features, chosen["image"])
    label = _label_column(title, first.features, chosen["label"])
    parts = {name: _only(title, part, image, label) for name, part in parts.items()}
    if len(parts) == 2 and not chosen["val"]:
        other = list(parts)[1]
        if TEST.fullmatch(other) and label and _lacks_labels(parts[other][label]):
            del parts[other]
    sources = _sources(title, parts, image, label, val_fraction)
    for source in filter(None, sources):
        read = source.read
        check_some(
            len(source),
            lambda i, read=read: try_image(read(i)[0], pixels),
            source.name,
            f"of {title}",
        )
    return sources


def _loaded(place: str, config: str, cache: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError(f"hf:{place} needs {error.name}: pip install 'dppmask-jax[hf]'") from error
    datasets.disable_progress_bars()
    try:
        if any(os.path.isfile(os.path.join(place, name)) for name in _ON_DISK):
            found = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(place, config or None, cache_dir=cache)
    except Exception as error:  # of the library, of its network, of the files
        raise InputError(
            one_line(f"cannot open hf:{place}: {type(error).__name__}: {error}")
        ) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _splits(title: str, loaded: dict[str, Any], chosen: dict[str, str]) -> list[str]:
    """The names of the split for training and, where there is one, of that for validation."""
    names = list(loaded)
    for option in ("train", "val"):
        if chosen[option] and chosen[option] not in names:
            raise InputError(f"{title} has no split {chosen[option]}, only {', '.join(names)}")
    train = [chosen["train"]] if chosen["train"] else [n for n in names if TRAIN.fullmatch(n)]
    if not train and len(names) == 1:
        train = names
    if len(train) != 1:
        raise InputError(
            f"{title}: which of its splits {', '.join(names)} is for training? Name it: "
            f"{title},train={names[0]}"
        )
    if chosen["val"]:
        val = [chosen["val"]]
    else:
        kept_back = ([n for n in names if kind.fullmatch(n)] for kind in (_DEV, TEST))
        val = next(filter(None, kept_back), [])[:1]
    if val == train:
        raise InputError(f"{title}: {val[0]} is for training and for validation; name another one")
    return train + val


def _image_column(title: str, features, given: str) -> str:
    import datasets

    if given:
        return _present(title, features, given)
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    raise InputError(_which(title, features, "image"))


def _label_column(title: str, features, given: str) -> str:
    """The column of labels; "" where there is none."""
    import datasets

    if given:
        return "" if given == "none" else _present(title, features, given)
    kinds = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if "label" in features or len(kinds) == 1:
        return "label" if "label" in features else kinds[0]
    if not kinds:
        return ""
    raise InputError(_which(title, features, "label") + ", or label=none")


def _which(title: str, features, what: str) -> str:
    columns = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    return f"{title}: which column is the {what}? Its columns are {columns}; give {what}=COLUMN"


def _present(title: str, features, name: str) -> str:
    if name not in features:
        raise InputError(f"{title} has no column {name}, only {', '.join(features)}")
    return name


def _only(title: str, part, image: str, label: str):
    """A split with these columns, whose images stay encoded."""
    import datasets

    for name in filter(None, (image, label)):
        _present(title, part.features, name)
    part = part.select_columns([image, *filter(None, (label,))]).with_format(None)
    if isinstance(part.features[image], datasets.Image):
        return part.cast_column(image, datasets.Image(decode=False))
    if getattr(part.features[image], "dtype", "") not in ("binary", "large_binary"):
        raise InputError(f"{title}: the column {image} holds {part.features[image]}, no images")
    return part


def _lacks_labels(values) -> bool:
    return any(value is None or value in (-1, "") for value in values)


def _sources(title: str, parts, image: str, label: str, val_fraction: float):
    import datasets

    (train, of_train), *others = parts.items()
    values = [list(part[label]) if label else [] for part in parts.values()]
    kind = of_train.features[label] if label else None
    if isinstance(kind, datasets.ClassLabel):
        labels = [
            _numbers(title, name, part, tuple(kind.names))
            for name, part in zip(parts, values, strict=True)
        ]
        labels = [
            given._replace(names=() if given.because else tuple(kind.names)) for given in labels
        ]
    else:
        labels = _by_value(title, parts, values)
    if not others:
        keys = [str(i).encode() for i in range(len(of_train))]
        out = held_out(keys, labels[0].numbers, val_fraction)
        rows = [np.flatnonzero(~out), np.flatnonzero(out)]
        both = [(train, of_train, labels[0], some) for some in rows]
    else:
        both = [
            (name, part, given, np.arange(len(part)))
            for (name, part), given in zip(parts.items(), labels, strict=True)
        ]
    sources = [_source(title, *split, image) if len(split[3]) else None for split in both]
    if sources[0] is None:
        raise InputError(f"{title}: its split {train} has no rows")
    return tuple(sources)


def _numbers(title: str, split: str, values: list, names: tuple[str, ...]) -> classes.Labels:
    if _lacks_labels(values):
        because = f"a row of {title} {split} has no label"
        return classes.Labels(np.zeros(len(values), np.int32), (), because)
    return classes.Labels(np.array(values, np.int32), names, "")


def _by_value(title: str, parts, values: list[list]) -> list[classes.Labels]:
    sizes = [len(part) for part in parts.values()]
    texts = ["" if value is None else str(value) for part in values for value in part]
    texts = texts or [""] * sum(sizes)
    val = np.arange(sum(sizes)) >= sizes[0]
    of_all = classes.of_values(texts, title, lambda i: f"row {i} of {title}", val)
    numbers = np.split(of_all.numbers, [sizes[0]])[: len(sizes)]
    return [of_all._replace(numbers=part) for part in numbers]


def _source(title: str, split: str, part, labels: classes.Labels, rows, image: str) -> Source:
    numbers = labels.numbers[rows] if labels.names else None
    return Source(
        size=len(rows),
        read=functools.partial(_read, part, image, rows, numbers),
        name=functools.partial(_name, f"{title} {split}", rows),
        class_names=labels.names,
        unlabelled_because=labels.because,
        labels=None if numbers is None else known(numbers),
        identity=functools.partial(_identity, part, image, rows, numbers, labels.names),
    )


def _read(part, image: str, rows, numbers, i: int) -> tuple[bytes, int]:
    value = part[int(rows[i])][image]
    if isinstance(value, dict):
        data, path = value["bytes"], value["path"]
        value = read_file(path) if data is None and path else data
    return value or b"", -1 if numbers is None else int(numbers[i])


def _name(prefix: str, rows, i: int) -> str:
    return f"{prefix} row {rows[i]}"


def _identity(part, image: str, rows, numbers, names) -> str:
    """By the sizes of the images, which are read without them, and the labels."""
    import pyarrow.compute as pc

    column = part.data.column(image)
    if column.type.num_fields:  # bytes and path
        column = pc.struct_field(column, "bytes")
    sizes = pc.fill_null(pc.binary_length(column), -1).to_numpy().astype(np.int64)
    return identity.of_parts(sizes[rows], rows, numbers, names)
