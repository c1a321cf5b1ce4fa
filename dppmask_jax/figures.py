"""Pictures of masks, reconstructions and training curves.

The `draw_*` functions are pure: NumPy arrays in, a `matplotlib.figure.Figure` out, nothing global
(no pyplot). `write_mask_figures` and `write_curves` compose them with a run, and

    python -m dppmask_jax.figures --workdir=RUN [--compare OTHER_RUN ...] [--images PATH ...]

does it for a finished run. Patches outlined in white are visible under both masks, in red under
the random mask alone, in blue under the DPP mask alone (the colours of DPPMask, arXiv 2303.12736,
figure 6). Both masks of an image are drawn from the same noise, so they differ only by what the
determinantal point process did.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dppmask_jax import command, dpp, metrics, patches, pretrained
from dppmask_jax.data import crops
from dppmask_jax.data.decode import DecodeError
from dppmask_jax.errors import InputError
from dppmask_jax.masking import num_visible

BOTH = (255, 255, 255)
RANDOM_ONLY = (255, 66, 54)
DPP_ONLY = (72, 150, 255)
GREEDY = (255, 176, 32)
FILL = (225, 225, 225)
TAUS = (0.0, 0.6, 0.8, 0.9, 1.0)

_DPI = 150
_PANEL = 360  # pixels, about: small images are enlarged by a whole factor to come near it
_README = 900  # text is sized to be read when the picture is shown this many pixels wide
_INK = "#222222"
_FAINT = "#666666"
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d1f", "#56b4e9")


# Panels: uint8 pixels, so that outlines fall exactly on the borders of patches.


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """(H, W, 3) -> (H * scale, W * scale, 3), every pixel repeated."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def panel_scale(width: int) -> int:
    """The whole factor by which an image `width` pixels wide is enlarged."""
    return max(1, round(_PANEL / width))


