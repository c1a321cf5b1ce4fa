"""Whether the files of a folder are still what was written: a manifest of their SHA-256 sums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

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
    for _, fault in faults(folder):
        raise Damaged(fault)


def faults(folder) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of the files of `folder` that are missing or not what was
    written; where the manifest is one of these, of it alone."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        yield MANIFEST, f"{MANIFEST} is missing"
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        yield MANIFEST, f"{MANIFEST} is garbled"
        return
    for name, (size, digest) in wanted.items():
        if fault := _fault(folder / name, size, digest):
            yield name, f"{name} {fault}"


def _fault(file, size: int, digest: str) -> str:
    try:
        if (found := file.stat().length) != size:
            return f"has {found} bytes instead of {size}"
        return "" if _sha256(file) == digest else "is not what was written: its SHA-256 differs"
    except FileNotFoundError:
        return "is missing"


def _files(folder):
    for path in sorted(folder.iterdir()):
        yield from _files(path) if path.is_dir() else [path]


def _sha256(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
