"""Writes the figures of a training run.

    python -m dppmask_jax.figures --workdir=RUN [--compare OTHER_RUN ...] [--images PATH ...]

does it for a finished or an imported run, and without --workdir for masks alone, see `untrained`.
All masks of an image are drawn from the same noise, so random and DPP
mask differ only by what the determinantal point process did.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from dppmask_jax import command, dpp, fields, masking, patches
from dppmask_jax.data.images import crops, decode, greys
from dppmask_jax.data.images.decode import DecodeError
from dppmask_jax.errors import InputError
from dppmask_jax.figures import drawing, untrained
from dppmask_jax.figures.untrained import TAUS
from dppmask_jax.methods.ibot_masks import RECIPE_SHARE, SHOWN_SHARE
from dppmask_jax.runs import comparable, history, metrics
from dppmask_jax.runs.run import checked_image_size, load_run

# With a run.


def write_run_figures(
    out_dir: str | Path,
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    borrow_statistics: bool = False,
) -> list[Path]:
    """Draws what a run's method can show: masks.png, tau.png, attention.png.

    Args:
      out_dir: folder for the figures; made where it is missing.
      run: a `run.Run`.
      images: (R, H, W, 3) uint8 of the run's image size.
      seed: of the masks; each image gets its own noise, the same in all figures.
      borrow_statistics: see `run.Run.reconstruct`.

    Returns:
      The paths of the figures, in this order.
    """
    paths = [
        write_mask_figure(out_dir, run, images, seed, borrow_statistics=borrow_statistics),
        write_tau_figure(out_dir, run, images, seed),
    ]
    if run.has_attention:
        paths.append(write_attention_figure(out_dir, run, images, seed))
    return paths


def write_mask_figure(
    out_dir: str | Path,
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    tau: float | None = None,
    borrow_statistics: bool = False,
    name: str = "masks.png",
) -> Path:
    """Draws masks.png: random and DPP masks of some images and, where the run was trained with
    others, those; then what the run makes of each, if it reconstructs.

    All hide as many patches as the run's own masks do, see `hidden_by`.

    Args:
      out_dir, run, images, seed, borrow_statistics: see `write_run_figures`.
      tau: of the DPP masks; None is the run's.
      name: of the file.

    Returns:
      The path of the figure.
    """

    def rebuild(order):
        if not run.can_reconstruct:
            return None
        pixels = run.reconstruct(images, order, borrow_statistics=borrow_statistics)
        pixels = np.nan_to_num(np.asarray(pixels, np.float32))
        return np.round(np.clip(pixels, 0.0, 1.0) * 255).astype(np.uint8)

    own = run.config.mask.strategy
    of_run = tau_of(run)
    tau = of_run if tau is None else tau
    num_hidden = hidden_by(run, own)
    (random_order, random_mask, _), (dpp_order, dpp_mask, greedy) = _masks_at(
        (1.0, tau), run, images, seed, num_hidden
    )

    def shown(kind, title, is_own, order, mask, captions):
        return drawing.Shown(kind, title + "\n(this run)" * is_own, mask, captions, rebuild(order))

    count = random_mask.shape[1] - num_hidden
    columns = [
        shown("random", "Random mask", own == "random", random_order, random_mask,
              [f"{count} random"] * len(images)),
        shown("DPP", f"DPP mask, τ = {tau:g}", own == "dpp" and tau == of_run, dpp_order, dpp_mask,
              [drawing.pick_caption(int(picks), count) for picks in greedy.sum(axis=1)]),
    ]  # fmt: skip
    if own not in ("random", "dpp"):
        order, mask = _own_masks(run, images, seed, num_hidden)
        captions = [f"{visible} visible" for visible in (~mask).sum(axis=1)]
        columns.append(shown(own, _title(run), True, order, mask, captions))
    note = _hidden_note(num_hidden, random_mask.shape[1])
    if words := brightness(run, borrow_statistics):
        note = f"{note}; {words}"
    figure = drawing.draw_masks(images, columns, run.config.model.patch_size, note)
    return drawing.save(figure, out_dir, name)


def brightness(run, borrow_statistics: bool) -> str:
    """Where a reconstruction has the brightness of hidden patches from, in words; "" where the run
    predicts none, or the pixels as they are."""
    if not run.can_reconstruct or not run.config.loss.norm_pix:
        return ""
    how = (
        "borrowed from the original"
        if borrow_statistics
        else "means over the visible ones, weighted by 1 / distance⁴"
    )
    return f"their brightness and contrast are {how}"


def write_tau_figure(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> Path:
    """Draws tau.png: the DPP masks of some images at each of TAUS.

    Args:
      out_dir, run, images, seed: see `write_run_figures`.

    Returns:
      The path of tau.png.
    """
    num_hidden = hidden_by(run, run.config.mask.strategy)
    drawn = dict(zip(TAUS, _masks_at(TAUS, run, images, seed, num_hidden), strict=True))
    masks = {tau: mask for tau, (_, mask, _) in drawn.items()}
    figure = drawing.draw_tau(
        images,
        masks,
        {tau: greedy for tau, (_, _, greedy) in drawn.items()},
        run.config.model.patch_size,
        _hidden_note(num_hidden, masks[1.0].shape[1]),
    )
    return drawing.save(figure, out_dir, "tau.png")


def write_attention_figure(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> Path:
    """Draws attention.png: where the teacher's class token looks, and masks of every strategy.

    Each strategy hides as much as its recipe says, see `hidden_by`; AttMask's hint shows some of
    that, half of the patches that its hints may come from. Its weights are the mean over heads.

    Args:
      out_dir, run, images, seed: see `write_run_figures`; the run's method has attention.

    Returns:
      The path of attention.png.
    """
    kinds = {
        "Random": ("random", ""),
        "Block": ("block", ""),
        **{f"AttMask\n({variant})": ("attention", variant) for variant in ("high", "low", "hint")},
        f"DPP\n(τ = {tau_of(run):g})": ("dpp", ""),
    }
    hidden = {name: hidden_by(run, strategy) for name, (strategy, _) in kinds.items()}
    drawers = [
        _drawer(run, strategy, hidden[name], variant) for name, (strategy, variant) in kinds.items()
    ]

    @jax.jit
    @jax.vmap
    def draw(*inputs):
        return [drawer(*inputs).mask for drawer in drawers]

    attention = run.attention(images)
    masks = draw(_keys(seed, images), run.features(images), attention.mean(axis=1))
    figure = drawing.draw_attention(
        images,
        np.asarray(attention),
        {
            f"{name}\n{np.mean(mask):.0%}": np.asarray(mask)
            for name, mask in zip(kinds, masks, strict=True)
        },
        run.config.model.patch_size,
        "percentages above masks: the share that is hidden",
    )
    return drawing.save(figure, out_dir, "attention.png")


def tau_of(run) -> float:
    """The purge ratio that the run ends with."""
    mask = run.config.mask
    return mask.tau if mask.tau_end is None else mask.tau_end


def hidden_by(run, strategy: str) -> int:
    """How many patches of an image figures hide with a strategy: as many as the run's own masks
    do or, where every strategy of the method has its own share, as its recipe does. Of shares that
    are drawn, the middle of the largest."""
    ratio = run.config.mask.ratio
    if not isinstance(ratio, Sequence):
        return run.num_masked[1]
    share = max(ratio) if strategy == run.config.mask.strategy else RECIPE_SHARE[strategy]
    return max(1, int(masking.num_masked(_num_patches(run), share)))


def _drawer(run, strategy: str, num_hidden: int, variant: str = ""):
    """(key, features (N, D), attention (N,) of an image) -> its Mask by a strategy."""
    num_patches = _num_patches(run)
    num_keep = num_patches - num_hidden
    num_top = int(num_patches * SHOWN_SHARE)
    if strategy == "random":
        return lambda key, features, weights: masking.random(key, num_patches, num_keep)
    if strategy == "block":
        return lambda key, features, weights: masking.block(key, _grid(run), num_keep)
    if strategy == "attention":
        return lambda key, features, weights: masking.attention(
            key,
            weights,
            num_hidden,
            variant=variant,
            num_shown=(min(num_top, num_hidden) + 1) // 2,
            num_top=num_top,
        )
    if strategy == "dpp":
        return lambda key, features, weights: masking.dpp(
            key, features, num_keep, tau_of(run), **run.selection_settings
        )[0]
    raise InputError(f"config.mask.strategy={strategy!r}: no figure shows such masks")


def _own_masks(run, images, seed: int, num_hidden: int):
    """(order, mask), both (R, N), by the strategy of a run that is neither random nor dpp."""
    strategy = run.config.mask.strategy
    attends = strategy == "attention"
    weights = run.attention(images).mean(axis=1) if attends else np.zeros((len(images), 1))
    drawer = _drawer(run, strategy, num_hidden, run.config.mask.get("attention", ""))
    features = np.zeros((len(images), 1))  # neither looks at them
    mask = jax.jit(jax.vmap(drawer))(_keys(seed, images), features, weights)
    return np.asarray(mask.order), np.asarray(mask.mask)


def _title(run) -> str:
    """The run's own strategy in words."""
    mask = run.config.mask
    if mask.strategy == "attention":
        return f"AttMask ({mask.attention})"
    return f"{mask.strategy.title()} mask"


