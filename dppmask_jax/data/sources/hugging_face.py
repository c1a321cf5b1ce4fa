"""hf:PATH_OR_NAME, a data set of Hugging Face's library `datasets`, of the extra [hf].

    hf:PATH                      as save_to_disk wrote it, or a folder that load_dataset reads
    hf:OWNER/NAME                from the cache, or downloaded by load_dataset
    hf:PLACE,config=NAME,train=SPLIT,val=SPLIT,image=COLUMN,label=COLUMN

Images are taken as they are encoded. Without `image` and `label`, the image is the only column of
the type Image, or that called image; the label the only one of the type ClassLabel, or that called
label. label=none leaves labels out. Classes are those of the training split's ClassLabel in its
order, or the different labels (whole numbers, texts, true and false) in ascending order; -1 and ""
are no labels. Labels of the other split are matched by the names of their classes.

Splits are train and validation (or val, valid, dev), else test if all of it has labels, or those
that are named; without one for validation a share is held out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
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
_LABELS = re.compile(r"null|bool|u?int\d+|string|large_string")  # types of columns that may be
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
    testing = [] if chosen["val"] else [name for name in list(parts)[1:] if TEST.fullmatch(name)]
    texts = [
        _texts(title, name, part, "" if name in testing and label not in part.features else label)
        for name, part in parts.items()
    ]
    parts = {name: _only(title, part, image) for name, part in parts.items()}
    names = _names_of(first.features[label]) if label else ()
    labels, notes = _labels(title, parts, texts, names), ()
    if testing and labels[0].names and not labels[1].names:
        notes = (classes.instead_of_testing(labels[1]),)
        del parts[testing[0]]
    sources = _sources(title, parts, image, labels, val_fraction)
    sources = tuple(split and dataclasses.replace(split, notes=notes) for split in sources)
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
        from huggingface_hub.utils import httpx
    except ModuleNotFoundError as error:
        raise InputError(f"hf:{place} needs {error.name}: pip install 'dppmask-jax[hf]'") from error
    datasets.disable_progress_bars()
    of_the_library = (datasets.exceptions.DatasetsError, RuntimeError)
    of_files = (OSError, ValueError, LookupError)  # the last where a file of JSON lacks something
    try:
        if any(os.path.isfile(os.path.join(place, name)) for name in _ON_DISK):
            found = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(place, config or None, cache_dir=cache)
    except (*of_the_library, *of_files, httpx.HTTPError) as error:
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


def _only(title: str, part, image: str):
    """The images of a split, as they are encoded."""
    import datasets

    _present(title, part.features, image)
    part = part.select_columns([image]).with_format(None)
    if isinstance(part.features[image], datasets.Image):
        return part.cast_column(image, datasets.Image(decode=False))
    if getattr(part.features[image], "dtype", "") not in ("binary", "large_binary"):
        raise InputError(f"{title}: the column {image} holds {part.features[image]}, no images")
    return part


def _names_of(kind) -> tuple[str, ...]:
    """The names of the classes of a ClassLabel; () of other types."""
    return tuple(getattr(kind, "names", None) or ())


def _texts(title: str, split: str, part, label: str) -> list[str]:
    """The label of each row; "" where it has none."""
    import datasets

    if not label:
        return [""] * len(part)
    _present(title, part.features, label)
    kind, names = part.features[label], _names_of(part.features[label])
    named = isinstance(kind, datasets.ClassLabel)
    if not named and not (isinstance(kind, datasets.Value) and _LABELS.fullmatch(kind.dtype)):
        raise InputError(
            one_line(
                f"{title}: the column {label} of {split} holds {kind}, no labels; give "
                "label=COLUMN of another one, or label=none"
            )
        )
    values = list(part.select_columns([label]).with_format(None)[label])
    if named and max((value for value in values if value is not None), default=0) >= len(names):
        raise InputError(
            f"{title}: a label of {split} is {max(filter(None, values))}, and there are "
            f"{len(names)} classes; write the data set again"
        )
    values = [None if value == -1 else value for value in values]
    return ["" if one is None else names[one] if named else str(one) for one in values]


def _labels(title: str, parts, texts: list[list[str]], names) -> tuple[classes.Labels, ...]:
    """Those for training, and those for validation."""
    of = [(split, i) for split, part in parts.items() for i in range(len(part))]
    return classes.of_splits(
        list(itertools.chain(*texts)),
        title,
        lambda i: f"{title} {of[i][0]} row {of[i][1]}",
        np.arange(len(of)) >= len(texts[0]),
        names,
    )


def _sources(title: str, parts, image: str, labels, val_fraction: float):
    (train, of_train), *others = parts.items()
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
    """By the sizes of the images, which are read without them, the labels, and the names of the
    files that hold images."""
    import pyarrow.compute as pc

    column, paths = part.data.column(image), None
    if column.type.num_fields:  # bytes and path
        column, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    sizes = pc.fill_null(pc.binary_length(column), -1).to_numpy().astype(np.int64)[rows]
    lying_apart = np.flatnonzero(sizes < 0)
    if paths is None or not lying_apart.size:
        return identity.of_parts(sizes, rows, numbers, names)
    files = [path or "" for path in paths.take(rows[lying_apart]).to_pylist()]
    some = np.linspace(0, len(files) - 1, min(len(files), identity.MOST_SIZES)).round()
    for i in some.astype(int).tolist():
        with contextlib.suppress(OSError):  # met, named and replaced while training
            sizes[lying_apart[i]] = os.stat(files[i]).st_size
    return identity.of_parts(sizes, rows, numbers, names, tuple(map(os.path.basename, files)))
