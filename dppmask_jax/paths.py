"""Several paths in one flag or field, with commas between."""

from __future__ import annotations

import os


def split(text: str) -> list[str]:
    """The paths of "PATH,PATH"; a comma inside the name of a file or folder that exists stays.

    Of several readings the one with the longest existing path first is taken.
    """
    parts = text.split(",")
    found = []
    while parts:
        joined = (",".join(parts[:end]) for end in range(len(parts), 1, -1))
        path = next((path for path in joined if os.path.exists(path)), parts[0])
        found.append(path)
        del parts[: path.count(",") + 1]
    return [path for path in found if path]