def _hidden_note(num_hidden: int, num_patches: int) -> str:
    return f"{num_hidden} of {num_patches} patches are hidden"


def _grid(run) -> tuple[int, int]:
    return patches.grid_shape(run.image_size, run.config.model.patch_size)


def _num_patches(run) -> int:
    rows, columns = _grid(run)
    return rows * columns


def _keys(seed: int, images):
    return jax.random.split(jax.random.key(seed), len(images))


def _masks_at(taus: Sequence[float], run, images, seed: int, num_hidden: int) -> list[tuple]:
    """For each tau (order (R, N) int32, mask (R, N) bool, greedy picks (R, N) bool)."""
    tokens = run.features(images)
    num_keep = tokens.shape[1] - num_hidden
    drawn = []
    for tau in taus:
        order, num_greedy = jax.device_get(
            _select(
                _keys(seed, images),
                tokens,
                np.float32(tau),
                num_keep=num_keep,
                **run.selection_settings,
            )
        )
        mask = np.ones(order.shape, bool)
        np.put_along_axis(mask, order[:, :num_keep], False, axis=1)
        greedy = np.zeros(order.shape, bool)
        picked = np.arange(order.shape[1]) < num_greedy[:, None]
        np.put_along_axis(greedy, order, picked, axis=1)
        drawn.append((order, mask, greedy))
    return drawn


