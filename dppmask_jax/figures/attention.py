"""attention.png: where a class token looks, and masks of every strategy beside it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax import patches
from dppmask_jax.figures import colours, run_masks
from dppmask_jax.figures.panels import (
    SMALL_PANEL,
    attention_legend,
    attention_panel,
    border,
    check_rows,
    compose,
    enlarge,
    mask_panel,
    panel_scale,
)
from dppmask_jax.masking import MASKERS

MAX_HEADS = 6  # whose attention is drawn


def draw_attention(
    images: np.ndarray,
    attention: np.ndarray,
    masks: Mapping[str, np.ndarray],
    patch_size: patches.PatchSize,
    note: str = "",
    thrown: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Figure:
    """One row an image: original, attention (mean over heads, then each head), masks.

    Each map is scaled to its own maximum, which stands below it. At most MAX_HEADS heads are
    drawn; a note says so where there are more.

    Args:
      images: (R, H, W, 3) uint8.
      attention: (R, heads, N) float, the attention of the class token to each patch.
      masks: title -> (R, N) bool, True = hidden.
      patch_size: of a patch in pixels.
      note: stands below the picture.
      thrown: title -> (R, N) bool, for the masks that throw patches away.

    Returns:
      A figure, to be saved at its own resolution.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    attention = np.asarray(attention, np.float32)
    check_rows(len(images), attention=attention, **masks)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    if attention.ndim != 3 or attention.shape[2] != grid[0] * grid[1]:
        raise ValueError(
            f"attention of shape {attention.shape} does not fit the {grid[0]}x{grid[1]} patches"
        )
    num_heads = attention.shape[1]
    shown = min(num_heads, MAX_HEADS)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    height, width = patches.sides(patch_size)
    enlarged = height * scale, width * scale
    panels, captions = [], []
    for row, image in enumerate(images):
        maps = [attention[row].mean(axis=0), *attention[row, :shown]]
        of_maps = [attention_panel(weights, grid, enlarged) for weights in maps]
        of_masks, counts = [], []
        for title, mask in masks.items():
            hidden = np.asarray(mask[row], bool)
            away = thrown[title][row] if title in thrown else np.zeros_like(hidden)
            panel = mask_panel(image, hidden, patch_size, scale=scale, thrown=away)
            of_masks.append(border(panel, hidden, grid))
            counts.append(f"{hidden.sum() - away.sum()} masked")
            counts[-1] += f", {away.sum()} thrown" if away.any() else ""
        panels.append([enlarge(image, scale), *of_maps, *of_masks])
        shares = [f"max {weights.max():.1%}" for weights in maps]
        captions.append(["", *shares, *counts])
    heads = [f"Head {head}" for head in range(1, shown + 1)]
    titles = ["Original", "Mean of\nheads", *heads, *masks]
    if shown < num_heads:
        left_out = f"heads 1 to {shown} of {num_heads}; the mean is over all {num_heads}"
        note = f"{left_out}; {note}" if note else left_out
    return compose(panels, titles, captions, attention_legend(), fill=True, note=note)


def attention_figure(run, images: np.ndarray, seed: int = 0) -> Figure:
    """Where the class token looks, and masks of each strategy that the method has a recipe of, and
    the run's own.

    Each strategy hides as much as its recipe says, see `run_masks.hidden_by`; AttMask's hint shows
    some of that, half of the patches that its hints may come from. Its weights are the mean over
    heads.

    Args:
      run, images, seed: see `of_run.write_run_figures`; the run's method has attention.
    """
    ways = _shown(run) if run.has_masks else []
    masks, thrown = {}, {}
    for way, (mask, _) in zip(ways, run_masks.draw(run, images, seed, ways), strict=True):
        label = way.masker.label.replace(" (", "\n(")
        title = f"{label[:1].upper()}{label[1:]}\n{np.mean(mask.hidden):.0%}"
        masks[title] = mask.hidden
        thrown |= {} if mask.thrown is None else {title: mask.thrown}
    return draw_attention(
        colours.shown(run.pixels, images),
        np.asarray(run.attention(images)),
        masks,
        run.config.model.patch_size,
        "percentages above masks: the share that is hidden" if masks else "",
        thrown,
    )


def _shown(run) -> list[run_masks.Way]:
    strategies = dict.fromkeys((*run.mask_recipes, run.config.mask.strategy))
    ways = [
        run_masks.way(run, strategy, run_masks.hidden_by(run, strategy), **settings)
        for strategy in strategies
        if strategy in MASKERS
        for settings in MASKERS[strategy].variants
    ]
    return [way for way in ways if run_masks.can_draw(run, way)]
