"""arrayrecord:PATTERN, files of array_record whose records are tf.train.Example.

    arrayrecord:PATH/train.array_record-{00000..00012}-of-00013    arrayrecord:PATH
    arrayrecord:PATTERN,val=PATTERN,image=NAME,label=NAME

An Example has the encoded image as bytes under "image/encoded" or "image", and the label, a whole
number or a text, under "image/class/label" or "label"; `image` and `label` name other features, and
label=none leaves labels out. Classes are the different labels in ascending order. Where files are
for testing by their names and lack labels, a share is held out in their place. Examples are parsed
by the protocol buffer that TFDS brings, without TensorFlow. Records of another form (pickle,
msgpack, compressed) are not read. What TFDS has prepared is better opened as tfds:NAME, which knows
the names of classes.

Labels are known once all records have been read; see cache.of_files for where they are kept.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax.data.images.decode import DecodeError
from dppmask_jax.data.sources import cache, classes, identity, options, shards
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.image_files import check_some, try_image, why
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.pixel_format import RGB, Pixels

EXTENSION = ".array_record*"
_IMAGES = ("image/encoded", "image")
_LABELS = ("image/class/label", "label")
_AT_ONCE = 256  # records that are read while labels are looked for
_READERS = 64  # of files, that are open at a time
_BUFFER = 2**15  # bytes that a reader reads at least, as array_record's own data source


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
    stamps = tuple(map(_stamp, files.paths))
    sizes = np.array([size for size, _ in stamps], np.int64)
    records = _Records(files.paths, np.cumsum(counts), stamps)
    image, label = _features(title, _example(_first(records)), chosen)
    file_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    name = functools.partial(_name, files.relative(), file_of, np.cumsum(counts) - counts)
    val = files.val[file_of]
    values = [""] * len(file_of)
    if label:
        make = functools.partial(_labels, records, label)
        values = cache.texts_of(cache.of_files(files.paths, f"labels {label}", make)["labels"])
    labels = classes.of_splits(values, title, name, val)
    check_some(
        len(file_of),
        lambda i: try_image(_image(records.read(i), image), pixels),
        name,
        f"of {title}",
    )
    train, kept_back, notes = shards.parted(files, val, labels, name, val_fraction)

    def split(part: shards.Part) -> Source:
        rows, labels = part
        numbers = labels.numbers if labels.names else None
        return Source(
            size=len(rows),
            read=functools.partial(_read, records, image, rows, numbers),
            name=functools.partial(_at, name, rows),
            class_names=labels.names,
            unlabelled_because=labels.because,
            labels=None if numbers is None else known(numbers),
            notes=notes,
            identity=functools.partial(
                identity.of_parts, files.relative(), counts, sizes, rows, numbers, labels.names
            ),
        )

    return split(train), split(kept_back) if len(kept_back.rows) else None


def _count(path: str) -> int:
    """The number of records in a file."""
    from array_record.python.array_record_module import ArrayRecordReader

    cache.stamp_of(path)
    try:
        reader = ArrayRecordReader(path)
        number = reader.num_records()
        reader.close()
        return number
    except RuntimeError as error:
        raise InputError(
            one_line(
                f"{path} is damaged, cut short or no file of array_record ({error}); copy or write "
                "it again"
            )
        ) from error


class _Records(NamedTuple):
    """The records of some files, one file behind the other."""

    paths: tuple[str, ...]
    ends: np.ndarray  # (files,) int, of each file: the number of records up to its end
    stamps: tuple[tuple[int, int], ...]  # of each file

    def read(self, i: int) -> bytes:
        """Record i; raises OSError as `read_of`."""
        file = int(np.searchsorted(self.ends, i, side="right"))
        first = int(self.ends[file - 1]) if file else 0
        return self.read_of(file, [i - first])[0]

    def read_of(self, file: int, positions: list[int]) -> list[bytes]:
        """Some records of a file.

        Raises:
          OSError: a record is damaged, or the file is gone or no longer the one that was opened.
        """
        path = self.paths[file]
        try:
            return _reader(path, self.stamps[file]).read(positions)
        except RuntimeError as error:  # the only kind that the library raises
            raise OSError(errno.EIO, one_line(f"a record cannot be read: {error}"), path) from error


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(_READERS)
def _reader(path: str, stamp: tuple[int, int]):
    """A reader of a file; each has a descriptor, so that those least recently used are closed."""
    from array_record.python.array_record_module import ArrayRecordReader

    if _stamp(path) != stamp:
        raise OSError(errno.ESTALE, "the file was changed after it was opened", path)
    reader = ArrayRecordReader(
        path, options="readahead_buffer_size:0", file_reader_buffer_size=_BUFFER
    )
    if not reader.ok():
        reader.close()  # raises what is wrong
    return reader


def _first(records: _Records) -> bytes:
    try:
        return records.read(0)
    except OSError as error:
        raise _damaged(error) from error


def _damaged(error: OSError) -> InputError:
    return InputError(f"{error.filename}: {why(error)}; copy or write the file again")


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


def _labels(records: _Records, label: str) -> dict[str, np.ndarray]:
    texts = []
    starts = np.concatenate(([0], records.ends[:-1]))
    for file, number in enumerate((records.ends - starts).tolist()):
        for start in range(0, number, _AT_ONCE):
            try:
                some = records.read_of(file, list(range(start, min(start + _AT_ONCE, number))))
            except OSError as error:
                raise _damaged(error) from error
            texts += [_text(_example(record).get(label, ())) for record in some]
    # One of each row, so that many of them are kept.
    return {"rows": np.arange(len(texts)), "labels": cache.joined(texts)}


def _text(values) -> str:
    value = values[0] if len(values) == 1 else ""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.replace("\0", " ").strip()


def _image(record: bytes, name: str) -> bytes:
    values = _example(record).get(name, ())
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise DecodeError(f"its feature {name} is not one encoded image")
    return values[0]


def _read(records, image: str, rows, numbers, i: int) -> tuple[bytes, int]:
    data = _image(records.read(int(rows[i])), image)
    return data, -1 if numbers is None else int(numbers[i])


def _name(relative, file_of, firsts, i: int) -> str:
    file = int(file_of[i])
    return f"{relative[file]} record {i - int(firsts[file])}"


def _at(name, rows, i: int) -> str:
    return name(int(rows[i]))
