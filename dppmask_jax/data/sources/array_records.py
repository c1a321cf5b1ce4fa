"""arrayrecord:PATTERN, files of array_record whose records are tf.train.Example.

    arrayrecord:PATH/train.array_record-{00000..00012}-of-00013    arrayrecord:PATH
    arrayrecord:PATTERN,val=PATTERN,image=NAME,label=NAME

An Example has the encoded image as bytes under "image/encoded" or "image", and the label, a whole
number or a text, under "image/class/label" or "label"; `image` and `label` name other features, and
label=none leaves labels out. Classes are the different labels in ascending order. Examples are
parsed by the protocol buffer that TFDS brings, without TensorFlow. Records of another form (pickle,
msgpack, compressed) are not read. What TFDS has prepared is better opened as tfds:NAME, which knows
the names of classes.

Labels are known once all records have been read; see cache.of_files for where they are kept.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from dppmask_jax.data.images.decode import DecodeError
from dppmask_jax.data.sources import cache, classes, identity, options, shards
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.data.sources.image_files import check_some, try_image
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import RGB, Pixels

EXTENSION = ".array_record*"
_IMAGES = ("image/encoded", "image")
_LABELS = ("image/class/label", "label")
_AT_ONCE = 256  # records that are read while labels are looked for


def open_array_records(
    text: str, val_fraction: float, pixels: Pixels = RGB
) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of the files that a pattern names.

    Raises:
      InputError: there is no such file, one is damaged or of another kind, its records have another
        form, no image can be read, or a class for validation has no training image.
    """
    pattern, chosen = options.parted("arrayrecord", text, ("val", "image", "label"))
    title = f"arrayrecord:{pattern}"
    files = shards.found("arrayrecord", pattern, chosen["val"], EXTENSION)
    counts = np.array([_count(path) for path in files.paths])
    if not counts[~files.val].sum():
        raise InputError(f"{title}: no record is for training")
    records = _records(files.paths)
    image, label = _features(title, _example(records[0]), chosen)
    file_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    name = functools.partial(_name, files.relative(), file_of, np.cumsum(counts) - counts)
    val = files.val[file_of]
    values = [""] * len(file_of)
    if label:
        make = functools.partial(_labels, records, label)
        values = cache.texts_of(cache.of_files(files.paths, f"labels {label}", make)["labels"])
    labels = classes.of_values(values, title, name, val)
    check_some(
        len(file_of), lambda i: try_image(_image(records[i], image), pixels), name, f"of {title}"
    )
    if not val.any():
        keys = [os.fsencode(name(i)) for i in range(len(file_of))]
        val = held_out(keys, labels.numbers, val_fraction)
    sizes = np.array([os.path.getsize(path) for path in files.paths], np.int64)

    def split(rows) -> Source:
        numbers = labels.numbers[rows] if labels.names else None
        return Source(
            size=len(rows),
            read=functools.partial(_read, records, image, rows, numbers),
            name=functools.partial(_at, name, rows),
            class_names=labels.names,
            unlabelled_because=labels.because,
            labels=None if numbers is None else known(numbers),
            notes=files.notes,
            identity=functools.partial(
                identity.of_parts, files.relative(), counts, sizes, rows, numbers, labels.names
            ),
        )

    return split(np.flatnonzero(~val)), split(np.flatnonzero(val)) if val.any() else None


def _count(path: str) -> int:
    """The number of records in a file."""
    from array_record.python.array_record_module import ArrayRecordReader

    cache.stamp_of(path)
    try:
        reader = ArrayRecordReader(path)
        number = reader.num_records()
        reader.close()
        return number
    except Exception as error:  # of the library, on files of another kind
        raise InputError(
            one_line(
                f"{path} is damaged, cut short or no file of array_record ({error}); copy or write "
                "it again"
            )
        ) from error


def _records(paths):
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(list(paths))


def _example(record: bytes) -> dict[str, Any]:
    """{name: values} of a record; empty where it is no tf.train.Example."""
    from google.protobuf.message import DecodeError as NoMessage
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        features = tf_example_pb2.Example.FromString(record).features.feature
    except NoMessage:
        return {}
    return {name: getattr(one, one.WhichOneof("kind") or "bytes_list").value
            for name, one in features.items()}  # fmt: skip


def _features(title: str, example: dict[str, Any], chosen: dict[str, str]) -> tuple[str, str]:
    """The names of the image and of the label, "" where there is none."""
    if not example:
        raise InputError(
            f"{title}: its first record is no tf.train.Example; write the images as such, with "
            "features image/encoded and image/class/label (pickle and msgpack are not read)"
        )
    image = chosen["image"] or next((name for name in _IMAGES if name in example), "")
    label = chosen["label"] or next((name for name in _LABELS if name in example), "none")
    wanted = [image, *([label] if label != "none" else [])]
    if any(name not in example for name in wanted):
        names = ", ".join(sorted(example))
        raise InputError(
            f"{title}: which feature is the image, and which the label? The first record has "
            f"{names}; give image=NAME and label=NAME, or label=none"
        )
    return image, "" if label == "none" else label


def _labels(records, label: str) -> dict[str, np.ndarray]:
    texts = []
    for start in range(0, len(records), _AT_ONCE):
        for record in records.__getitems__(range(start, min(start + _AT_ONCE, len(records)))):
            values = _example(record).get(label, ())
            value = values[0] if len(values) == 1 else ""
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            texts.append(text.replace("\0", " ").strip())
    # One of each row, so that many of them are kept.
    return {"rows": np.arange(len(texts)), "labels": cache.joined(texts)}


def _image(record: bytes, name: str) -> bytes:
    values = _example(record).get(name, ())
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise DecodeError(f"its feature {name} is not one encoded image")
    return values[0]


def _read(records, image: str, rows, numbers, i: int) -> tuple[bytes, int]:
    data = _image(records[int(rows[i])], image)
    return data, -1 if numbers is None else int(numbers[i])


def _name(relative, file_of, firsts, i: int) -> str:
    file = int(file_of[i])
    return f"{relative[file]} record {i - int(firsts[file])}"


def _at(name, rows, i: int) -> str:
    return name(int(rows[i]))
