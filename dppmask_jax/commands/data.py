"""Looks at a data set before it is trained on.

dppmask data measure SOURCE
dppmask data check SOURCE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dppmask_jax import command, pixel_format, terminal, whole_files
from dppmask_jax.data import checking, measuring
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.figures.contact_sheet import write_sheet

_CHECK = (
    "reads every image: counts, sizes, classes, kinds, unreadable ones with reasons, duplicates"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one of the commands; see the module's docstring."""
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.cli data"), description="Looks at a data set."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, part in _COMMANDS.items():
        part.add_arguments(commands.add_parser(name, help=part.help, description=part.help))
    args = parser.parse_args(argv)
    _COMMANDS[args.command].run(args)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="as data.source")
    add("--channels", type=int, help="as data.channels; default: images that 8-bit RGB is made of")
    add("--val_fraction", type=float, default=0.1, help="as data.val_fraction")
    add("--data_dir", help="as data.dir")
    add("--images", type=int, help="images of each split that are looked at; default: all")
    add("--sheet", metavar="FILE.png", help="where to draw a few images of each class")
    add("--json", metavar="FILE", help="where to write the report for programs")


def _check(args: argparse.Namespace) -> None:
    """Prints the report; ends with status 1 where an image cannot be read."""
    _check_arguments(args)
    splits, looked = checking.looked_at(
        args.source,
        most=args.images,
        channels=args.channels,
        data_dir=args.data_dir,
        val_fraction=args.val_fraction,
    )
    found = checking.report(args.source, splits, looked)
    for line in checking.lines(found):
        terminal.show(line, sys.stdout)
    try:
        if args.json:
            whole_files.write_json(Path(args.json), found)
            terminal.show(one_line(args.json), sys.stdout)
    except OSError as error:
        raise InputError(f"cannot write {args.json}: {error.strerror}") from error
    if args.sheet and "train" in splits:
        readable = [i for i, one in looked["train"].items() if isinstance(one, checking.Seen)]
        sheet = write_sheet(Path(args.sheet), splits["train"], readable)
        terminal.show(one_line(str(sheet)), sys.stdout)
    if found["broken"]:
        sys.exit(1)


def _check_arguments(args: argparse.Namespace) -> None:
    if not opening.SOURCE.holds(args.source):
        raise InputError(f"SOURCE={args.source}: it must be {opening.SOURCE.allowed}")
    if not pixel_format.FIELDS["data.channels"].rule.holds(args.channels):
        allowed = pixel_format.FIELDS["data.channels"].rule.allowed
        raise InputError(f"--channels={args.channels}: it must be {allowed}")
    if not 0 <= args.val_fraction < 1:
        raise InputError(f"--val_fraction={args.val_fraction}: it must be from 0 to below 1")
    if args.images is not None and args.images < 1:
        raise InputError(f"--images={args.images}: it must be at least 1")
    if args.sheet and not args.sheet.lower().endswith(".png"):
        raise InputError(f"--sheet={args.sheet}: it is a PNG; call it FILE.png")
    for name, path in (("sheet", args.sheet), ("json", args.json)):
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(f"--{name}={path}: there is no folder {Path(path).parent}; make it")


class _Part(NamedTuple):
    """A command of these."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


_COMMANDS = {
    "measure": _Part(measuring.HELP, measuring.add_arguments, measuring.run),
    "check": _Part(_CHECK, _add_arguments, _check),
}
