"""Whether images are the same ones, wherever they lie.

Two data sets are the same where their files have the same names below their roots, in the same
order, the same sizes in bytes and the same labels. The bytes themselves are not read. Of more than
MOST_SIZES files, the sizes of so many are compared, spread evenly.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

MOST_SIZES = 2**16


def of_splits(train, val) -> dict[str, Any]:
    """{"training", "validation": numbers of images, "digest": text} of a data set.

    Args:
      train, val: a `base.Source` each; `val` may be None.
    """
    digest = _Digest()
    for split in (train, val):
        digest.add("no such split" if split is None else f"{len(split)} {split.identity()}")
    return {
        "training": len(train),
        "validation": 0 if val is None else len(val),
        "digest": digest.text(),
    }


def of_files(files, rows: np.ndarray, *about) -> str:
    """The identity of some files.

    Args:
      files: an `image_files.Files`.
      rows: (n,) int, which of them, in this order.
      about: what else there is to know of them: texts, arrays, tuples of texts, None.
    """
    digest = _Digest()
    digest.add("\0".join(files.folders))
    for part in (files.folder_of, files.names, files.ends, rows, *about):
        digest.add(part)
    some = np.linspace(0, len(rows) - 1, min(len(rows), MOST_SIZES)).round().astype(np.int64)
    digest.add(np.array([files.num_bytes(int(rows[i])) for i in some], np.int64))
    return digest.text()


def of_parts(*parts) -> str:
    """The identity of a data set that some texts, tuples of texts and arrays describe fully."""
    digest = _Digest()
    for part in parts:
        digest.add(part)
    return digest.text()


class _Digest:
    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, part) -> None:
        if isinstance(part, tuple):
            part = "\0".join(part)
        if isinstance(part, np.ndarray):
            data = part.astype(part.dtype.newbyteorder("<")).tobytes()
        elif isinstance(part, bytes):
            data = part
        else:
            data = os.fsencode("" if part is None else part)
        self._hash.update(len(data).to_bytes(8, "little") + data)

    def text(self) -> str:
        return self._hash.hexdigest()
