"""The command that writes the masks of some images, for pipelines of other people's.

    dppmask masks FOLDER --out=masks.npz [--strategy=dpp] [--ratio=0.75] [--tau=0.6]

The file has a row for each image that can be read, in the order of their paths below FOLDER:
paths, order, mask (True = hidden), count and num_greedy, see `masking.export_masks`; grid,
image_size, patch_size and settings say what they are masks of. A figure beside it shows some. An
image's mask depends on its pixels, on its place in the order, and on --seed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dppmask_jax import command, masking, patches, terminal, whole_files
from dppmask_jax.data.images import crops, decode
from dppmask_jax.data.sources import folder as folders
from dppmask_jax.data.sources import image_files
from dppmask_jax.errors import InputError, one_line
from dppmask_jax.figures import panels
from dppmask_jax.figures.masks import Shown, draw_masks
from dppmask_jax.figures.run_masks import hidden_note
from dppmask_jax.masking import MASKERS, Mask, own
from dppmask_jax.masklab import arguments, ways
from dppmask_jax.words import count

_AT_ONCE = 64  # images in memory
_NAMED = 20  # unreadable files that are named


def main(argv: Sequence[str] | None = None) -> None:
    """Writes masks and a figure; see the module's docstring."""
    args = _parsed(argv)
    root, names = _listed(args.images)
    _check_drawable(args, min(_AT_ONCE, len(names)))
    found, kept, shown, unreadable = [], [], {}, {}
    for start, images, reasons in _read(root, names, args.image_size):
        good = [row for row in range(len(images)) if names[start + row] not in reasons]
        found.append(_rows(_drawn(args, images, start), good))
        kept += [names[start + row] for row in good]
        shown |= {start + row: images[row] for row in good[: args.num - len(shown)]}
        unreadable |= reasons
    _tell(unreadable, root)
    if not kept:
        raise InputError(f"none of {count(len(names), 'image')} in {args.images} can be read")
    masks = _joined(found)
    _write_masks(args, kept, masks)
    print(f"{args.out}: {count(len(kept), 'mask')}, {_in_words(masks)}")
    if shown:
        _write_figure(args, shown, masks)
        print(args.figure)


# What the command line says.


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    first = command.ArgumentParser(add_help=False)
    arguments.add_masker(first)
    file = first.parse_known_args(argv)[0].masker
    if file:  # its settings are flags too
        own.load(file)
    args = _parser().parse_args(argv)
    fields = ways.fields()
    args.settings = {
        name: arguments.value_of(name, fields[name], text)
        for name in fields
        if (text := getattr(args, name)) is not None
    }
    _check(args)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax masks"),
        description="Writes masks of images: dppmask masks FOLDER --out=masks.npz",
    )
    add = parser.add_argument
    add("images", type=Path, metavar="FOLDER", help="images at any depth, or one image")
    add("--out", type=Path, default=Path("masks.npz"), help="the file; default: masks.npz")
    add("--figure", type=Path, metavar="FILE.png", help="default: beside --out, of its name")
    add("--strategy", default="dpp", metavar="NAME", help="one that needs images alone")
    arguments.add_masker(parser)
    add("--ratio", type=float, default=0.75, help="hidden; default: 0.75")
    add("--seed", type=int, default=0, help="of the masks")
    add(
        "--image_size",
        type=arguments.pair,
        default=(224, 224),
        metavar="SIDE or H,W",
        help="in pixels; images are cropped as for evaluation; default: 224",
    )
    add(
        "--patch_size",
        type=arguments.patch_size,
        default=16,
        metavar="SIDE or H,W",
        help="in pixels; default: 16",
    )
    add(
        "--features",
        choices=("embedding", "pixels", "positions"),
        default="embedding",
        help="what DPP masks compare; default: an untrained embedding",
    )
    add("--num", type=int, default=6, help="images in the figure; 0: no figure")
    settings = parser.add_argument_group("settings of strategies")
    for name, field in ways.fields().items():
        settings.add_argument(f"--{name}", metavar="VALUE", help=arguments.help_of(field))
    return parser


def _check(args) -> None:
    """Fills in what depends on other arguments, and refuses what can be refused before images are
    read."""
    if args.num < 0:
        raise InputError(f"--num must be at least 0, got {args.num}")
    if args.out.suffix != ".npz":
        raise InputError(f"--out={args.out}: name a file that ends in .npz")
    args.figure = args.figure or args.out.with_suffix(".png")
    if args.figure.suffix != ".png":
        raise InputError(f"--figure={args.figure}: name a file that ends in .png")
    for flag, path in {"out": args.out, "figure": args.figure}.items():
        if flag == "figure" and not args.num:
            continue
        if os.path.lexists(path):
            raise InputError(f"--{flag}={path} exists: name another file, or remove it")
        if not path.absolute().parent.is_dir():
            raise InputError(f"--{flag}={path}: there is no folder {path.absolute().parent}")
        if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
            raise InputError(f"--{flag}={path}: the folder cannot be written; name another")
    if args.strategy in MASKERS:
        read = {name.removeprefix("mask.") for name in MASKERS[args.strategy].fields}
        for setting in args.settings:
            if setting not in read:
                known = ", ".join(sorted(read)) or "it has no settings"
                raise InputError(f"--{setting} is not read by --strategy={args.strategy}: {known}")
    try:
        patches.grid_shape(args.image_size, args.patch_size)
    except ValueError as error:
        raise InputError(f"--image_size, --patch_size: {error}") from error


