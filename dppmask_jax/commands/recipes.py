"""The command that lists the recipes of --config."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dppmask_jax import command, recipes, terminal
from dppmask_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each recipe, or all that one says of itself."""
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax recipes"),
        description="Lists what --config takes by name: dppmask recipes, or dppmask recipes mae.",
    )
    parser.add_argument("name", nargs="?", help="the recipe whose arguments are to be explained")
    name = parser.parse_args(argv).name
    known = recipes.names()
    if name is None:
        width = max(map(len, known))
        first = {each: recipes.about(each).partition("\n\n")[0] for each in known}
        lines = [f"{each:{width}}  {' '.join(text.split())}" for each, text in first.items()]
        lines += ["", "`dppmask recipes NAME` explains its arguments."]
        terminal.show("\n".join(lines), sys.stdout)
    elif name in known:
        terminal.show(recipes.about(name), sys.stdout)
    else:
        raise InputError(f"there is no recipe {name!r}; known: {', '.join(known)}")
