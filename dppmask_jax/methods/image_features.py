"""What masks can be drawn from without an encoder, in any method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dppmask_jax import patches

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
