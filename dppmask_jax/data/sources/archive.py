"""archive:FILE, a tar or zip file of what `folder:` takes: see folder.py for splits and classes.

A tar is not compressed; the members of a zip may be. Where all of the archive lies in one folder,
as `tar cf set.tar set` writes it, that folder is the root.

The images are the same as those of the unpacked folder, in the same order, and so are those that
are held out and the data set's identity.
"""

from __future__ import annotations

import collections
import os
import posixpath

import numpy as np

from dppmask_jax.data.sources import folder, packed
from dppmask_jax.data.sources.base import Source
from dppmask_jax.data.sources.image_files import Files, from_names
from dppmask_jax.data.sources.trees import Listed, Tree
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels


def open_archive(
    path: str, val_fraction: float, pixels: Pixels = RGB
) -> tuple[Source, Source | None]:
    """(training split, validation split or None) of a tar or zip file.

    Raises:
      InputError: the file is missing, compressed as a whole, cut short or of another kind; or as
        folder.open_folder.
    """
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give data.source=folder:{path}")
    return folder.open_tree(_tree(path, pixels), val_fraction, pixels)


def _tree(path: str, pixels: Pixels) -> Tree:
    members, names = packed.index(path)
    folders_in, files_in = collections.defaultdict(set), collections.defaultdict(dict)
    for row, name in enumerate(names):
        parts = posixpath.normpath(name).lstrip("/").split("/")
        if any(part.startswith(".") for part in parts):
            continue
        above = ""
        for part in parts[:-1]:
            folders_in[above].add(part)
            above = posixpath.join(above, part)
        files_in[above][parts[-1]] = row

    root = _root(folders_in, files_in, pixels)

    def listed(folder: str) -> Listed:
        below = _below(root, folder)
        return Listed(below, sorted(folders_in.get(below, ())), list(files_in.get(below, ())))

    def files(folder: str, folders, folder_of, names) -> Files:
        below = _below(root, folder)
        inside = [files_in.get(_below(below, name), {}) for name in folders]
        rows = [inside[number][name] for number, name in zip(folder_of, names, strict=True)]
        return from_names(_below(path, below), folders, folder_of, names)._replace(
            packed=members.some(np.array(rows, np.int64))
        )

    return Tree(_below(path, root), listed, files)


def _below(folder: str, inner: str) -> str:
    return posixpath.join(folder, inner).rstrip("/")


def _root(folders_in, files_in, pixels: Pixels) -> str:
    """The folder that all of the archive lies in, "" where there is none of that kind."""
    root = ""
    while len(folders_in[root]) == 1:
        (only,) = folders_in[root]
        inner = posixpath.join(root, only)
        images = any(folder.is_image_name(name, pixels) for name in files_in[root])
        if images or folder.TRAIN.fullmatch(only) or not folders_in[inner]:
            break
        root = inner
    return root
