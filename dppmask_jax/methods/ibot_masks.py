"""The masks of iBOT's global views: a ratio for each view, then the patches.

Ratios: iBOT, arXiv 2111.07832, and its code. AttMask: arXiv 2203.12719. DPPMask: arXiv 2303.12736.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, patches
from dppmask_jax.methods import selection

SHOWN_SHARE = 0.1  # of the patches, that AttMask's hints come from

# Of the patches that a masked view hides, in the middle: what configs/ibot.py gives each strategy.
RECIPE_SHARE = {"dpp": 0.7, "random": 0.7, "block": 0.3, "attention": 0.3}


def masked_range(config) -> tuple[int, int]:
    """The fewest and the most patches that a view with any masked patch has masked.

    AttMask's hints, which come off that, are not counted.
    """
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    low, high = masking.ratio_range(tuple(config.mask.ratio), tuple(config.mask.ratio_var))
    fewest = np.asarray(masking.num_masked(rows * columns, low[high > 0].min()))
    most = np.asarray(masking.num_masked(rows * columns, high.max()))
    return int(fewest), int(most)


def drawer(config, settings: dict, *, steps_per_epoch: int, total_steps: int) -> Callable:
    """The masks of a checked config.

    Args:
      settings: the keyword arguments of `dpp.select` that go with the features.

    Returns:
      `draw(keys, step_key, step, features, weights)`: keys (S,), one a view; the step's key, for
      what all views share; `features()` gives (S, N, D), called only for dpp; weights (S, N),
      attention of the teacher's class token. It returns masks, a Mask of (S, ...) arrays, and the
      number of greedy picks of each view (S,), None unless dpp.
    """
    mask = config.mask
    grid = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    num_patches = grid[0] * grid[1]
    num_keep = num_patches - masked_range(config)[0]
    num_top = int(num_patches * SHOWN_SHARE)
    draw_ratio = functools.partial(
        masking.draw_ratio, ratios=tuple(mask.ratio), variations=tuple(mask.ratio_var)
    )

    def draw(keys, step_key, step, features, weights):
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        chance_keys, ratio_keys, mask_keys = split[:, 0], split[:, 1], split[:, 2]
        # No example of the stream has this number.
        shared_key, shown_key = jax.random.split(jax.random.fold_in(step_key, 2**31))
        if mask.strategy == "attention":
            ratios = jnp.broadcast_to(draw_ratio(shared_key), len(keys))
        else:
            ratios = jax.vmap(draw_ratio)(ratio_keys)
        is_masked = jax.vmap(jax.random.uniform)(chance_keys) <= mask.prob
        is_masked &= step >= mask.start_epoch * steps_per_epoch
        num_masked = jnp.where(is_masked, masking.num_masked(num_patches, ratios), 0)
        visible = num_patches - num_masked

        if mask.strategy == "random":
            return jax.vmap(masking.random, (0, None, 0))(mask_keys, num_patches, visible), None
        if mask.strategy == "block":
            return jax.vmap(lambda k, count: masking.block(k, grid, count))(
                mask_keys, visible
            ), None
        if mask.strategy == "attention":
            attend = functools.partial(
                masking.attention,
                variant=mask.attention,
                num_shown=masking.num_masked(num_patches, SHOWN_SHARE * draw_ratio(shown_key)),
                num_top=num_top,
            )
            return jax.vmap(attend)(mask_keys, weights, num_masked), None
        if mask.strategy == "dpp":
            choose = functools.partial(
                masking.dpp,
                tau=selection.tau_at(mask, step, total_steps),
                num_keep=num_keep,
                **settings,
            )
            return jax.vmap(choose)(mask_keys, features(), visible)
        raise ValueError(f"no such mask strategy: {mask.strategy!r}")

    return draw
