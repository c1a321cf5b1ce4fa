"""Whether the files of a folder are still what was written: a manifest of their SHA-256 sums."""

from __future__ import annotations

import hashlib
import json

MANIFEST = "manifest.json"


class Damaged(Exception):
    """What is wrong with a folder's files, in a few words."""


def write_manifest(folder, parts: tuple[str, ...]) -> None:
    """Writes `folder`/manifest.json: size and SHA-256 of every file below its subfolders `parts`.

    Args:
      folder: an `epath.Path`, as everywhere here.

    Raises:
      OSError: a file cannot be read, or the manifest cannot be written.
    """
    files = {}
    for part in parts:
        for path in _files(folder / part):
            name = str(path.relative_to(folder))
            files[name] = {"bytes": path.stat().length, "sha256": _sha256(path)}
    text = json.dumps({"files": files}, indent=1)
    (folder / MANIFEST).write_text(text)


def check(folder) -> None:
    """Compares the files of `folder` with its manifest.

    Raises:
      Damaged: a file is missing, or is not what was written; or the manifest itself.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} is garbled") from error
    for name, (size, digest) in wanted.items():
        file = folder / name
        try:
            if file.stat().length != size:
                raise Damaged(f"{name} has {file.stat().length} bytes instead of {size}")
            if _sha256(file) != digest:
                raise Damaged(f"{name} is not what was written: its SHA-256 differs")
        except FileNotFoundError as error:
            raise Damaged(f"{name} is missing") from error


def _files(folder):
    for path in sorted(folder.iterdir()):
        yield from _files(path) if path.is_dir() else [path]


def _sha256(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
