"""The masks of iBOT's global views: a number of patches for each view, then the patches.

Ratios: iBOT, arXiv 2111.07832, and its code. AttMask: arXiv 2203.12719. DPPMask: arXiv 2303.12736.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dppmask_jax import masking, patches

# The values that each strategy needs. prob: the share of the views that are masked at all.
RECIPES = {
    "random": {"ratio": (0.0, 0.7), "ratio_var": (0.0, 0.05), "prob": 1.0},
    "block": {"ratio": (0.0, 0.3), "ratio_var": (0.0, 0.2), "prob": 1.0},  # iBOT
    "attention": {"ratio": (0.3,), "ratio_var": (0.2,), "prob": 0.5},  # AttMask
    # ours: as random masks, and of 70 % hidden patches 20 % are not predicted
    "amt": {"ratio": (0.0, 0.7), "ratio_var": (0.0, 0.05), "prob": 1.0, "thrown": 0.2},
    # paper: 0.7 ± 0.05; on half of the views: not stated
    "dpp": {"ratio": (0.0, 0.7), "ratio_var": (0.0, 0.05), "prob": 1.0},
}


def masked_range(config) -> tuple[int, int]:
    """The fewest and the most patches that a view with any masked patch has masked; (0, 0) where no
    view has any.

    AttMask's hints, masked patches that are shown after all, are not subtracted.
    """
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    if not masking.hides_any(config.mask):
        return 0, 0
    low, high = masking.ratio_range(tuple(config.mask.ratio), tuple(config.mask.ratio_var))
    fewest = masking.num_masked(rows * columns, low[high > 0].min())
    return int(fewest), int(masking.num_masked(rows * columns, high.max()))


def drawer(config, masker: masking.Masker, plan) -> Callable:
    """The function that draws the masks of a checked config.

    Args:
      masker: what chooses the patches.
      plan: steps_per_epoch and total_steps of the run.

    Returns:
      `draw(keys, step_key, step, **shown)`: keys (S,), one a view; the step's key, for what all
      views share; shown are the fields of `masking.Seen` that iBOT can show. It returns a Mask of
      (S, ...) arrays and {metric: (S,)}.
    """
    mask = config.mask
    grid = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    if not masking.hides_any(mask):
        return lambda keys, *more, **shown: (masking.nothing_hidden(grid, len(keys)), {})
    num_patches = grid[0] * grid[1]
    most_visible = num_patches - masked_range(config)[0]
    draw_number = functools.partial(
        masking.draw_num_masked,
        num_patches=num_patches,
        ratios=tuple(mask.ratio),
        variations=tuple(mask.ratio_var),
    )

    def draw(keys, step_key, step, **shown):
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        chance_keys, number_keys, mask_keys = split[:, 0], split[:, 1], split[:, 2]
        # No example of the stream has this number.
        shared_key, masker_key = jax.random.split(jax.random.fold_in(step_key, 2**31))
        if masker.shared_ratio:
            number, wanted = (jnp.broadcast_to(x, len(keys)) for x in draw_number(shared_key))
        else:
            number, wanted = jax.vmap(draw_number)(number_keys)
        is_masked = jax.vmap(jax.random.uniform)(chance_keys) <= mask.prob
        is_masked &= step >= mask.start_epoch * plan.steps_per_epoch
        seen = masking.Seen(
            grid,
            masking.progress_at(step, plan.total_steps),
            step,
            masker_key,
            wanted=jnp.where(is_masked, wanted, 0.0),
            **shown,
        )
        visible = num_patches - jnp.where(is_masked, number, 0)
        return masker.draw(mask_keys, visible, seen, most_visible)

    return draw
