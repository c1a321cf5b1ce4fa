"""The time and the memory of each analysis of an encoder, by part.

    python benchmarks/inside.py [--photos FOLDER] [--json FILE]   # 2,000 images of 128 px, ViT-S/16
    python benchmarks/inside.py --images 500 2000 --tasks soap spectra

Each task runs as eval.py runs it, in a process of its own, with random weights: on photographs
where it needs images alone, on `shapes` where it needs labels, masks or maps of classes. Given
several numbers of images, the table shows whether memory grows with them. What the columns are:

  loading    waiting for decoded images; threads decode them meanwhile, so this is what is left
  encoder    the encoder alone, timed after the task on batches of the same size, times the images
             that went through the devices; a task may look at each several times
  statistic  what the devices took beyond that: the statistic, attention where it is looked at,
             copies to the host
  host       the rest in Python and NumPy: eigenvectors, heads, tables, opening files
  figures    drawing and writing them
  compiling  tracing and compiling, which does not depend on the number of images; in seconds

ms are those for an image of one pass, the total is in seconds and holds everything. `read` counts
images with all passes. Memory is the most that the process had, and what of that it had before
the task. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hardware

PHOTOS, SHAPES = "photographs", "shapes"
# Which images a task is timed on.
TASKS = {
    "attention": PHOTOS,
    "diversity": PHOTOS,
    "frequencies": SHAPES,  # with labels, for the classifier under noise
    "hidden": SHAPES,  # with foreground masks
    "spectra": PHOTOS,
    "soap": PHOTOS,
    "layers": SHAPES,
    "attentive": SHAPES,
    "shift": SHAPES,
    "tsne": SHAPES,
    "saliency": SHAPES,
    "segmentation": SHAPES,
}
MS = ("loading", "encoder", "statistic", "host", "figures")
TASK = Path(__file__).parent / "inside_task.py"


def run(what: str, folder: Path, *flags: str) -> dict | str:
    """What a step of inside_task.py found; the last line of what it said where it failed."""
    out = folder / f"{what}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(TASK), what, str(folder / "run"), str(out), *flags]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return json.loads(out.read_text())


def rows_of(results: list[dict]) -> list[tuple[str, ...]]:
    heading = (
        "task",
        "on",
        "images",
        "read",
        "total s",
        *MS,
        "compiling s",
        "before MB",
        "peak MB",
    )
    rows = [heading]
    for found in results:
        ms = (1000 * found["seconds"][part] / found["images"] for part in MS)
        rows.append(
            (
                found["task"],
                found["on"],
                f"{found['images']:,}",
                f"{found['read']:,}",
                f"{found['total']:.1f}",
                *(f"{value:.2f}" for value in ms),
                f"{found['seconds']['compiling']:.1f}",
                *(f"{found['megabytes'][when]:,.0f}" for when in ("before", "peak")),
            )
        )
    return rows


def aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, second, *rest in rows:
        cells = [first.ljust(widths[0]), second.ljust(widths[1])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2000], help="default 2000")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default 128)")
    parser.add_argument("--patch", type=int, default=16, help="pixels a side (default 16)")
    parser.add_argument("--model", default="S", help="size of the ViT (default S)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--photos", help="a folder; default $DPPMASK_TEST_DATA/photos, else shapes")
    parser.add_argument("--json", type=Path, help="also write the results there")
    args = parser.parse_args()
    if min(*args.images, args.size, args.patch) < 1:
        parser.error("--images, --size and --patch must be at least 1")
    there = Path(os.environ.get("DPPMASK_TEST_DATA", "")) / "photos"
    if not args.photos and "DPPMASK_TEST_DATA" in os.environ and there.is_dir():
        args.photos = str(there)
    return args


def main() -> None:
    args = parsed()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    most = max(args.images)
    shapes = f"shapes:size={args.size},train={most},val={most}"
    sources = {SHAPES: shapes, PHOTOS: f"folder:{args.photos}" if args.photos else shapes}
    described = hardware.describe("jax", "jaxlib", "numpy")
    results, left_out = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = (f"--size={args.size}", f"--patch={args.patch}", f"--model={args.model}")
        machine = run("prepare", folder, f"--source={shapes}", *sizes)
        if isinstance(machine, str):
            sys.exit(machine)
        for task in args.tasks:
            for images in args.images:
                print(f"{task}, {images:,} images", file=sys.stderr, flush=True)
                source = f"--source={sources[TASKS[task]]}"
                found = run("measure", folder, source, f"--task={task}", f"--images={images}")
                if isinstance(found, str):
                    left_out.append(f"{task}, {images:,} images: {found}")
                    continue
                results.append({**found, "on": TASKS[task] if args.photos else SHAPES})
    print(f"ViT-{args.model}/{args.patch}, {args.size} px, float32; {machine['device']}")
    print(f"{hardware.line(described)}\n\n{MS[0]} to {MS[-1]}: ms an image\n")
    print(aligned(rows_of(results)))
    rate = 1000 * machine["encoder_flop"] / machine["encoder_ms"]
    product = machine["matmul_flop_per_sec"]
    print(
        f"\na large matrix product reaches {product / 1e12:.3f} TFLOP/s; the encoder alone "
        f"{rate / product:.0%} of that ({machine['encoder_flop'] / 1e9:.2f} GFLOP and "
        f"{machine['encoder_ms']:.2f} ms an image)"
    )
    if args.json:
        record = {"hardware": described, "machine": machine, "sizes": sizes, "tasks": results}
        args.json.write_text(json.dumps(record | {"failed": left_out}, indent=1) + "\n")
    if left_out:
        sys.exit("failed: " + "\n        ".join(left_out))


if __name__ == "__main__":
    main()
