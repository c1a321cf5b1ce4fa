"""Draws the figures of a training run.

    dppmask figures --workdir=RUN [--compare OTHER_RUN ...] [--images PATH ...]

does it for a finished or an imported run, and without --workdir for masks alone, see `untrained`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax import command, pixel_format
from dppmask_jax.errors import InputError
from dppmask_jax.figures import untrained
from dppmask_jax.figures.curves import write_curves
from dppmask_jax.figures.images import read_images
from dppmask_jax.figures.of_run import write_run_figures
from dppmask_jax.masking import own
from dppmask_jax.patches import PatchSize, sides, size_name
from dppmask_jax.runs import bucket, bucket_copy, comparable, encoder_files, soft_masks
from dppmask_jax.runs.image_sizes import checked_image_size
from dppmask_jax.runs.run import load_run


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the figures of a run, or masks alone; see the module's docstring."""
    args = _arguments(argv)
    bucket.check_local(args.out, "--out")
    paths = _of_run(args) if args.workdir else _of_images(args)
    for path in paths:
        print(path)


def _arguments(argv):
    parser = command.ArgumentParser(
        prog=command.called("python -m dppmask_jax.figures"),
        description="Draws the figures and curves of a run or, without --workdir, random and DPP "
        "masks of an untrained embedding.",
    )
    parser.add_argument("--workdir", help="the run")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="other runs, for curves.png"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="image files or folders; default: the run's own validation images",
    )
    parser.add_argument(
        "--image_size",
        type=_pair,
        metavar="H,W",
        help="in pixels, multiples of the patches; default: the run's, or 224,224",
    )
    parser.add_argument(
        "--patch_size",
        type=_patch_size,
        metavar="SIDE or H,W",
        help="in pixels, without --workdir; default: 16",
    )
    parser.add_argument("--ratio", type=float, help="hidden, without --workdir; default: 0.75")
    parser.add_argument("--tau", type=float, help="of masks.png, without --workdir; default: 0.9")
    parser.add_argument("--num", type=int, default=6, help="at most this many images")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument(
        "--borrow_statistics",
        action="store_true",
        help="reconstructions with the true brightness and contrast of each hidden patch, which no "
        "model could know; without it they are estimated from visible patches",
    )
    parser.add_argument(
        "--masker", metavar="FILE", help="the config file that defines masks of your own"
    )
    parser.add_argument("--out", help="folder for the figures; default: WORKDIR/figures")
    args = parser.parse_args(argv)
    if args.num < 1:
        raise InputError(f"--num must be at least 1, got {args.num}")
    if not 0 <= args.seed < 2**31:
        raise InputError(f"--seed must be in 0..2**31 - 1, got {args.seed}")
    if args.patch_size is not None and min(sides(args.patch_size)) < 1:
        raise InputError(f"--patch_size must be at least 1, got {size_name(args.patch_size)}")
    of_run = ("compare", "borrow_statistics", "masker")
    of_images = ("patch_size", "ratio", "tau")
    if not args.workdir and not args.images:
        raise InputError("name a run with --workdir, or images to mask with --images")
    for name in of_images if args.workdir else of_run:
        if getattr(args, name) not in (None, False, []):
            raise InputError(
                f"--{name} is for masks without a run: leave it or --workdir out"
                if args.workdir
                else f"--{name} is for a run: name it with --workdir"
            )
    return args


def _pair(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHT,WIDTH in pixels") from error
    return height, width


def _patch_size(text: str) -> PatchSize:
    try:
        return _pair(text) if "," in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not SIDE or HEIGHT,WIDTH") from error


def _of_images(args) -> list[Path]:
    """Draws masks without a run."""
    size, patch_size = args.image_size or (224, 224), args.patch_size
    patch_size = 16 if patch_size is None else patch_size
    checked_image_size(size, patch_size)
    return untrained.write_figures(
        args.out or "figures",
        read_images(args.images, size, args.num),
        patch_size=patch_size,
        ratio=0.75 if args.ratio is None else args.ratio,
        tau=0.9 if args.tau is None else args.tau,
        seed=args.seed,
    )


def _of_run(args) -> list[str]:
    """Draws what a run can show, and its curves; in a bucket through a local copy."""
    with contextlib.ExitStack() as stack:
        copies = [bucket_copy.opened(run, ".lock_figures") for run in (args.workdir, *args.compare)]
        workdir, *others = map(stack.enter_context, copies)
        return [bucket_copy.named(path) for path in _drawn(args, workdir, others)]


def _drawn(args, workdir: Path, others: list[Path]) -> list[Path]:
    out_dir = Path(args.out or encoder_files.results_of(workdir) / "figures")
    if args.masker:
        own.load(args.masker)
    run = load_run(workdir, image_size=args.image_size)
    if run.resized:
        print(run.resized)
    runs = [workdir, *others]
    if not (run.has_masks or run.has_attention or run.can_restore or soft_masks.has_some(run)):
        if not (workdir / "metrics.jsonl").exists():
            raise InputError(
                f"--workdir={workdir} is {run.name} run, which masks nothing and shows no "
                "attention of a class token: name another"
            )
        print(f"curves alone: this is {run.name} run, which masks nothing")
        return _write_curves_of(runs, out_dir)
    if run.has_masks:
        own.check(run.config.mask)
    images = _images_for(run, args)
    curves = _write_curves_of(runs, out_dir)
    paths = write_run_figures(
        out_dir,
        run,
        images,
        args.seed,
        borrow_statistics=args.borrow_statistics,
        workdir=workdir,
    )
    return [*paths, *curves]


def _images_for(run, args):
    """(R, H, W, C) as they are loaded: those of --images, or the run's own."""
    if args.images:
        grey_range = pixel_format.named_range(run.config.data.range)
        return read_images(args.images, run.image_size, args.num, grey_range, run.pixels)
    try:
        return run.example_images(args.num)
    except InputError as error:
        raise InputError(f"the run's own images: {error}; or name others: --images") from error


def _write_curves_of(runs: list[Path], out_dir: Path) -> list[Path]:
    """[curves.png] of some runs; [] for a single one that was not trained here, which is said."""
    if len(runs) == 1:
        if not (runs[0] / "metrics.jsonl").exists():
            print(f"no curves: {runs[0]} has no metrics.jsonl, it was not trained here")
            return []
        return [write_curves(out_dir, runs[0] / "metrics.jsonl")]
    labels = comparable.labels(runs)
    files = {label: folder / "metrics.jsonl" for label, folder in zip(labels, runs, strict=True)}
    warnings = comparable.warnings_of(runs)
    curves = write_curves(out_dir, files, "\n".join(warnings))
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return [curves]


if __name__ == "__main__":
    command.run_parsed(main)
