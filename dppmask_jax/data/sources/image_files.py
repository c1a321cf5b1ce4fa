"""Image files on disk: names of millions of them in little memory, and sources that read them."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.images import decode, kept, medical
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.data.sources.packed import MAX_BYTES, Packed
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels

_READABLE_SAMPLE = 64  # images tried before a data set counts as unreadable


class NoneReadable(InputError):
    """None of a sample of images can be read.

    Attributes:
      count: of all these images.
      name: i -> what image i is called.
      try_one: i -> nothing; raises OSError or decode.DecodeError where image i cannot be read.
    """

    def __init__(self, message: str, count: int, name: Callable, try_one: Callable):
        super().__init__(message)
        self.count, self.name, self.try_one = count, name, try_one


class Files(NamedTuple):
    """File names in a few flat arrays: a million of them is a few dozen MB, also when pickled."""

    root: str
    folders: tuple[str, ...]  # relative to the root; "" is the root itself
    folder_of: np.ndarray  # (n,) int32
    names: bytes  # all file names in one piece
    ends: np.ndarray  # (n,) int64, where each name ends in it
    packed: Packed | None = None  # where they lie in archives; None: they are files of their own

    @property
    def size(self) -> int:
        """The number n of files."""
        return len(self.ends)

    def base_name(self, i: int) -> str:
        """The name of file i in its folder."""
        start = self.ends[i - 1] if i else 0
        return os.fsdecode(self.names[start : self.ends[i]])

    def relative(self, i: int) -> str:
        """The path of file i below the root."""
        return os.path.join(self.folders[self.folder_of[i]], self.base_name(i))

    def path(self, i: int) -> str:
        """The path of file i, to open it unless it is packed."""
        return os.path.join(self.root, self.relative(i))

    def path_alone(self, i: int) -> str:
        """The path of file i; "" where it is packed."""
        return "" if self.packed else self.path(i)

    def read(self, i: int) -> bytes:
        """The content of file i; raises OSError as `read_file`."""
        return self.packed.read(i) if self.packed else read_file(self.path(i))

    def num_bytes(self, i: int) -> int:
        """The size of file i; -1 where it is not known."""
        if self.packed:
            return int(self.packed.sizes[i])
        try:
            return os.stat(self.path(i)).st_size
        except OSError:  # met, named and replaced while training
            return -1


def from_names(root: str, folders: Sequence[str], folder_of, names: Sequence[str]) -> Files:
    """File k is names[k] in folders[folder_of[k]], which is relative to the root."""
    encoded = [os.fsencode(name) for name in names]
    return Files(
        root,
        tuple(folders),
        np.asarray(folder_of, np.int32),
        b"".join(encoded),
        np.cumsum([len(name) for name in encoded], dtype=np.int64),
    )


def from_paths(root: str, paths: Sequence[str]) -> Files:
    """The files of these paths, relative to the root or absolute, in this order."""
    number_of: dict[str, int] = {}
    split = [os.path.split(path) for path in paths]
    folder_of = [number_of.setdefault(folder, len(number_of)) for folder, _ in split]
    return from_names(root, tuple(number_of), folder_of, [name for _, name in split])


def check_present(files: Files, named_by: str) -> None:
    """Raises InputError if some of the files that the file `named_by` names do not exist."""
    present = [_listing(os.path.join(files.root, folder)) for folder in files.folders]
    missing = [
        i for i in range(files.size) if files.base_name(i) not in present[files.folder_of[i]]
    ]
    if missing:
        raise InputError(
            f"{len(missing)} of the {files.size} files that {named_by} names do not exist, the "
            f"first is {files.path(missing[0])}; add them or correct {named_by}"
        )


def _listing(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def read_file(path: str) -> bytes:
    """The content of a regular file of at most MAX_BYTES.

    Raises:
      OSError: there is none, or it cannot be read. Of a pipe or a device nothing is read: it could
        go on for ever.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer


def why(error: OSError | decode.DecodeError) -> str:
    """Why an image cannot be read, in words that can stand behind its path."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def check_readable(files: Files, pixels: Pixels = RGB) -> None:
    """Raises NoneReadable if none of a sample of the files is a readable image of such pixels."""

    def try_one(i: int) -> None:
        if pixels.kept and medical.is_name(files.path_alone(i)):
            kept.read_from(files.path(i), 0, pixels)
        else:
            try_image(files.read(i), pixels)

    check_some(files.size, try_one, files.path, f"below {files.root}")


def try_image(data: bytes, pixels: Pixels) -> None:
    """Raises decode.DecodeError unless the bytes are an image of such pixels."""
    if pixels.kept:
        kept.read(data, pixels)
    else:
        decode.to_rgb(decode.open_image(data))


def check_some(
    count: int, try_one: Callable[[int], None], name: Callable[[int], str], where: str
) -> None:
    """Raises NoneReadable if `try_one` raises OSError or decode.DecodeError for all of a sample of
    `count` images, which lie `where`."""
    reason = ""
    for i in np.linspace(0, count - 1, min(count, _READABLE_SAMPLE)).round().astype(int).tolist():
        try:
            return try_one(i)
        except (OSError, decode.DecodeError) as error:
            reason = reason or f"{name(i)}: {why(error)}"
    tried = "none of the" if count <= _READABLE_SAMPLE else f"none of {_READABLE_SAMPLE} tried of"
    message = f"{tried} {count} images {where} can be read; {reason}"
    raise NoneReadable(message, count, name, try_one)


def file_source(
    files: Files,
    rows: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    class_names: tuple[str, ...] = (),
    unlabelled_because: str = "",
    targets: np.ndarray | None = None,
    target_names: tuple[str, ...] = (),
    **fields,
) -> Source:
    """A source of some files.

    Args:
      rows: (n,) int, which files, in this order.
      labels: (n,) int32, or None where there are none.
      targets: (n, C) uint8, or None.
      class_names, unlabelled_because, target_names: as in Source.
      fields: further fields of Source.
    """
    given = np.full(len(rows), -1, np.int32) if labels is None else labels
    return Source(
        size=len(rows),
        read=functools.partial(_read, files, rows, given),
        name=functools.partial(_name, files, rows),
        path=functools.partial(_path, files, rows),
        class_names=class_names,
        unlabelled_because=unlabelled_because,
        labels=None if labels is None else known(labels),
        targets=None if targets is None else known(targets),
        target_names=target_names,
        identity=functools.partial(
            identity.of_files, files, rows, labels, class_names, targets, target_names
        ),
        **fields,
    )


def _read(files: Files, rows, labels, i: int) -> tuple[bytes, int]:
    return files.read(int(rows[i])), int(labels[i])


def _name(files: Files, rows, i: int) -> str:
    return files.path(int(rows[i]))


def _path(files: Files, rows, i: int) -> str:
    return files.path_alone(int(rows[i]))
