"""The command that lists the recipes of --config, and of flags like it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dppmask_jax import command, recipes, terminal
from dppmask_jax.errors import InputError

_FLAGS = ("config", *recipes.BELOW)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each recipe, or all that one says of itself."""
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax recipes"),
        description="Lists what --config takes by name: dppmask recipes, or dppmask recipes mae.",
    )
    parser.add_argument("name", nargs="?", help="the recipe whose arguments are to be explained")
    name = parser.parse_args(argv).name
    folders = {flag: recipes.BELOW.get(flag, "") for flag in _FLAGS}
    if name is None:
        return terminal.show(_listing(folders), sys.stdout)
    for folder in folders.values():
        if name in recipes.names(folder):
            return terminal.show(recipes.about(name, folder), sys.stdout)
    known = ", ".join(each for folder in folders.values() for each in recipes.names(folder))
    raise InputError(f"there is no recipe {name!r}; known: {known}")


def _listing(folders: dict[str, str]) -> str:
    """The recipes of each flag, a line each."""
    lines = []
    for flag, folder in folders.items():
        known = recipes.names(folder)
        width = max(map(len, known))
        lines.append(f"--{flag}:")
        for each in known:
            first = recipes.about(each, folder).partition("\n\n")[0]
            lines.append(f"  {each:{width}}  {' '.join(first.split())}")
        lines.append("")
    return "\n".join([*lines, "`dppmask recipes NAME` explains its arguments."])