@functools.partial(
    jax.jit, static_argnames=("num_keep", "kernel", "bandwidth", "normalize", "threshold_on")
)  # here, so that two figures compile it once
def _select(keys, tokens, tau, **settings):
    return jax.vmap(lambda key, image: dpp.select(key, image, tau=tau, **settings))(keys, tokens)


def _read_metrics(path: str | Path) -> list[dict]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no {path}; name the workdir of a training run")
    try:
        records = metrics.read_metrics(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} is damaged: a line is not a JSON object")
    return records


def _past(metrics_path: str | Path) -> str:
    """What was changed in the run of a metrics.jsonl, in words."""
    try:
        kept = json.loads((Path(metrics_path).parent / "config.json").read_text())
        return history.describe(kept.get("history", ()))
    except FileNotFoundError:
        return ""
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"the config.json beside {metrics_path} is damaged: {error}") from error


def write_curves(
    out_dir: str | Path,
    metrics_path: str | Path | Mapping[str, str | Path],
    note: str = "",
) -> Path:
    """Draws curves.png from a metrics.jsonl, or from several given as label -> path.

    Args:
      note: stands below the curves, with what the histories of the runs tell.

    Returns:
      The path of curves.png.

    Raises:
      InputError: a file is missing or damaged, or holds nothing to draw.
    """
    if isinstance(metrics_path, Mapping):
        records = {label: _read_metrics(path) for label, path in metrics_path.items()}
        where = ", ".join(str(path) for path in metrics_path.values())
        pasts = [
            f"{label}: {past}" for label, path in metrics_path.items() if (past := _past(path))
        ]
    else:
        records, where = _read_metrics(metrics_path), metrics_path
        pasts = [_past(metrics_path)]
    try:
        figure = drawing.draw_curves(records, "\n".join(filter(None, [note, *pasts])))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return drawing.save(figure, out_dir, "curves.png")


def write_sweep_figure(
    out_dir: str | Path,
    lines: Mapping[str, Sequence[tuple[object, float, float | None]]],
    x_label: str,
    y_label: str,
    baselines: Mapping[str, Sequence[tuple[object, float]]] | None = None,
    note: str = "",
    in_percent: bool = True,
) -> Path:
    """Draws sweep.png, see `drawing.draw_sweep`.

    Returns:
      The path of sweep.png.
    """
    figure = drawing.draw_sweep(lines, x_label, y_label, baselines, note, in_percent)
    return drawing.save(figure, out_dir, "sweep.png")


# The command.


