"""Does the DPP leave more of the object visible than random masking? Measured without training.

    python benchmarks/coverage.py --source=shapes
    python benchmarks/coverage.py --source=FOLDER      (FOLDER/images/* and FOLDER/masks/*.png)

For images whose foreground is known, masks are drawn from the features of a freshly initialised
ViT-B (patch embedding plus position, what pre-training uses at its first step) and compared with
random masks of the same noise. Definitions:

- an object is the whole foreground of an image, or, with `--pieces` (the default for shapes), each
  connected piece of it;
- an object patch is a patch of which at least half the pixels are the object's; an object too
  small to have one consists of the single patch that holds most of it;
- none: no object patch is visible;
- almost none: fewer than a quarter (`--almost`) of the object's fair share of the visible patches,
  object patches * visible patches / all patches; at ratio 0.75, under 6.25 % of the object;
- on object: object patches among the visible ones / visible patches;
- object kept: visible object patches / object patches;
- log det: of the kernel of the visible patches, in float64.

Each image is masked once for every seed; a seed changes the noise and the initialisation. Random
rows: mean over objects of the mean over seeds, ± the standard error over images. DPP rows: the
mean and, in brackets, the paired difference from random (same image, same noise) ± its standard
error. The row `random, exact` is what the hypergeometric distribution says, no noise left.
docs/coverage.md holds the results.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import coverage_scores
from dppmask_jax import command, dpp, imagenet, patches
from dppmask_jax.data.sources import shapes
from dppmask_jax.errors import InputError
from dppmask_jax.models import vit_module
from dppmask_jax.models.sizes import SIZES

MEAN, STD = np.float32(imagenet.MEAN), np.float32(imagenet.STD)
TAUS = (0.0, 0.6, 0.8, 0.85, 0.9, 0.95)
STATISTICS = ("none", "almost", "kept", "on_object", "num_greedy", "log_det")


# Images.


class Images(NamedTuple):
    """images (B, H, W, 3) uint8, foreground (B, H, W) bool, and a word on what they are."""

    images: np.ndarray
    foreground: np.ndarray
    name: str


def square(image: Image.Image, size: int, resample) -> np.ndarray:
    """Resizes so that the short side is `size`, and crops the centre."""
    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(
        image.resize((width, height), resample).crop((left, top, left + size, top + size))
    )


def read_folder(folder: Path, size: int, limit: int) -> Images:
    """Reads FOLDER/images/* with FOLDER/masks/NAME.png (255 foreground, else not).

    Raises:
      InputError: there is no image, or an image without a mask.
    """
    images, foreground = [], []
    paths = sorted(path for path in (folder / "images").glob("*") if path.is_file())
    if not paths:
        raise InputError(f"no image in {folder / 'images'}: --source wants images/ and masks/")
    for path in paths[: limit or None]:
        mask_path = folder / "masks" / f"{path.stem}.png"
        try:
            with Image.open(path) as image, Image.open(mask_path) as mask:
                if image.size != mask.size:
                    raise InputError(f"{mask_path} is not as large as {path}")
                images.append(square(image.convert("RGB"), size, Image.Resampling.BICUBIC))
                mask = square(mask.convert("L"), size, Image.Resampling.NEAREST)
                foreground.append(mask == 255)
        except OSError as error:
            raise InputError(f"cannot read {path} and its mask {mask_path}: {error}") from error
    return Images(np.stack(images), np.stack(foreground), f"{folder.name} at {size} px")


def read_shapes(size: int, limit: int) -> Images:
    """The validation scenes of the embedded data set."""
    options = shapes.Options(size=size)
    scenes = [shapes.draw(options, "val", i) for i in range(min(limit or options.val, options.val))]
    return Images(
        np.stack([scene.image for scene in scenes]),
        np.stack([scene.mask == 255 for scene in scenes]),
        f"shapes at {size} px",
    )


# The measurement.


def embedder(kind: str, image_size: tuple[int, int], patch_size: int, key):
    """images (B, H, W, 3) uint8 -> features (B, N, D), jitted."""

    def normalise(images):
        return (images.astype(jnp.float32) / 255.0 - MEAN) / STD

    if kind == "pixels":
        return jax.jit(lambda images: patches.patchify(normalise(images), patch_size))
    if kind != "embedding":
        raise ValueError(f"no such features: {kind!r}")
    encoder = vit_module.ViT(
        SIZES["B"], image_size, patch_size, "fixed", start=vit_module.MAE_START
    )
    blank = jnp.zeros((1, *image_size, 3))
    params = jax.jit(lambda key: encoder.init(key, blank, method="embed"))(key)
    return jax.jit(lambda images: encoder.apply(params, normalise(images), method="embed"))


def measure(
    images: np.ndarray,
    objects: np.ndarray,
    owner: np.ndarray,
    patch_size: int,
    ratios: list[float],
    taus: list[float],
    seeds: int,
    kind: str,
    threshold_on: str,
    almost: float,
    batch: int = 50,
) -> dict:
    """Draws the masks and measures them.

    Returns:
      ratio -> (strategy -> (statistic -> (seeds, M) array)), a column an object; strategies are
      "random" and the taus.
    """
    total = objects.shape[1]
    strategies = {"random": 1.0} | {f"{tau:g}": tau for tau in taus}
    keeps = {ratio: int(total * (1 - ratio)) for ratio in ratios}
    results = {
        ratio: {
            name: {s: np.zeros((seeds, len(objects))) for s in STATISTICS} for name in strategies
        }
        for ratio in ratios
    }

    def draw(kernel, noise, tau, num_keep):
        return dpp.greedy_order(kernel, noise, num_keep, tau, threshold_on=threshold_on)

    draws = {
        ratio: jax.jit(
            jax.vmap(lambda kernel, noise, tau, k=k: draw(kernel, noise, tau, k), (0, 0, None))
        )
        for ratio, k in keeps.items()
    }
    kernels = jax.jit(jax.vmap(dpp.gaussian_kernel))
    for seed in range(seeds):
        init_key, noise_key = jax.random.split(jax.random.key(seed))
        embed = embedder(kind, images.shape[1:3], patch_size, init_key)
        noise = jax.random.uniform(noise_key, (len(images), total))
        for start in range(0, len(images), batch):
            rows = slice(start, min(start + batch, len(images)))
            mine = np.flatnonzero((owner >= rows.start) & (owner < rows.stop))
            place = owner[mine] - start
            features = embed(images[rows])
            kernel = kernels(features)
            wide = np.asarray(features, np.float64)
            for ratio, k in keeps.items():
                for name, tau in strategies.items():
                    order, picks = draws[ratio](kernel, noise[rows], jnp.float32(tau))
                    order = np.asarray(order)
                    visible = np.zeros(order.shape, bool)
                    np.put_along_axis(visible, order[:, :k], True, axis=1)
                    found = coverage_scores.coverage(visible[place], objects[mine], almost)
                    found["num_greedy"] = np.asarray(picks)[place]
                    found["log_det"] = coverage_scores.log_det(wide, order[:, :k])[place]
                    for statistic, values in found.items():
                        results[ratio][name][statistic][seed, mine] = values
    return results


def summarise(found: dict, objects, owner, num_keep: int, almost: float, chosen) -> list[dict]:
    """One dict a strategy, over the objects `chosen` ((M,) bool)."""
    owner = owner[chosen]
    exact = coverage_scores.exact_random(objects[chosen], num_keep, almost)
    rows = [
        {"strategy": "random, exact"}
        | {name: coverage_scores.mean_and_error(v, owner) for name, v in exact.items()}
    ]
    base = {name: values[:, chosen].mean(axis=0) for name, values in found["random"].items()}
    for strategy, statistics in found.items():
        row = {"strategy": strategy if strategy == "random" else f"DPP tau {strategy}"}
        for name, values in statistics.items():
            mean = values[:, chosen].mean(axis=0)
            finite = np.isfinite(mean) & np.isfinite(base[name])
            row[name] = coverage_scores.mean_and_error(mean[finite], owner[finite])
            if not finite.all():
                row["singular"] = int((~finite).sum())
            if strategy != "random":
                change = mean[finite] - base[name][finite]
                row[f"{name}_vs_random"] = coverage_scores.mean_and_error(change, owner[finite])
        row["num_greedy_max"] = int(statistics["num_greedy"][:, chosen].max())
        rows.append(row)
    return rows


COLUMNS = (
    ("none", "none, %", 100, 2),
    ("almost", "almost none, %", 100, 2),
    ("kept", "object kept, %", 100, 2),
    ("on_object", "on object, %", 100, 2),
    ("num_greedy", "DPP picks (most)", 1, 1),
    ("log_det", "log det", 1, 2),
)


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [["mask", *(title for _, title, _, _ in COLUMNS)]]
    for row in rows:
        cells = [row["strategy"]]
        for name, _, factor, digits in COLUMNS:
            if name not in row:
                cells.append("")
                continue
            mean, error = (factor * value for value in row[name])
            if name == "num_greedy":
                cells.append(f"{mean:.{digits}f} ({row['num_greedy_max']})")
            elif f"{name}_vs_random" in row:
                change, error = (factor * value for value in row[f"{name}_vs_random"])
                change = f"{change:+.{digits}f} ± {error:.{digits}f}"
                cells.append(f"{mean:.{digits}f} ({change})")
            elif row["strategy"] == "random":
                cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}")
            else:
                cells.append(f"{mean:.{digits}f}")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="shapes", help="shapes, or a folder (see above)")
    parser.add_argument("--size", type=int, help="pixels; default: 64 for shapes, else 224")
    parser.add_argument("--patch", type=int, help="pixels; default: 8 for shapes, else 16")
    parser.add_argument(
        "--pieces",
        action=argparse.BooleanOptionalAction,
        help="each connected piece of the foreground is an object; default: for shapes",
    )
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.75])
    parser.add_argument("--tau", type=float, nargs="+", default=list(TAUS))
    parser.add_argument("--features", choices=("embedding", "pixels"), default="embedding")
    parser.add_argument("--threshold_on", choices=("d2", "d"), default="d2")
    parser.add_argument("--almost", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--limit", type=int, default=0, help="first images only; 0: all")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args(argv)
    for ratio in args.ratio:
        if not 0 < ratio < 1:
            raise InputError(f"--ratio must lie between 0 and 1, got {ratio:g}")
    is_shapes = args.source == "shapes"
    args.size = args.size or (64 if is_shapes else 224)
    args.patch = args.patch or (8 if is_shapes else 16)
    args.pieces = is_shapes if args.pieces is None else args.pieces
    return args


def groups_of(sizes: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (M,) bool} of objects by their sizes in patches, the first of them all."""
    groups = {"all": np.ones(len(sizes), bool)}
    smallest = sizes <= np.quantile(sizes, 0.1)
    thirds = coverage_scores.terciles(sizes)
    if smallest.sum() < thirds[0].sum():
        groups[f"smallest tenth (up to {sizes[smallest].max()} patches)"] = smallest
    for name, chosen in zip(("small", "medium", "large"), thirds, strict=True):
        if chosen.any():
            groups[f"{name} ({sizes[chosen].min()} to {sizes[chosen].max()} patches)"] = chosen
    return groups


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    try:
        total = math.prod(patches.grid_shape((args.size, args.size), args.patch))
    except ValueError as error:
        raise InputError(f"--size={args.size}, --patch={args.patch}: {error}") from error
    if args.source == "shapes":
        data = read_shapes(args.size, args.limit)
    else:
        data = read_folder(Path(args.source), args.size, args.limit)
    filled = data.foreground.any(axis=(1, 2))
    images, foreground = data.images[filled], data.foreground[filled]
    if not len(images):
        raise InputError(f"no image of {args.source} has any foreground")
    owner = np.arange(len(images))
    if args.pieces:
        foreground, owner = coverage_scores.pieces(foreground)
    objects = coverage_scores.object_patches(foreground, args.patch)
    sizes = objects.sum(axis=1)
    found = measure(
        images,
        objects,
        owner,
        args.patch,
        args.ratio,
        args.tau,
        args.seeds,
        args.features,
        args.threshold_on,
        args.almost,
    )
    print(
        f"{data.name}: {len(images)} images ({(~filled).sum()} without foreground left out), "
        f"{len(objects)} objects, {total} patches of {args.patch} px, {args.features}, "
        f"{args.seeds} seeds; patches an object: {sizes.mean():.1f} on average, {sizes.min()} to "
        f"{sizes.max()}"
    )
    report = {
        "source": data.name,
        "images": len(images),
        "without_foreground": int((~filled).sum()),
        "objects": len(objects),
        "in_pieces": args.pieces,
        "patch_size": args.patch,
        "patches": total,
        "features": args.features,
        "threshold_on": args.threshold_on,
        "almost": args.almost,
        "seeds": args.seeds,
        "results": results_of(found, objects, owner, total, args.almost),
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def results_of(found, objects, owner, total: int, almost: float) -> list[dict]:
    """Prints and returns the rows of each ratio and group of objects; `found` as of `measure`."""
    results = []
    groups = groups_of(objects.sum(axis=1))
    for ratio, strategies in found.items():
        num_keep = int(total * (1 - ratio))
        for name, chosen in groups.items():
            rows = summarise(strategies, objects, owner, num_keep, almost, chosen)
            print(f"\nratio {ratio:g}, {num_keep} visible, objects: {name}, {chosen.sum()}")
            print(table(rows))
            results.append(
                {
                    "ratio": ratio,
                    "visible": num_keep,
                    "group": name,
                    "objects": int(chosen.sum()),
                    "rows": rows,
                }
            )
    return results


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        command.fail(error)
