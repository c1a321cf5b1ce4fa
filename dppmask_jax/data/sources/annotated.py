"""Images that an annotation file of a published data set names, with several labels each."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import (
    check_present,
    check_readable,
    file_source,
    from_paths,
)
from dppmask_jax.errors import InputError

_SEVERAL = "the images have several labels each"


class Annotated(NamedTuple):
    """Images that an annotation file names."""

    paths: list[str]  # relative to the root
    targets: np.ndarray  # (n, C) uint8
    names: tuple[str, ...]


def source_of(root: str, annotated: Annotated, named_by: str, chosen=slice(None)) -> Source:
    """The source of some images of a folder; `named_by` is the file that names them.

    Raises:
      InputError: no image is annotated, or one is missing.
    """
    if not annotated.paths:
        raise InputError(f"{named_by} annotates no image; take a complete file")
    files = from_paths(root, annotated.paths)
    check_present(files, named_by)
    check_readable(files)
    return file_source(
        files,
        np.arange(files.size, dtype=np.int32)[chosen],
        unlabelled_because=_SEVERAL,
        targets=annotated.targets[chosen],
        target_names=annotated.names,
    )


def load_json(path: str, **options) -> Any:
    """What a JSON file holds.

    Raises:
      InputError: it cannot be read, or is something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file, **options)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; download it again") from error


def names_in(folder: str) -> list[str]:
    """The names in a folder, sorted.

    Raises:
      InputError: it cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot list {folder}: {error.strerror}") from error


def inside(folder: str, name: str) -> str:
    """The path of a file that a downloaded annotation names: it may not lead out of the folder.

    Raises:
      ValueError: it does, or can be no file's name.
    """
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name!r} names a file outside of the folder {folder}")
    os.fsencode(name)
    return os.path.join(folder, name)


def words(error: Exception) -> str:
    """What is wrong with a document that has not the expected form."""
    return f"no {error}" if isinstance(error, KeyError) else str(error)