def read_images(
    paths: Sequence[str | Path],
    image_size: tuple[int, int],
    num: int,
    grey_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """The first images of files and folders, cropped as for evaluation.

    Files of a folder, at any depth, come in the order of their names; those that are no image are
    passed over. In greyscale of more than 8 bits `grey_range` is (black, white); None decides by
    all of these images.

    Returns:
      (at most `num`, H, W, 3) uint8.

    Raises:
      InputError: a path is missing, a file named is no image, or there is no image at all.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"--images: there is no file or folder {path}")
        for file in files:
            if len(found) == num:
                break
            try:
                data = file.read_bytes()
                decode.decode(data)
                found.append(data)
            except DecodeError as error:
                if file == path:
                    raise InputError(f"--images: {file} is no readable image: {error}") from error
            except OSError as error:
                raise InputError(f"--images: cannot read {file}: {error.strerror}") from error
    if not found:
        raise InputError(f"--images: no readable image in {', '.join(map(str, paths))}")
    if grey_range is None:
        of_all, _ = decode.grey_range_of(found)
    else:
        of_all = greys.Range(grey_range, grey_range)
    narrowed = (decode.narrowed(data, of_all) for data in found)
    return np.stack([crops.center_crop(data, image_size=image_size) for data in narrowed])


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the figures of a run, or masks alone; see the module's docstring."""
    args = _arguments(argv)
    paths = _of_run(args) if args.workdir else _of_images(args)
    for path in paths:
        print(path)


def _arguments(argv):
    parser = command.ArgumentParser(
        prog="python -m dppmask_jax.figures",
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
    parser.add_argument("--patch_size", type=int, help="without --workdir; default: 16")
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
    parser.add_argument("--out", help="folder for the figures; default: WORKDIR/figures")
    args = parser.parse_args(argv)
    if args.num < 1:
        raise InputError(f"--num must be at least 1, got {args.num}")
    if not 0 <= args.seed < 2**31:
        raise InputError(f"--seed must be in 0..2**31 - 1, got {args.seed}")
    if args.patch_size is not None and args.patch_size < 1:
        raise InputError(f"--patch_size must be at least 1, got {args.patch_size}")
    of_run = ("compare", "borrow_statistics")
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


def _of_run(args) -> list[Path]:
    """Draws what a run can show, and its curves."""
    workdir = Path(args.workdir)
    out_dir = Path(args.out) if args.out else workdir / "figures"
    run = load_run(workdir, image_size=args.image_size)
    if run.resized:
        print(run.resized)
    if not run.has_masks:
        raise InputError(
            f"--workdir={workdir} is {run.name} run, which masks nothing: name another"
        )
    if args.images:
        grey_range = fields.grey_range(run.config.data.range)
        images = read_images(args.images, run.image_size, args.num, grey_range)
    else:
        try:
            images = run.example_images(args.num)
        except InputError as error:
            raise InputError(f"the run's own images: {error}; or name others: --images") from error
    curves = _write_curves_of([workdir, *map(Path, args.compare)], out_dir)
    paths = write_run_figures(
        out_dir, run, images, args.seed, borrow_statistics=args.borrow_statistics
    )
    return [*paths, *curves]


def _write_curves_of(runs: list[Path], out_dir: Path) -> list[Path]:
    """[curves.png] of some runs; [] for a single one that was not trained here, which is said."""
    if len(runs) == 1:
        if not (runs[0] / "metrics.jsonl").exists():
            print(f"no curves: {runs[0]} has no metrics.jsonl, it was not trained here")
            return []
        return [write_curves(out_dir, runs[0] / "metrics.jsonl")]
    labels = run_labels(runs)
    files = {label: folder / "metrics.jsonl" for label, folder in zip(labels, runs, strict=True)}
    warnings = comparison_warnings(runs)
    curves = write_curves(out_dir, files, "\n".join(warnings))
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return [curves]


def comparison_warnings(runs: Sequence[Path]) -> list[str]:
    """What to know before comparing the curves of some runs, see `comparable.warnings`."""
    found = [run / "config.json" for run in runs]
    lines = [f"not known whether {path.parent} can be compared: it has no {path.name}"
             for path in found if not path.is_file()]  # fmt: skip
    configs = []
    for path in filter(Path.is_file, found):
        try:
            configs.append(dict(json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
    return lines + comparable.warnings(configs)


def run_labels(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; equal paths are numbered."""
    parts = [run.absolute().parts[1:] for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{run.name} ({number})" for number, run in enumerate(runs, 1)]
