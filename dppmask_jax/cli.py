"""The console script `dppmask`: a name for each command.

The commands stay modules of their own. What is imported here needs no extra, so that the list of
commands, and what to install, can be said by a bare installation.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import NamedTuple

from dppmask_jax import extras, terminal


class Command(NamedTuple):
    """A subcommand: what it does, in one line, and what runs it with the words of sys.argv."""

    line: str
    run: Callable[[], None]


def main() -> None:
    """Runs the command that sys.argv names; `dppmask` alone lists them."""
    words = sys.argv[1:]
    if not words or words[0] in ("help", "--help", "-h"):
        terminal.show(listing(), sys.stdout)
        return
    if words[0] == "--version":
        print(f"dppmask-jax {importlib.metadata.version('dppmask-jax')}")
        return
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        print(f"error: {_unknown(words[0])}", file=sys.stderr)
        sys.exit(2)
    extras.require()
    sys.argv[:] = [f"dppmask {name}", *words[1:]]
    COMMANDS[name].run()


def listing() -> str:
    """All commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dppmask COMMAND [flags]",
            "",
            *lines,
            "",
            "`dppmask COMMAND --help` has the flags of each. To begin with:",
            "  dppmask train --config=mae:dataset=shapes,mask=dpp --workdir=runs/first",
        ]
    )


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
    return f"there is no command {' '.join(ascii(word)[1:-1].split())!r}; {hint}"


def _train() -> None:
    from dppmask_jax.commands import train

    train.main()


def _eval() -> None:
    from dppmask_jax.commands import evaluation

    evaluation.main()


def _data() -> None:
    from dppmask_jax import command
    from dppmask_jax.commands.data import main

    command.run_parsed(main)


def _masks() -> None:
    from dppmask_jax import command
    from dppmask_jax.commands import masks

    command.run_parsed(masks.main)


def _figures() -> None:
    from dppmask_jax import command
    from dppmask_jax.figures.__main__ import main

    command.run_parsed(main)


def _weights() -> None:
    from dppmask_jax.weights.__main__ import run

    run()


def _sweep() -> None:
    from dppmask_jax import sweep

    sweep.main()


def _show_config() -> None:
    from dppmask_jax.commands import show_config

    show_config.main()


def _recipes() -> None:
    from dppmask_jax import command
    from dppmask_jax.commands import recipes

    command.run_parsed(recipes.main)


def _masklab() -> None:
    from dppmask_jax import command
    from dppmask_jax.masklab.__main__ import main

    command.run_parsed(main)


def _compare() -> None:
    from dppmask_jax import compare

    compare.main()


def _results() -> None:
    from dppmask_jax import command
    from dppmask_jax.results.__main__ import main

    command.run_parsed(main)


def _part_maps() -> None:
    from dppmask_jax import command, part_maps

    command.run_parsed(part_maps.main)


COMMANDS = {
    "train": Command("pre-train a model, or go on with a run", _train),
    "eval": Command("evaluate runs, or look inside them", _eval),
    "recipes": Command("what --config takes by name, and its arguments", _recipes),
    "show-config": Command("print every field of a config and what it means", _show_config),
    "data": Command("look at a data set before training on it", _data),
    "masks": Command("masks of your images as an .npz, and a figure of some", _masks),
    "figures": Command("draw what a run masks, attends to and restores, and its curves", _figures),
    "sweep": Command("train and evaluate at every point of a grid", _sweep),
    "compare": Command("train under many maskers, with seeds, and say what differs", _compare),
    "results": Command("one page of the results of evaluations and sweeps", _results),
    "masklab": Command("measure ways of masking on images with foreground masks", _masklab),
    "part-maps": Command("parts of each image, for masks by parts", _part_maps),
    "weights": Command("published weights into a run, and a run's weights out", _weights),
}


if __name__ == "__main__":
    main()
