"""The command line of the lab. Every setting of a masker is a flag of its name."""

from __future__ import annotations

import argparse
import ast
import math
import os
from collections.abc import Sequence
from pathlib import Path

from dppmask_jax import command, masking, patches
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field
from dppmask_jax.masking import MASKERS, own, semantic_parts
from dppmask_jax.masklab import ways
from dppmask_jax.masklab.showing import FEATURES
from dppmask_jax.patches import PatchSize

_LEAST = 4  # patches a side, of a grid whose masks have a shape


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The checked arguments; `varied` has the settings that were named, {name: values}.

    Raises:
      InputError: an argument is out of range or does not fit the others.
    """
    first = command.ArgumentParser(add_help=False)
    add_masker(first)
    file = first.parse_known_args(argv)[0].masker
    if file:  # its settings are flags too
        own.load(file)
    args = _parser().parse_args(argv)
    fields = ways.fields()
    args.varied = {
        name: [value_of(name, fields[name], text) for text in getattr(args, name)]
        for name in fields
        if getattr(args, name) is not None
    }
    _check(args)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.masklab"),
        description="Measures every way of masking on images with foreground masks.",
    )
    add = parser.add_argument
    add("--source", required=True, help="shapes, saliency:ROOT, csv:FILE, …, see docs/data.md")
    add("--split", choices=("train", "val"), default="", help="default: val where there is one")
    add("--encoder", metavar="RUN", help="the run whose method shows what masks are drawn from")
    add("--out", type=Path, default=Path("masklab"), help="folder for what is written")
    add("--strategy", nargs="+", metavar="NAME", help="maskers beside random; default: all")
    add_masker(parser)
    add("--ratio", type=float, nargs="+", default=[0.75], help="hidden, one table each")
    add("--images", type=int, default=300, help="evenly spread over the split; 0: all")
    add("--seeds", type=int, default=2, help="masks of each kind an image")
    add(
        "--image_size",
        type=pair,
        metavar="SIDE or H,W",
        help="in pixels; default: the run's, 64 for shapes, else 224",
    )
    add(
        "--patch_size",
        type=patch_size,
        metavar="SIDE or H,W",
        help="without --encoder; default: 8 for shapes, else 16",
    )
    add(
        "--features",
        choices=FEATURES,
        help="without --encoder: that of an untrained ViT-B (default), or normalised pixels",
    )
    add(
        "--positions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="masks that are drawn from features also from positions alone",
    )
    add(
        "--pieces",
        action=argparse.BooleanOptionalAction,
        help="each connected piece of a foreground is an object; default: for shapes",
    )
    add("--progress", type=float, default=1.0, help="of a run, for masks that change over it")
    add("--foreground", type=int, default=128, help="grey value from which masks are foreground")
    add("--almost", type=float, default=0.25, help="part of an object's fair share, see the page")
    settings = parser.add_argument_group("settings of maskers, one or several values each")
    for name, field in ways.fields().items():
        settings.add_argument(f"--{name}", nargs="+", metavar="VALUE", help=help_of(field))
    return parser


def add_masker(parser) -> None:
    parser.add_argument(
        "--masker", metavar="FILE", help="the config file that defines masks of your own"
    )


def help_of(field: Field) -> str:
    return f"{field.note}; {field.rule.allowed}; default: {field.default}".replace("%", "%%")


def value_of(name: str, field: Field, text: str):
    """The value that a flag's text means."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # it is a word
        value = text
    for meant in (value, text):
        if field.rule.holds(meant):
            return meant
    raise InputError(f"--{name}={text}: it must be {field.rule.allowed}")


def pair(text: str) -> tuple[int, int]:
    try:
        height, _, width = text.partition(",")
        return int(height), int(width or height)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIDE or HEIGHT,WIDTH") from error


def patch_size(text: str) -> PatchSize:
    height, width = pair(text)
    return height if height == width else (height, width)


def _check(args) -> None:
    """Fills in defaults that depend on other arguments, and refuses what does not fit."""
    for name in args.strategy or ():
        if name not in MASKERS:
            raise InputError(f"--strategy={name} is not known here: {' | '.join(MASKERS)}")
    for ratio in args.ratio:
        if not 0 < ratio < 1:
            raise InputError(f"--ratio must lie between 0 and 1, got {ratio:g}")
    for name, least in {"images": 0, "seeds": 1}.items():
        if getattr(args, name) < least:
            raise InputError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if not 1 <= args.foreground <= 255:
        raise InputError(f"--foreground must be from 1 to 255, got {args.foreground}")
    if not 0 <= args.progress <= 1:
        raise InputError(f"--progress must be from 0 to 1, got {args.progress:g}")
    if not args.almost > 0:
        raise InputError(f"--almost must be above 0, got {args.almost:g}")
    is_shapes = args.source.partition(":")[0] == "shapes"
    args.pieces = is_shapes if args.pieces is None else args.pieces
    if any(parts != semantic_parts.SOURCE for parts in args.varied.get("parts", ())):
        raise InputError(f"--parts={semantic_parts.SOURCE} alone: a file is of a run's images")
    if args.encoder:
        for name in ("patch_size", "features"):
            if getattr(args, name) is not None:
                raise InputError(f"--{name} is for masks without a run: leave it or --encoder out")
    else:
        args.image_size = args.image_size or ((64, 64) if is_shapes else (224, 224))
        args.patch_size = args.patch_size or (8 if is_shapes else 16)
        args.features = args.features or FEATURES[0]
    _check_folder(args.out)


def _check_folder(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--out={folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--out={folder}: {there} cannot be written; name another folder")


def checked_grid(image_size: tuple[int, int], patch_size: PatchSize) -> tuple[int, int]:
    """(rows, columns) of the patches.

    Raises:
      InputError: the patches do not divide the images, or there are too few of them.
    """
    try:
        grid = patches.grid_shape(image_size, patch_size)
    except ValueError as error:
        size = patches.size_name(patch_size)
        raise InputError(f"--image_size={image_size}, --patch_size={size}: {error}") from error
    if min(grid) < _LEAST:
        raise InputError(
            f"images of {image_size[0]}x{image_size[1]} pixels have {grid[0]}x{grid[1]} patches, "
            f"and at least {_LEAST}x{_LEAST} are needed; take a larger --image_size"
        )
    return grid


def checked_counts(ratios: Sequence[float], grid: tuple[int, int]) -> dict[float, int]:
    """{ratio: number of visible patches}.

    Raises:
      InputError: a ratio leaves no patch visible, or hides none.
    """
    total, counts = math.prod(grid), {}
    for ratio in ratios:
        try:
            counts[ratio] = masking.num_visible(total, ratio)
        except ValueError as error:
            raise InputError(f"--ratio={ratio:g}: {error}") from error
        if counts[ratio] == total:
            raise InputError(f"--ratio={ratio:g} hides none of {total} patches; raise it")
    return counts
