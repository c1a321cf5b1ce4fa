"""Files that are there whole or not at all: written beside, then renamed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path to write to; after that, the file takes the place of `path` at once.

    What fails leaves `path` as it was.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file whole, to be read by people as well."""
    write_text(path, json.dumps(values, indent=2) + "\n")
