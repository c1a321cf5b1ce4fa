"""Figures of masks without a run: random ones, and DPP masks of an untrained embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dppmask_jax import masking
from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels
from dppmask_jax.figures.masks import Shown, draw_masks, pick_caption
from dppmask_jax.figures.run_masks import greedy_picks, hidden_note
from dppmask_jax.figures.tau import TAUS, draw_tau
from dppmask_jax.patches import PatchSize


def write_figures(
    out_dir: str | Path,
    images: np.ndarray,
    *,
    patch_size: PatchSize,
    ratio: float,
    tau: float,
    seed: int = 0,
    taus: Sequence[float] = TAUS,
) -> list[Path]:
    """Draws masks.png and tau.png: what `masking.export_masks` gives with these arguments.

    Random masks are those of tau 1, so both have the same noise.

    Args:
      out_dir: folder for the figures; made where it is missing.
      images: (R, H, W, 3) uint8.
      patch_size, ratio, tau, seed: see `masking.export_masks`.
      taus: of tau.png.

    Returns:
      The paths of the figures.

    Raises:
      InputError: an argument is out of range or does not fit the images.
    """
    try:
        masks = {
            each: masking.export_masks(
                images, patch_size=patch_size, ratio=ratio, tau=each, seed=seed
            )
            for each in dict.fromkeys((tau, 1.0, *taus))
        }
    except ValueError as error:
        raise InputError(str(error)) from error
    of_random, of_dpp = masks[1.0], masks[tau]
    num_patches, count = of_dpp.mask.shape[1], int(of_dpp.count[0])
    note = hidden_note(num_patches - count, num_patches)
    note += "; the DPP compares patches by an untrained embedding"
    shown = [
        Shown("random", "Random mask", of_random.mask, [f"{count} random"] * len(images)),
        Shown(
            "DPP",
            f"DPP mask, τ = {tau:g}",
            of_dpp.mask,
            [pick_caption(int(picks), count) for picks in of_dpp.num_greedy],
        ),
    ]
    of_taus = {each: masks[each] for each in taus}
    figures = {
        "masks.png": draw_masks(images, shown, patch_size, note),
        "tau.png": draw_tau(
            images,
            {each: mask.mask for each, mask in of_taus.items()},
            {each: greedy_picks(mask, mask.num_greedy) for each, mask in of_taus.items()},
            patch_size,
            note,
        ),
    }
    return [panels.save(figure, out_dir, name) for name, figure in figures.items()]
