"""masks.png: random and DPP masks of some images, those of the run, and what it makes of each.

Patches outlined in white are visible under all masks shown, in red under the random mask, in blue
under the DPP mask (the colours of DPPMask, arXiv 2303.12736, figure 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax.figures import colours, run_masks
from dppmask_jax.figures.panels import (
    BOTH,
    PANEL,
    THROWN,
    check_rows,
    compose,
    enlarge,
    mask_panel,
    panel_scale,
)
from dppmask_jax.patches import PatchSize

RANDOM_ONLY = (255, 66, 54)
DPP_ONLY = (72, 150, 255)
COLORS = {  # of what is visible under one of several masks
    "random": RANDOM_ONLY,
    "DPP": DPP_ONLY,
}
OTHER_ONLY = (52, 199, 89)
COMPARED = ("random", "dpp")  # strategies that every run's masks are shown beside
_CAPTIONS = {"random": "{} random"}  # of how many are visible, by the strategy


class Shown(NamedTuple):
    """One way of masking some images, as `draw_masks` shows it.

    `name` is a key of COLORS, or another, which has OTHER_ONLY; `mask` (R, N) bool, True = hidden;
    `captions` stand below the masks, one an image; `reconstruction` (R, H, W, 3) uint8 is what a
    model makes of the visible patches; `thrown` (R, N) bool are those of the hidden patches that
    no model predicts, None where there are none.
    """

    name: str
    title: str
    mask: np.ndarray
    captions: Sequence[str]
    reconstruction: np.ndarray | None = None
    thrown: np.ndarray | None = None


def color_of(shown: Shown) -> tuple[int, int, int]:
    """What its patches are outlined in."""
    return COLORS.get(shown.name, OTHER_ONLY)


def draw_masks(
    images: np.ndarray, shown: Sequence[Shown], patch_size: PatchSize, note: str = ""
) -> Figure:
    """One row an image: original, its masks, then the reconstructions that there are.

    Args:
      images: (R, H, W, 3) uint8.
      shown: the masks, at least two.
      patch_size: of a patch in pixels.
      note: stands below the picture.

    Returns:
      A figure, to be saved at its own resolution (`figure.savefig(path)`).

    Raises:
      ValueError: the arrays do not fit one another.

    Reference: DPPMask (arXiv 2303.12736), figure 6.
    """
    rebuilt = [one for one in shown if one.reconstruction is not None]
    for one in shown:
        check_rows(len(images), **{f"mask of {one.title}": one.mask})
    for one in rebuilt:
        check_rows(len(images), **{f"reconstruction of {one.title}": one.reconstruction})
    scale = panel_scale(images.shape[2], PANEL)
    visible = [~np.asarray(one.mask, bool) for one in shown]
    in_all = np.logical_and.reduce(visible)
    panels, captions = [], []
    for row, image in enumerate(images):
        masks = [
            mask_panel(
                image,
                ~own[row],
                patch_size,
                [(BOTH, in_all[row]), (color_of(one), (own & ~in_all)[row])],
                scale,
                None if one.thrown is None else one.thrown[row],
            )
            for one, own in zip(shown, visible, strict=True)
        ]
        made = [enlarge(one.reconstruction[row], scale) for one in rebuilt]
        panels.append([enlarge(image, scale), *masks, *made])
        captions.append(["", *(one.captions[row] for one in shown), *([""] * len(made))])
    titles = [
        "Original",
        *(one.title for one in shown),
        *(f"Reconstruction\nfrom {one.name}" for one in rebuilt),
    ]
    two = len(shown) == 2
    legend = [
        (BOTH, "visible in both" if two else "visible in all"),
        *((color_of(one), f"{one.name} only" if two else one.name) for one in shown),
        *([(THROWN, "thrown away")] if any(one.thrown is not None for one in shown) else []),
    ]
    return compose(panels, titles, captions, legend, note=note)


def pick_caption(num_greedy: int, num_visible: int) -> str:
    """How many of the visible patches the DPP picked."""
    return f"{num_greedy} DPP + {num_visible - num_greedy} random"


def mask_figure(
    run,
    images: np.ndarray,
    seed: int = 0,
    *,
    tau: float | None = None,
    borrow_statistics: bool = False,
) -> Figure:
    """Random and DPP masks of some images and, where the run was trained with others, those, see
    `compared`; then what the run makes of each, if it reconstructs.

    Args:
      run, images, seed, borrow_statistics: see `of_run.write_run_figures`.
      tau: of the DPP masks; None is the run's.
    """

    def rebuild(order):
        if not run.can_reconstruct:
            return None
        return show(run.reconstruct(images, order, borrow_statistics=borrow_statistics))

    show = colours.look(run.pixels, images)
    ways = compared(run, tau)
    columns = []
    for way, (mask, metrics) in zip(ways, run_masks.draw(run, images, seed, ways), strict=True):
        visible = (~mask.hidden).sum(axis=1)
        if "num_greedy" in metrics:
            captions = list(map(pick_caption, metrics["num_greedy"], visible))
        else:
            captions = [_CAPTIONS.get(way.strategy, "{} visible").format(n) for n in visible]
        name, _, _ = way.masker.label.partition(" (")
        shown = Shown(name, _title(run, way), mask.hidden, captions, rebuild(mask.kept))
        columns.append(shown._replace(thrown=mask.thrown))
    note = run_masks.hidden_note(ways[0].num_hidden, run_masks.num_patches(run))
    if words := brightness(run, borrow_statistics):
        note = f"{note}; {words}"
    return draw_masks(show(images), columns, run.config.model.patch_size, note)


def compared(run, tau: float | None = None) -> list[run_masks.Way]:
    """The masks that are shown beside one another: those of COMPARED that the run's method can
    draw, and the run's own where they are others. All hide as many patches as the run's own do.

    Args:
      tau: of the DPP masks; None is the run's.
    """
    own = run.config.mask.strategy
    num_hidden = run_masks.hidden_by(run, own)
    settings = {} if tau is None else {"tau": tau}
    ways = [
        run_masks.way(run, strategy, num_hidden, **settings)
        for strategy in dict.fromkeys((*COMPARED, own))
    ]
    return [way for way in ways if way.strategy == own or run_masks.can_draw(run, way)]


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


def _title(run, way: run_masks.Way) -> str:
    """The label of a masker as that of masks, and whether they are the run's."""
    name, _, settings = way.masker.label.removesuffix(")").partition(" (")
    if "mask" in name.lower():
        title = way.masker.label
    else:
        title = f"{name[:1].upper()}{name[1:]} mask" + (f", {settings}" if settings else "")
    own = run_masks.way(run, run.config.mask.strategy, 0)
    is_own = (own.strategy, own.masker.label) == (way.strategy, way.masker.label)
    return title + "\n(this run)" * is_own
