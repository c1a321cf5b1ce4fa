"""tau.png: the DPP masks of some images from tau 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax.figures import colours, run_masks
from dppmask_jax.figures.masks import pick_caption
from dppmask_jax.figures.panels import PANEL, check_rows, compose, enlarge, mask_panel, panel_scale
from dppmask_jax.patches import PatchSize

TAUS = (0.0, 0.6, 0.8, 0.9, 1.0)

GREEDY = (255, 176, 32)
FILL = (225, 225, 225)


def draw_tau(
    images: np.ndarray,
    masks_by_tau: Mapping[float, np.ndarray],
    greedy_by_tau: Mapping[float, np.ndarray],
    patch_size: PatchSize,
    note: str = "",
) -> Figure:
    """One row an image: the original, then the mask at each tau.

    Args:
      images: (R, H, W, 3) uint8.
      masks_by_tau: tau -> (R, N) bool, True = masked.
      greedy_by_tau: tau -> (R, N) bool, True = picked by the DPP (not by the random fill).
      patch_size: of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    taus = sorted(masks_by_tau)
    for tau in taus:
        check_rows(len(images), masks=masks_by_tau[tau], greedy=greedy_by_tau[tau])
    scale = panel_scale(images.shape[2], PANEL)
    panels, captions = [], []
    for row, image in enumerate(images):
        panel_row, caption_row = [enlarge(image, scale)], [""]
        for tau in taus:
            visible = ~np.asarray(masks_by_tau[tau][row], bool)
            greedy = np.asarray(greedy_by_tau[tau][row], bool)
            outlines = [(FILL, visible & ~greedy), (GREEDY, visible & greedy)]
            panel_row.append(mask_panel(image, ~visible, patch_size, outlines, scale))
            caption_row.append(pick_caption(int(greedy.sum()), int(visible.sum())))
        panels.append(panel_row)
        captions.append(caption_row)
    words = {0.0: "τ = 0 (DPP)", 1.0: "τ = 1 (random)"}
    titles = ["Original"] + [words.get(float(tau), f"τ = {tau:g}") for tau in taus]
    legend = [(GREEDY, "picked by the DPP"), (FILL, "random fill")]
    return compose(panels, titles, captions, legend, note=note)


def tau_figure(run, images: np.ndarray, seed: int = 0) -> Figure:
    """The masks of some images at each of TAUS, by the run's strategy.

    Args:
      run, images, seed: see `of_run.write_run_figures`; the run's masks have a tau.
    """
    drawn, metrics = run_masks.draw_taus(run, images, seed, TAUS)
    greedy = run_masks.greedy_picks(drawn, metrics["num_greedy"])
    num_hidden = run_masks.hidden_by(run, run.config.mask.strategy)
    return draw_tau(
        colours.shown(run.pixels, images),
        dict(zip(TAUS, drawn.hidden, strict=True)),
        dict(zip(TAUS, greedy, strict=True)),
        run.config.model.patch_size,
        run_masks.hidden_note(num_hidden, drawn.mask.shape[-1]),
    )
