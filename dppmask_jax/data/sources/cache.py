"""Files that keep what takes long to find out about a data set, in the user's cache."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dppmask_jax.errors import InputError

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
