"""The masks that figures of a run draw.

All masks of an image are drawn from the same noise, so random and DPP mask differ only by what the
determinantal point process did.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace

import jax
import numpy as np

from dppmask_jax import dpp, masking, patches
from dppmask_jax.methods.ibot_masks import RECIPE_SHARE


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


def masks_by(run, images, seed: int, strategy: str, num_hidden: int, **settings) -> masking.Mask:
    """The masks of some images by a strategy, with the run's settings but for some; NumPy arrays.

    They are those of the end of the run and, where a step would draw something for all of its
    images, outside of any.
    """
    mask = SimpleNamespace(**{**run.config.mask, **settings, "strategy": strategy})
    masker = masking.masker_of(mask)
    drawn, _ = run.masks(images, keys_of(seed, images), masker, _num_patches(run) - num_hidden)
    return jax.device_get(drawn)


def hidden_note(num_hidden: int, num_patches: int) -> str:
    return f"{num_hidden} of {num_patches} patches are hidden"


def _num_patches(run) -> int:
    rows, columns = patches.grid_shape(run.image_size, run.config.model.patch_size)
    return rows * columns


def keys_of(seed: int, images):
    return jax.random.split(jax.random.key(seed), len(images))


def masks_at(taus: Sequence[float], run, images, seed: int, num_hidden: int) -> list[tuple]:
    """For each tau (order (R, N) int32, mask (R, N) bool, greedy picks (R, N) bool)."""
    tokens = run.features(images)
    num_keep = tokens.shape[1] - num_hidden
    drawn = []
    for tau in taus:
        order, num_greedy = jax.device_get(
            _select(
                keys_of(seed, images),
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
