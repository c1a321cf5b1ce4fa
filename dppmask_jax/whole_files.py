"""Files that are there whole or not at all: written beside, then renamed."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
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
    """Writes a JSON file whole, to be read by people as well.

    Numbers that JSON lacks, nan and the infinities, become null: not known.
    """
    write_text(path, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    return [_finite(value) for value in values] if isinstance(values, (list, tuple)) else values
