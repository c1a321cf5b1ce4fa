"""Files that keep what takes long to find out about a data set, in the user's cache."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dppmask_jax.errors import InputError

_KEPT_FROM = 20_000  # rows of what is found out about files that are kept
_FORM = "2"  # of what is kept about files; another one is made anew
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
        building = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        # Not a file of tempfile, which nobody else may read.
        handle = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
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
        building.unlink(missing_ok=True)
    return kept


def of_files(
    paths: Sequence[str], how: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `make` finds out about some files, arrays by their names.

    That of many rows is kept, and made anew where a file has another size or time of change. Where
    it cannot be kept, a line of the log says so.

    Args:
      how: it is made, in words: another one makes other arrays.

    Returns:
      What `make` returned, and "stamps", (files, 2) int64: `stamp_of` each file that it is true of.

    Raises:
      InputError: a file cannot be read, or is changed meanwhile.
    """
    stamps = [stamp_of(path) for path in paths]
    key = hashlib.blake2b(f"{_FORM} {how}".encode(errors="surrogateescape"), digest_size=16)
    for path, stamp in zip(paths, stamps, strict=True):
        text = f"\0{os.path.realpath(path)}\0{stamp}"
        key.update(text.encode(errors="surrogateescape"))
    place = default_cache() / "files" / f"{key.hexdigest()}.npz"
    kept = _whole(load(place))
    if kept is None:
        kept = make()
        for path, stamp in zip(paths, stamps, strict=True):
            if stamp_of(path) != stamp:
                raise InputError(f"{path} was changed while it was read; wait until it is written")
        if len(next(iter(kept.values()))) >= _KEPT_FROM:
            _keep(place, kept)
    return kept | {"stamps": np.array(stamps, np.int64).reshape(-1, 2)}


def _keep(place: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        written(place, lambda: arrays | {"holds": joined(sorted(arrays))}, "the index")
        logging.info("wrote the index to %s", place)
    except (InputError, OSError) as error:  # what took long is done, and good without
        logging.warning("the index is not kept: %s", error)


def _whole(kept: Kept | None) -> dict[str, np.ndarray] | None:
    """What `_keep` wrote; None where it is something else."""
    if not isinstance(kept, dict) or "holds" not in kept:
        return None
    names = texts_of(kept.pop("holds"))
    return kept if names == sorted(kept) else None


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
