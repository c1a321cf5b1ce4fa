"""Measures every way of masking on images whose foreground is known. Nothing is trained.

    dppmask masklab --source=SOURCE [--encoder=RUN] [--out=FOLDER]

SOURCE is any data source that has foreground masks, such as `shapes`, saliency:ROOT, or a csv:FILE
with a column `mask`. Every masker is measured with each of its variants; --strategy names some of
them, and a flag of a setting, such as --tau 0.6 0.9, takes the place of the variants. FOLDER
receives table.json, table.md, gallery.png and page.md.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

import jax
import numpy as np

from dppmask_jax import command, patches, whole_files
from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels
from dppmask_jax.masking import MASKERS
from dppmask_jax.masklab import arguments, measuring, page, photographs, rows, showing, ways
from dppmask_jax.masklab.gallery import PHOTOGRAPHS, draw_gallery
from dppmask_jax.runs.run import load_run


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes; see the module's docstring."""
    args = arguments.parsed(argv)
    shower, image_size, patch_size = _shower(args)
    grid = arguments.checked_grid(image_size, patch_size)
    counts = arguments.checked_counts(args.ratio, grid)
    named = {
        ratio: ways.all_of(args.strategy or MASKERS, args.varied, ratio, args.positions)
        for ratio in counts
    }
    taken = photographs.read(
        photographs.chosen_split(args.source, args.split),
        args.source,
        image_size=image_size,
        patch_size=patch_size,
        limit=args.images,
        foreground=args.foreground,
        pieces=args.pieces,
        num_parts=max(args.varied.get("num_parts", [ways.fields()["num_parts"].default])),
    )
    report: dict[str, Any] = {
        "source": args.source,
        "images": len(taken.images),
        "without_foreground": taken.without,
        "objects": len(taken.objects),
        "in_pieces": args.pieces,
        "image_size": image_size,
        "patch_size": patch_size,
        "grid": grid,
        "shown_by": shower.words,
        "almost": args.almost,
        "seeds": args.seeds,
        "progress": args.progress,
        "command": _command(argv),
        "ratios": [],
    }
    figures = []
    show = showing.of_photographs(shower, taken)
    for ratio, count in counts.items():
        terms = ways.Terms(grid, count, args.progress)
        setting = measuring.Setting(terms, patch_size, args.seeds, args.almost)
        some = show(measuring.padded([0], len(taken.images)), 0)
        chosen, left_out = _drawable(args, named[ratio], some, shower.words, terms)
        found = measuring.measure(taken, show, chosen, setting)
        records = rows.rows_of(chosen, found, taken.objects, taken.owner, count, args.almost)
        report["ratios"].append(
            {"ratio": ratio, "visible": count, "masks": records, "left_out": left_out}
        )
        figures.append(_gallery(taken, show, chosen, setting))
    _write(args.out, report, figures)


def _drawable(args, named, some, who: str, terms: ways.Terms):
    """(ways that can be drawn, {label: why others cannot}, which is said).

    Args:
      named: (ways, {strategy: why it cannot be built}).
      some: what is shown of some images.
      who: what shows it.

    Raises:
      InputError: none of the strategies that were asked for can be drawn.
    """
    chosen, left_out = named
    chosen, undrawn = ways.drawable(chosen, some, who, terms)
    left_out = left_out | undrawn
    lines = [f"{label}: {why}" for label, why in left_out.items()]
    if args.strategy and lines and {way.strategy for way in chosen}.isdisjoint(args.strategy):
        raise InputError(f"--strategy: nothing can be drawn: {'; '.join(lines)}")
    for line in lines:
        print(f"left out: {line}")
    return chosen, left_out


def _shower(args) -> tuple[showing.Shower, tuple[int, int], patches.PatchSize]:
    """(what masks are drawn from, image size, size of the patches)."""
    if args.encoder:
        run = load_run(args.encoder, image_size=args.image_size)
        return showing.of_run(run), run.image_size, run.config.model.patch_size
    arguments.checked_grid(args.image_size, args.patch_size)
    shower = showing.untrained(args.features, args.image_size, args.patch_size)
    return shower, args.image_size, args.patch_size


def _gallery(taken, show, chosen, setting: measuring.Setting):
    """The figure of some images, evenly spread, under all masks of the first draw."""
    total, terms = len(taken.images), setting.terms
    shown = np.linspace(0, total - 1, min(PHOTOGRAPHS, total)).round().astype(int)
    numbers = measuring.padded(shown, total)
    known, keys = show(numbers, 0), ways.keys_of(0, numbers)
    masks = {}
    for way in chosen:
        drawn, _ = jax.device_get(ways.draw(way, keys, known, terms))
        masks[way.label] = jax.tree.map(lambda values: values[: len(shown)], drawn)
    num_patches = terms.grid[0] * terms.grid[1]
    note = f"{num_patches - terms.count} of {num_patches} patches are hidden"
    return draw_gallery(taken.images[shown], masks, setting.patch_size, note)


def _write(out: Path, report: dict[str, Any], figures: list) -> None:
    out.mkdir(parents=True, exist_ok=True)
    names = []
    for part, figure in zip(report["ratios"], figures, strict=True):
        name = f"gallery_{part['ratio']:g}.png" if len(figures) > 1 else "gallery.png"
        names.append(name)
        panels.save(figure, out, name)
    whole_files.write_json(out / "table.json", report)
    whole_files.write_text(out / "table.md", page.only_tables(report))
    whole_files.write_text(out / "page.md", page.text(report, names))
    for name in ("table.json", "table.md", *names, "page.md"):
        print(out / name)


def _command(argv: Sequence[str] | None) -> str:
    words = sys.argv[1:] if argv is None else argv
    start = command.called("python -m dppmask_jax.masklab").split()
    return shlex.join([*start, *map(str, words)])


if __name__ == "__main__":
    command.run_parsed(main)
