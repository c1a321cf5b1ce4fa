"""Links among the members of a tar file, to files and to folders, as a file system follows them."""

from __future__ import annotations

import collections
import itertools
import posixpath
from collections.abc import Collection, Mapping

_MOST = 1_000_000  # places that links lead to: folders that link to folders can make any number
_HOPS = 40  # from link to link, as on Linux


class TooMany(ValueError):
    """Links lead to more places than a data set has."""


def plain(name: str) -> str:
    """A name without "./", double slashes and a slash in front; "" is the root."""
    name = posixpath.normpath(name).lstrip("/")
    return "" if name == "." else name


def followed(files: Collection[str], targets: Mapping[str, str]) -> dict[str, str | None]:
    """{name: the file that it leads to} of links, and of files in the folders that links lead to.

    Args:
      files: names, as `plain` returns them.
      targets: {name of a link: where it leads, from the root}.

    Returns:
      None for a link that leads to nothing, out of the archive or round in a circle. A folder is
      not entered again from below itself.

    Raises:
      TooMany: they lead to more than a million files and folders.
    """
    if not targets:
        return {}
    inside: dict[str, set[str]] = collections.defaultdict(set)  # {folder: what lies in it}
    for name in (*files, *targets):
        while name:
            above = posixpath.dirname(name)
            inside[above].add(name)
            name = above
    found: dict[str, str | None] = {}
    number = itertools.count(1)

    def visit(name: str, place: str, above: frozenset[str]) -> None:
        if next(number) > _MOST:
            raise TooMany(f"its links lead to more than {_MOST:,} files and folders")
        real = _real(place, targets)
        if real in inside:
            if real not in above:
                for entry in sorted(inside[real]):
                    visit(posixpath.join(name, posixpath.basename(entry)), entry, above | {real})
            return
        found[name] = real if real in files else None

    for name in targets:
        visit(name, name, frozenset(("", *_folders(name))))
    return found


def _folders(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _real(name: str, targets: Mapping[str, str]) -> str | None:
    """Where a name leads once no part of it is a link; None where that goes round in a circle."""
    for _ in range(_HOPS):
        link = next((part for part in (*_folders(name), name) if part in targets), None)
        if link is None:
            return name
        name = plain(targets[link] + name.removeprefix(link))
    return None
