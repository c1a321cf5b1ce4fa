"""Looks at a data set before it is trained on.

dppmask data measure SOURCE
"""

from __future__ import annotations

from collections.abc import Sequence

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax import command
from dppmask_jax.data import measuring

_COMMANDS = {"measure": measuring}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the commands; see the module's docstring."""
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.data"), description="Looks at a data set."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    args = parser.parse_args(argv)
    _COMMANDS[args.command].run(args)


if __name__ == "__main__":
    command.run_parsed(main)
