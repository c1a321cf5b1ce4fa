"""Tables that a benchmark writes into a page, between two comments that name it:
`<!-- NAME: SCRIPT -->` and `<!-- end of NAME -->`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of strings, as Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check(page: Path, script: str, names: Iterable[str]) -> None:
    """Ends the program, with one line, where a page is missing or lacks the marks of a table."""
    if not page.is_file():
        sys.exit(f"{page} is no file")
    for name in names:
        if len(_between(script, name).findall(page.read_text())) != 1:
            first, last = _marks(script, name)
            sys.exit(f"{page} has not the lines {first} and {last} once")


def write(page: Path, script: str, tables: dict[str, str]) -> None:
    """Puts each table, by its name, in place of what stands between its marks; see `check`."""
    check(page, script, tables)
    text = page.read_text()
    for name, table in tables.items():
        first, last = _marks(script, name)
        (old,) = _between(script, name).findall(text)
        text = text.replace(old, f"{first}\n{table}\n{last}")
    page.write_text(text)


def _marks(script: str, name: str) -> tuple[str, str]:
    return f"<!-- {name}: {script} -->", f"<!-- end of {name} -->"


def _between(script: str, name: str) -> re.Pattern:
    first, last = map(re.escape, _marks(script, name))
    return re.compile(rf"{first}\n.*?{last}", re.DOTALL)
