"""What is in a folder: on disk, or in an archive as if it were unpacked."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from dppmask_jax.data.sources.image_files import Files, from_names


class Listed(NamedTuple):
    """What is in one folder; hidden files and folders are not."""

    identity: Hashable  # the same where a symbolic link leads to the same folder
    folders: list[str]  # in order
    files: list[str]


class Tree(NamedTuple):
    """A folder and all that is below it. Folders are named relative to it; "" is itself."""

    path: str  # for messages, and to open files on disk
    listed: Callable[[str], Listed]  # of a folder; raises OSError
    # (a folder, folders below it, (n,) folder of each file, names of the files) -> the files
    files: Callable[[str, Sequence[str], Sequence[int], Sequence[str]], Files]


def on_disk(path: str) -> Tree:
    """The tree of a folder."""

    def listed(folder: str) -> Listed:
        below = os.path.join(path, folder) if folder else path
        status = os.stat(below)
        with os.scandir(below) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in shown if _is_folder(entry))
            files = [entry.name for entry in shown if not _is_folder(entry)]
        return Listed((status.st_dev, status.st_ino), folders, files)

    def files(folder: str, folders, folder_of, names) -> Files:
        return from_names(os.path.join(path, folder) if folder else path, folders, folder_of, names)

    return Tree(path, listed, files)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # symbolic links that go round in a circle
        return False