def outline_width(side: int) -> int:
    """Width in pixels of the outline of a patch that is `side` pixels wide on the panel."""
    return max(1, min(side // 4, max(2, round(side / 10))))


def mask_panel(
    image: np.ndarray,
    mask: np.ndarray,
    patch_size: int,
    outlines: Sequence[tuple[tuple[int, int, int], np.ndarray]] = (),
    scale: int = 1,
) -> np.ndarray:
    """An image whose masked patches are grey and dim and whose chosen patches are outlined.

    Args:
      image: (H, W, 3) uint8.
      mask: (N,) bool, True = masked.
      patch_size: side of a patch in pixels of `image`.
      outlines: pairs of a colour and the (N,) bool patches it outlines, inside their border.
      scale: whole factor of enlargement.

    Returns:
      (H * scale, W * scale, 3) uint8.

    Raises:
      ValueError: the patch size does not divide the image, or a mask has another length than N.
    """
    rows, columns = patches.grid_shape(image.shape[:2], patch_size)
    for flags in (mask, *(chosen for _, chosen in outlines)):
        if np.shape(flags) != (rows * columns,):
            raise ValueError(
                f"a mask of shape {np.shape(flags)} does not fit the {rows}x{columns} patches of "
                f"an image of {image.shape[0]}x{image.shape[1]}"
            )
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    dim = np.repeat((34.0 + 0.2 * grey).astype(np.uint8)[..., None], 3, axis=2)
    hidden = np.asarray(mask, bool).reshape(rows, columns)
    hidden = hidden.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    panel = enlarge(np.where(hidden[..., None], dim, image), scale)
    side = patch_size * scale
    line = outline_width(side)
    for color, chosen in outlines:
        for index in np.flatnonzero(chosen):
            row, column = divmod(int(index), columns)
            box = panel[row * side : (row + 1) * side, column * side : (column + 1) * side]
            box[:line], box[-line:], box[:, :line], box[:, -line:] = color, color, color, color
    return panel


def _compose(
    panels: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
    legend: Sequence[tuple[tuple[int, int, int], str]],
) -> Figure:
    """A table of equally large panels with titles above, captions below and a legend.

    The whole table is one picture over the whole figure: at the figure's own resolution each
    pixel of a panel is one pixel of the file.
    """
    height, width = panels[0][0].shape[:2]
    gap = max(4, round(0.045 * width))
    total_width = len(titles) * width + (len(titles) + 1) * gap
    unit = total_width / _README
    top = round((10 + 17 * max(title.count("\n") + 1 for title in titles)) * unit)
    below = round(17 * unit) if captions else 0
    pitch = height + below + gap
    bottom = round(30 * unit) if legend else 0
    total_height = top + len(panels) * pitch + bottom

    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    lefts = [gap + column * (width + gap) for column in range(len(titles))]
    tops = [top + row * pitch for row in range(len(panels))]
    for y, row in zip(tops, panels, strict=True):
        for x, panel in zip(lefts, row, strict=True):
            canvas[y : y + height, x : x + width] = panel

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(
        canvas,
        interpolation="nearest",
        aspect="auto",
        extent=(0, total_width, total_height, 0),
    )
    axes.set_axis_off()
    points = unit * 72 / _DPI

    def write(x, y, text, size, color=_INK, **kwargs):
        return axes.text(
            x, y, text, fontsize=size * points, color=color, linespacing=1.15, **kwargs
        )

    for x, title in zip(lefts, titles, strict=True):
        write(x + width / 2, top - 7 * unit, title, 13, ha="center", va="bottom")
    if captions:
        for y, row in zip(tops, captions, strict=True):
            for x, caption in zip(lefts, row, strict=True):
                y_text = y + height + 4 * unit
                write(x + width / 2, y_text, caption, 11, _FAINT, ha="center", va="top")
    if legend:
        swatch, line = 15 * unit, 2.5 * unit
        y = total_height - bottom / 2 - 4 * unit
        texts = [write(0, y, text, 12, va="center_baseline") for _, text in legend]
        renderer = figure.canvas.get_renderer()
        lengths = [text.get_window_extent(renderer).width for text in texts]
        step = swatch + (6 + 26) * unit
        x = (total_width - sum(lengths) - step * len(legend) + 26 * unit) / 2
        for (color, _), text, length in zip(legend, texts, lengths, strict=True):
            for inset, face in (
                (0, "#3c3c3c"),
                (line, np.array(color) / 255),
                (2 * line, "#3c3c3c"),
            ):
                side = swatch - 2 * inset
                axes.add_patch(
                    Rectangle((x + inset, y - swatch / 2 + inset), side, side, facecolor=face)
                )
            text.set_x(x + swatch + 6 * unit)
            x += length + step
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    return figure


def _check_rows(rows: int, **arrays) -> None:
    if rows == 0:
        raise ValueError("there is no image to draw")
    for name, array in arrays.items():
        if len(array) != rows:
            raise ValueError(f"{name} has {len(array)} rows for {rows} images")


def draw_masks(
    images: np.ndarray,
    random_mask: np.ndarray,
    dpp_mask: np.ndarray,
    random_reconstruction: np.ndarray,
    dpp_reconstruction: np.ndarray,
    patch_size: int,
    num_greedy: np.ndarray | None = None,
    tau: float | None = None,
) -> Figure:
    """One row an image: original, random mask, DPP mask, reconstruction from either.

    Args:
      images: (R, H, W, 3) uint8.
      random_mask: (R, N) bool, True = masked.
      dpp_mask: the same for the DPP mask.
      random_reconstruction: (R, H, W, 3) uint8.
      dpp_reconstruction: (R, H, W, 3) uint8.
      patch_size: side of a patch in pixels.
      num_greedy: (R,) number of patches that the DPP picked, for the captions; or None.
      tau: the purge ratio of the DPP mask, for its title; or None.

    Returns:
      A figure, to be saved at its own resolution (`figure.savefig(path)`).

    Raises:
      ValueError: the arrays do not fit one another.

    Reference: DPPMask (arXiv 2303.12736), figure 6.
    """
    _check_rows(
        len(images),
        random_mask=random_mask,
        dpp_mask=dpp_mask,
        random_reconstruction=random_reconstruction,
        dpp_reconstruction=dpp_reconstruction,
    )
    scale = panel_scale(images.shape[2])
    panels, captions = [], []
    for row, image in enumerate(images):
        in_random = ~np.asarray(random_mask[row], bool)
        in_dpp = ~np.asarray(dpp_mask[row], bool)
        both = (BOTH, in_random & in_dpp)
        panels.append(
            [
                enlarge(image, scale),
                mask_panel(
                    image,
                    ~in_random,
                    patch_size,
                    [both, (RANDOM_ONLY, in_random & ~in_dpp)],
                    scale,
                ),
                mask_panel(
                    image, ~in_dpp, patch_size, [both, (DPP_ONLY, in_dpp & ~in_random)], scale
                ),
                enlarge(random_reconstruction[row], scale),
                enlarge(dpp_reconstruction[row], scale),
            ]
        )
        if num_greedy is not None:
            captions.append(
                [
                    "",
                    f"{in_random.sum()} random",
                    _pick_caption(int(num_greedy[row]), int(in_dpp.sum())),
                    "",
                    "",
                ]
            )
    titles = [
        "Original",
        "Random mask",
        "DPP mask" if tau is None else f"DPP mask, τ = {tau:g}",
        "Reconstruction\nfrom random",
        "Reconstruction\nfrom DPP",
    ]
    legend = [
        (BOTH, "visible in both"),
        (RANDOM_ONLY, "random only"),
        (DPP_ONLY, "DPP only"),
    ]
    return _compose(panels, titles, captions or None, legend)


def _pick_caption(num_greedy: int, num_visible: int) -> str:
    return f"{num_greedy} DPP + {num_visible - num_greedy} random"


def draw_tau(
    images: np.ndarray,
    masks_by_tau: Mapping[float, np.ndarray],
    greedy_by_tau: Mapping[float, np.ndarray],
    patch_size: int,
) -> Figure:
    """One row an image: the original, then the mask at each tau.

    Args:
      images: (R, H, W, 3) uint8.
      masks_by_tau: tau -> (R, N) bool, True = masked.
      greedy_by_tau: tau -> (R, N) bool, True = picked by the DPP (not by the random fill).
      patch_size: side of a patch in pixels.

    Returns:
      A figure, to be saved at its own resolution.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    taus = sorted(masks_by_tau)
    for tau in taus:
        _check_rows(len(images), masks=masks_by_tau[tau], greedy=greedy_by_tau[tau])
    scale = panel_scale(images.shape[2])
    panels, captions = [], []
    for row, image in enumerate(images):
        panel_row, caption_row = [enlarge(image, scale)], [""]
        for tau in taus:
            visible = ~np.asarray(masks_by_tau[tau][row], bool)
            greedy = np.asarray(greedy_by_tau[tau][row], bool)
            outlines = [(FILL, visible & ~greedy), (GREEDY, visible & greedy)]
            panel_row.append(mask_panel(image, ~visible, patch_size, outlines, scale))
            caption_row.append(_pick_caption(int(greedy.sum()), int(visible.sum())))
        panels.append(panel_row)
        captions.append(caption_row)
    words = {0.0: "τ = 0 (DPP)", 1.0: "τ = 1 (random)"}
    titles = ["Original"] + [words.get(float(tau), f"τ = {tau:g}") for tau in taus]
    legend = [(GREEDY, "picked by the DPP"), (FILL, "random fill")]
    return _compose(panels, titles, captions, legend)


# Curves.

KNN, PICKS = "k-NN accuracy", "Patches picked by the DPP, per image"


def _series(records: Sequence[Mapping], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [
        (record["step"], record[name])
        for record in records
        if "step" in record and record.get(name) is not None
    ]
    points = [point for point in points if math.isfinite(point[1])]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Running mean over `reach` values to either side.

    Near the start the window shrinks on both sides, so that a steep start keeps its height; at
    the end it only loses what lies beyond, so that the last value is not a single noisy one.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(index, reach)
    right = np.minimum(left, len(values) - 1 - index)
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def draw_curves(records: Sequence[Mapping] | Mapping[str, Sequence[Mapping]]) -> Figure:
    """Loss, k-NN accuracy and number of DPP picks against the step.

    Args:
      records: the parsed lines of a run's metrics.jsonl; or label -> lines, to overlay runs.

    Returns:
      A figure with one panel for each quantity that any run logged.

    Raises:
      ValueError: nothing that can be drawn was logged.
    """
    runs = records if isinstance(records, Mapping) else {"": records}
    panels = [
        ("Loss", (("loss", "train"), ("val_loss", "validation"))),
        (KNN, (("knn", ""),)),
        (PICKS, (("num_greedy", ""),)),
    ]
    panels = [
        (title, names)
        for title, names in panels
        if any(len(_series(run, name)[0]) for run in runs.values() for name, _ in names)
    ]
    if not panels:
        raise ValueError("no loss, k-NN accuracy or number of picks was logged: nothing to draw")
    figure = Figure(figsize=(3.6 * len(panels) + 0.4, 3.1), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, (title, names) in zip(all_axes, panels, strict=True):
        labelled = False
        for number, (label, run) in enumerate(runs.items()):
            color = _LINES[number % len(_LINES)]
            for name, what in names:
                steps, values = _series(run, name)
                if not len(steps):
                    continue
                words = ", ".join(part for part in (label, what) if part)
                labelled = labelled or bool(words)
                sparse = len(steps) < 30
                dashed = name == "val_loss"
                shown = values
                if len(values) >= 60 and name != "val_loss":
                    axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
                    shown = _smooth(values, len(values) // 40)
                axes.plot(
                    steps,
                    shown,
                    color=color,
                    linestyle="--" if dashed else "-",
                    marker="o" if (sparse and name != "loss") or len(steps) == 1 else None,
                    markersize=3.5,
                    linewidth=1.6,
                    label=words or None,
                )
        axes.set_title(title, fontsize=11, color=_INK)
        axes.set_xlabel("step", fontsize=10, color=_INK)
        axes.tick_params(labelsize=9, colors=_FAINT, labelcolor=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.set_axisbelow(True)
        if title == KNN:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif title == PICKS:
            axes.set_ylim(0, 1.12 * axes.dataLim.ymax or 1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color("#aaaaaa")
        if labelled:
            axes.legend(fontsize=9, frameon=False)
    return figure


# Composition with a run.


def write_mask_figures(
    out_dir: str | Path,
    images: np.ndarray,
    *,
    features: Callable,
    reconstruct: Callable,
    num_keep: int,
    patch_size: int,
    tau: float,
    key,
    threshold_on: str = "d2",
    kernel: str = "gaussian",
    bandwidth: float = 1.0,
) -> list[Path]:
    """Draws masks and reconstructions of some images, and the effect of tau.

    Args:
      out_dir: folder for masks.png and tau.png; made where it is missing.
      images: (R, H, W, 3) uint8.
      features: images -> (R, N, D), what the kernel is computed from.
      reconstruct: (images, order (R, N) int32) -> (R, H, W, 3) float in [0, 1], seeing the
        patches order[:, :num_keep].
      num_keep: number of visible patches.
      patch_size: side of a patch in pixels.
      tau: purge ratio of the DPP mask in masks.png.
      key: JAX key; each image gets its own noise, the same for every mask drawn of it.
      threshold_on, kernel, bandwidth: as in `dpp.select`.

    Returns:
      The paths of masks.png and tau.png.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokens = features(images)
    keys = jax.random.split(key, len(images))

    one = functools.partial(
        dpp.select,
        num_keep=num_keep,
        threshold_on=threshold_on,
        kernel=kernel,
        bandwidth=bandwidth,
    )
    select = jax.jit(jax.vmap(lambda key, tokens, tau: one(key, tokens, tau=tau), (0, 0, None)))

    def draw(tau):
        order, num_greedy = jax.device_get(select(keys, tokens, np.float32(tau)))
        mask = np.ones(order.shape, bool)
        np.put_along_axis(mask, order[:, :num_keep], False, axis=1)
        greedy = np.zeros(order.shape, bool)
        picked = np.arange(order.shape[1]) < num_greedy[:, None]
        np.put_along_axis(greedy, order, picked, axis=1)
        return order, mask, greedy

    def rebuild(order):
        pixels = np.asarray(reconstruct(images, order), np.float32)
        return np.round(np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255).astype(np.uint8)

    random_order, random_mask, _ = draw(1.0)
    dpp_order, dpp_mask, greedy = draw(tau)
    figure = draw_masks(
        images,
        random_mask,
        dpp_mask,
        rebuild(random_order),
        rebuild(dpp_order),
        patch_size,
        greedy.sum(axis=1),
        tau,
    )
    paths = [out_dir / "masks.png", out_dir / "tau.png"]
    figure.savefig(paths[0])

    drawn = {value: draw(value)[1:] for value in TAUS}
    figure = draw_tau(
        images,
        {value: mask for value, (mask, _) in drawn.items()},
        {value: greedy for value, (_, greedy) in drawn.items()},
        patch_size,
    )
    figure.savefig(paths[1])
    return paths


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
        figure = draw_curves(records)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "curves.png"
    figure.savefig(path)
    return path


def write_run_figures(out_dir: str | Path, run, images: np.ndarray, seed: int = 0) -> list[Path]:
    """`write_mask_figures` with the model and the mask settings of a run.

    Args:
      out_dir: folder for masks.png and tau.png.
      run: a `pretrained.Run`.
      images: (R, H, W, 3) uint8 of the run's image size.
      seed: of the masks.
    """
    config = run.config
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    return write_mask_figures(
        out_dir,
        images,
        features=run.features,
        reconstruct=run.reconstruct,
        num_keep=num_visible(rows * columns, config.mask.ratio),
        patch_size=config.model.patch_size,
        tau=config.mask.tau if config.mask.tau_end is None else config.mask.tau_end,
        key=jax.random.key(seed),
        **run.selection_settings,
    )


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
    parser = _Parser(
        prog="python -m dppmask_jax.figures",
        description="Draws masks.png, tau.png and curves.png of a training run.",
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


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        command.fail(message)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        command.fail(error)
