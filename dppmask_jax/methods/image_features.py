"""What masks of any method can be drawn from without an encoder: of an image, or what came with
it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.masking import semantic_parts

WITHOUT_ENCODER = ("pixels", "positions")  # values of mask.features


def image_features(config, images) -> dict[str, Callable[[], Any]]:
    """{each of WITHOUT_ENCODER: () -> (B, N, D)} of normalised images.

    Positions are the same in all images: a kernel of them spaces patches out without a look.
    """
    patch_size = config.model.patch_size
    places = patches.lone_positions(patches.grid_shape(images.shape[1:3], patch_size))
    return {
        "pixels": lambda: patches.patchify(images, patch_size),
        "positions": lambda: jnp.broadcast_to(places, (len(images), *places.shape)),
    }


def parts_in(config, maps) -> Callable[[], Any] | None:
    """() -> (B, N) int32, the part of each patch; None where there are no maps (B, H, W)."""
    if maps is None:
        return None
    grid = patches.grid_shape(maps.shape[1:], config.model.patch_size)
    return functools.partial(semantic_parts.of_patches, maps, grid, config.mask.num_parts)
