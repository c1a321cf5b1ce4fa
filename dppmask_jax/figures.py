"""Writes the figures of a training run.

    python -m dppmask_jax.figures --workdir=RUN [--compare OTHER_RUN ...] [--images PATH ...]

does it for a finished run. All masks of an image are drawn from the same noise, so random and DPP
mask differ only by what the determinantal point process did.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from dppmask_jax import command, dpp, drawing, masking, metrics, patches, pretrained
from dppmask_jax.data import crops
from dppmask_jax.data.decode import DecodeError
from dppmask_jax.errors import InputError
from dppmask_jax.methods.ibot_masks import SHOWN_SHARE

TAUS = (0.0, 0.6, 0.8, 0.9, 1.0)


# With a run.


def write_run_figures(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> list[Path]:
    """Draws what a run's method can show: masks.png, tau.png, attention.png.

    Args:
      out_dir: folder for the figures; made where it is missing.
      run: a `pretrained.Run`.
      images: (R, H, W, 3) uint8 of the run's image size.
      seed: of the masks; each image gets its own noise, the same in all figures.

    Returns:
      The paths of the figures, in this order.
    """
    paths = []
    if run.can_reconstruct:
        paths.append(write_mask_figure(out_dir, run, images, seed))
    paths.append(write_tau_figure(out_dir, run, images, seed))
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
    name: str = "masks.png",
) -> Path:
    """Draws masks.png: random and DPP masks of some images, and what the run makes of either.

    Args:
      out_dir, run, images, seed: see `write_run_figures`; the run's method reconstructs.
      tau: of the DPP masks; None is the run's.
      name: of the file.

    Returns:
      The path of the figure.
    """

    def rebuild(order):
        pixels = np.asarray(run.reconstruct(images, order), np.float32)
        return np.round(np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255).astype(np.uint8)

    tau = _tau(run) if tau is None else tau
    (random_order, random_mask, _), (dpp_order, dpp_mask, greedy) = _masks_at(
        (1.0, tau), run, images, seed
    )
    figure = drawing.draw_masks(
        images,
        random_mask,
        dpp_mask,
        rebuild(random_order),
        rebuild(dpp_order),
        run.config.model.patch_size,
        greedy.sum(axis=1),
        tau,
    )
    return _save(figure, out_dir, name)


def write_tau_figure(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> Path:
    """Draws tau.png: the masks of some images at each of TAUS.

    Args:
      out_dir, run, images, seed: see `write_run_figures`.

    Returns:
      The path of tau.png.
    """
    drawn = dict(zip(TAUS, _masks_at(TAUS, run, images, seed), strict=True))
    figure = drawing.draw_tau(
        images,
        {tau: mask for tau, (_, mask, _) in drawn.items()},
        {tau: greedy for tau, (_, _, greedy) in drawn.items()},
        run.config.model.patch_size,
    )
    return _save(figure, out_dir, "tau.png")


def write_attention_figure(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> Path:
    """Draws attention.png: where the teacher's class token looks, and masks of every strategy.

    All strategies mask as many patches as the run masks at most; AttMask's hint then shows half of
    the patches that its hints may come from. Its weights are the mean over heads.

    Args:
      out_dir, run, images, seed: see `write_run_figures`; the run's method has attention.

    Returns:
      The path of attention.png.
    """
    patch_size = run.config.model.patch_size
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    num_patches, most = grid[0] * grid[1], run.num_masked[1]
    num_keep = num_patches - most
    num_top = int(num_patches * SHOWN_SHARE)
    tau = _tau(run)

    def attend(variant):
        return lambda key, tokens, weights: masking.attention(
            key, weights, most, variant=variant, num_shown=(num_top + 1) // 2, num_top=num_top
        )

    strategies = {
        "Random": lambda key, tokens, weights: masking.random(key, num_patches, num_keep),
        "Block": lambda key, tokens, weights: masking.block(key, grid, num_keep),
        "AttMask\n(high)": attend("high"),
        "AttMask\n(low)": attend("low"),
        "AttMask\n(hint)": attend("hint"),
        f"DPP\n(τ = {tau:g})": lambda key, tokens, weights: masking.dpp(
            key, tokens, num_keep, tau, **run.selection_settings
        )[0],
    }

    @jax.jit
    @jax.vmap
    def draw(*inputs):
        return [strategy(*inputs).mask for strategy in strategies.values()]

    attention = run.attention(images)
    masks = draw(_keys(seed, images), run.features(images), attention.mean(axis=1))
    figure = drawing.draw_attention(
        images,
        np.asarray(attention),
        dict(zip(strategies, map(np.asarray, masks), strict=True)),
        patch_size,
    )
    return _save(figure, out_dir, "attention.png")


def _tau(run) -> float:
    """The purge ratio that the run ends with."""
    mask = run.config.mask
    return mask.tau if mask.tau_end is None else mask.tau_end


def _keys(seed: int, images):
    return jax.random.split(jax.random.key(seed), len(images))


def _masks_at(taus: Sequence[float], run, images, seed: int) -> list[tuple]:
    """For each tau (order (R, N) int32, mask (R, N) bool, greedy picks (R, N) bool)."""
    tokens = run.features(images)
    num_keep = tokens.shape[1] - run.num_masked[1]
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
    jax.jit, static_argnames=("num_keep", "kernel", "bandwidth", "threshold_on")
)  # here, so that two figures compile it once
def _select(keys, tokens, tau, **settings):
    return jax.vmap(lambda key, image: dpp.select(key, image, tau=tau, **settings))(keys, tokens)


def _save(figure, out_dir: str | Path, name: str) -> Path:
    path = Path(out_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


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


def write_curves(
    out_dir: str | Path,
    metrics_path: str | Path | Mapping[str, str | Path],
) -> Path:
    """Draws curves.png from a metrics.jsonl, or from several given as label -> path.

    Returns:
      The path of curves.png.

    Raises:
      InputError: a file is missing or damaged, or holds nothing to draw.
    """
    if isinstance(metrics_path, Mapping):
        records = {label: _read_metrics(path) for label, path in metrics_path.items()}
        where = ", ".join(str(path) for path in metrics_path.values())
    else:
        records, where = _read_metrics(metrics_path), metrics_path
    try:
        figure = drawing.draw_curves(records)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return _save(figure, out_dir, "curves.png")


def write_sweep_figure(
    out_dir: str | Path,
    lines: Mapping[str, Sequence[tuple[object, float, float | None]]],
    x_label: str,
    y_label: str,
) -> Path:
    """Draws sweep.png, see `drawing.draw_sweep`.

    Returns:
      The path of sweep.png.
    """
    return _save(drawing.draw_sweep(lines, x_label, y_label), out_dir, "sweep.png")


# The command.


def read_images(paths: Sequence[str | Path], image_size: tuple[int, int], num: int) -> np.ndarray:
    """The first images of files and folders, cropped as for evaluation.

    Files of a folder, at any depth, come in the order of their names; those that are no image are
    passed over.

    Returns:
      (at most `num`, H, W, 3) uint8.

    Raises:
      InputError: a path is missing, a file named is no image, or there is no image at all.
    """
    images = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"--images: there is no file or folder {path}")
        for file in files:
            if len(images) == num:
                break
            try:
                images.append(crops.center_crop(file.read_bytes(), image_size=image_size))
            except DecodeError as error:
                if file == path:
                    raise InputError(f"--images: {file} is no readable image: {error}") from error
            except OSError as error:
                raise InputError(f"--images: cannot read {file}: {error.strerror}") from error
    if not images:
        raise InputError(f"--images: no readable image in {', '.join(map(str, paths))}")
    return np.stack(images)


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the figures of a finished run; see the module's docstring."""
    parser = command.ArgumentParser(
        prog="python -m dppmask_jax.figures",
        description="Draws the figures and curves of a training run.",
    )
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="other runs, for curves.png"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="image files or folders; default: the run's own validation images",
    )
    parser.add_argument("--num", type=int, default=6, help="at most this many images")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--out", help="folder for the figures; default: WORKDIR/figures")
    args = parser.parse_args(argv)
    if args.num < 1:
        raise InputError(f"--num must be at least 1, got {args.num}")
    workdir = Path(args.workdir)
    out_dir = Path(args.out) if args.out else workdir / "figures"

    run = pretrained.load_run(workdir)
    if not run.has_masks:
        raise InputError(f"--workdir={workdir} is a {run.kind}, which masks nothing: name another")
    if args.images:
        images = read_images(args.images, tuple(run.config.image_size), args.num)
    else:
        images = run.example_images(args.num)
    runs = [workdir, *map(Path, args.compare)]
    if len(runs) == 1:
        curves = write_curves(out_dir, workdir / "metrics.jsonl")
    else:
        labels = run_labels(runs)
        files = {
            label: folder / "metrics.jsonl" for label, folder in zip(labels, runs, strict=True)
        }
        curves = write_curves(out_dir, files)
    paths = write_run_figures(out_dir, run, images, args.seed)
    for path in (*paths, curves):
        print(path)


def run_labels(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; equal paths are numbered."""
    parts = [run.absolute().parts[1:] for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{run.name} ({number})" for number, run in enumerate(runs, 1)]


if __name__ == "__main__":
    command.run_parsed(main)