def _drawn(args, images: np.ndarray, start: int) -> Mask:
    """The masks of images (B, H, W, 3) uint8, the first of which has the number `start`."""
    return masking.export_masks(
        images,
        patch_size=args.patch_size,
        ratio=args.ratio,
        strategy=args.strategy,
        seed=args.seed,
        features=None if args.features == "embedding" else args.features,
        start_index=start,
        **args.settings,
    )


def _check_drawable(args, images: int) -> None:
    """Raises InputError where an argument of the masks is wrong or does not fit the others."""
    try:
        _drawn(args, np.zeros((images, *args.image_size, 3), np.uint8), 0)
    except ValueError as error:
        raise InputError(str(error)) from error


# Images.


def _listed(given: Path) -> tuple[Path, list[str]]:
    """(a folder, the paths of images below it, sorted)."""
    if given.is_file():
        return given.parent, [given.name]
    if not given.is_dir():
        raise InputError(f"there is no file or folder {given}")
    names, others = [], 0
    for folder, below, files in os.walk(given):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in folders.EXTENSIONS:
                names.append(os.path.relpath(os.path.join(folder, name), given))
            else:
                others += 1
    if not names:
        raise InputError(f"no image in {given}: files of {' '.join(folders.EXTENSIONS)} count")
    if others:
        print(f"note: passed over, without the ending of an image: {count(others, 'file')}")
    return given, sorted(names)


def _read(root: Path, names: Sequence[str], image_size) -> Iterator[tuple[int, np.ndarray, dict]]:
    """(number of the first, images (b, H, W, 3) uint8, {name: why it cannot be read}) in pieces;
    an unreadable image is black, so that those after it keep their numbers."""
    for start in range(0, len(names), _AT_ONCE):
        some, reasons = names[start : start + _AT_ONCE], {}
        images = np.zeros((len(some), *image_size, 3), np.uint8)
        for row, name in enumerate(some):
            try:
                data = image_files.read_file(str(root / name))
                images[row] = crops.center_crop(data, image_size=image_size)
            except (OSError, decode.DecodeError) as error:
                reasons[name] = image_files.why(error)
        yield start, images, reasons


def _tell(unreadable: dict[str, str], root: Path) -> None:
    for name, reason in list(unreadable.items())[:_NAMED]:
        terminal.show(one_line(f"left out: {root / name}: {reason}"), sys.stderr)
    if len(unreadable) > _NAMED:
        terminal.show(f"left out: {len(unreadable) - _NAMED} more", sys.stderr)


# What is written.


def _rows(mask: Mask, rows) -> Mask:
    return Mask(*(None if part is None else np.asarray(part)[rows] for part in mask))


def _joined(masks: Sequence[Mask]) -> Mask:
    return Mask(
        *(None if parts[0] is None else np.concatenate(parts) for parts in zip(*masks, strict=True))
    )


def _write_masks(args, names: Sequence[str], masks: Mask) -> None:
    settings: dict[str, Any] = {
        "strategy": args.strategy,
        "ratio": args.ratio,
        "seed": args.seed,
        "features": args.features,
        **args.settings,
    }
    arrays = {name: part for name, part in masks._asdict().items() if part is not None}
    with whole_files.replacing(args.out) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            paths=np.array(names),
            grid=patches.grid_shape(args.image_size, args.patch_size),
            image_size=args.image_size,
            patch_size=patches.sides(args.patch_size),
            settings=json.dumps(settings),
            **arrays,
        )


def _in_words(masks: Mask) -> str:
    hidden = masks.hidden.sum(axis=1)
    few, most = int(hidden.min()), int(hidden.max())
    some = f"{few}" if few == most else f"{few} to {most}"
    return f"{some} of {masks.mask.shape[1]} patches hidden"


def _write_figure(args, shown: dict[int, np.ndarray], masks: Mask) -> None:
    """Draws some images, {number: (H, W, 3) uint8}, which have the first of the masks, beside what
    random masks would be."""
    masks = _rows(masks, slice(len(shown)))
    num_patches = masks.mask.shape[1]
    note = hidden_note(num_patches - int(masks.count[0]), num_patches)
    images = np.stack(list(shown.values()))
    if args.strategy == "random":
        scale = panels.panel_scale(images.shape[2], panels.PANEL)
        panel = [
            [
                panels.enlarge(image, scale),
                panels.mask_panel(image, hidden, args.patch_size, scale=scale),
            ]
            for image, hidden in zip(images, masks.hidden, strict=True)
        ]
        figure = panels.compose(panel, ["Original", "Random mask"], None, [], note=note)
    else:
        plain = argparse.Namespace(**vars(args) | {"strategy": "random", "settings": {}})
        random = _joined([_drawn(plain, image[None], number) for number, image in shown.items()])
        both = [_shown("random", random), _shown(args.strategy, masks)]
        figure = draw_masks(images, both, args.patch_size, note)
    panels.save(figure, args.figure.parent, args.figure.name)


def _shown(strategy: str, masks: Mask) -> Shown:
    name = {"dpp": "DPP"}.get(strategy, strategy)
    title = name if name.isupper() else name.capitalize()
    captions = [f"{visible} visible" for visible in masks.count]
    return Shown(name, f"{title} mask", masks.mask, captions, thrown=masks.thrown)
