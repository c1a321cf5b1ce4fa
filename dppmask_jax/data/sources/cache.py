"""Files that keep what takes long to find out about a data set, in the user's cache."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dppmask_jax.errors import InputError

_KEPT_FROM = 20_000  # rows of what is found out about files that are kept
Kept = np.ndarray | dict[str, np.ndarray]


def default_cache() -> Path:
    """$DPPMASK_CACHE, or ~/.cache/dppmask_jax."""
    return Path(os.environ.get("DPPMASK_CACHE") or "~/.cache/dppmask_jax").expanduser()


def load(path: Path) -> Kept | None:
    """What a file keeps; None where there is none, or a damaged one."""
    try:
        with open(path, "rb") as file:
            kept = np.load(file, allow_pickle=False)
            return kept if isinstance(kept, np.ndarray) else dict(kept)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def written(path: Path, make: Callable[[], Kept], what: str) -> Kept:
    """What `make` returns, which a file keeps from now on; it is there whole or not at all.

    Args:
      what: it is, in words, for messages.

    Raises:
      InputError: the file cannot be written, which is found out before `make` is called.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, building = tempfile.mkstemp(dir=path.parent, prefix=".")
    except OSError as error:
        raise InputError(
            f"cannot write {what} to {path} ({error.strerror}); "
            "set DPPMASK_CACHE to a writable folder"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            kept = make()
            if isinstance(kept, dict):
                np.savez(file, **kept)
            else:
                np.save(file, kept)
        os.replace(building, path)
    finally:
        Path(building).unlink(missing_ok=True)
    return kept


def of_files(
    paths: Sequence[str], how: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` finds out about some files, arrays by their names.

    That of many rows is kept, and made anew where a file has another size or time of change.

    Args:
      how: it is made, in words: another one makes other arrays.

    Raises:
      InputError: a file cannot be read, or the arrays cannot be kept.
    """
    key = hashlib.blake2b(how.encode(errors="surrogateescape"), digest_size=16)
    for path in paths:
        text = f"\0{os.path.realpath(path)}\0{stamp_of(path)}"
        key.update(text.encode(errors="surrogateescape"))
    place = default_cache() / "files" / f"{key.hexdigest()}.npz"
    kept = load(place)
    if not isinstance(kept, dict):
        kept = make()
        if len(next(iter(kept.values()))) >= _KEPT_FROM:
            written(place, lambda: kept, "the index")
            logging.info("wrote the index of %d files to %s", len(paths), place)
    return kept


def stamp_of(path: str) -> tuple[int, int]:
    """(size, time of change in nanoseconds) of a regular file.

    Raises:
      InputError: there is none, or it may not be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def joined(texts: Sequence[str]) -> np.ndarray:
    """Texts without zero bytes as an array, for a file."""
    data = "".join(f"{text}\0" for text in texts).encode(errors="surrogateescape")
    return np.frombuffer(data, np.uint8)


def texts_of(array: np.ndarray) -> list[str]:
    """The texts that `joined` made an array of."""
    return array.tobytes().decode(errors="surrogateescape").split("\0")[:-1]
