"""Which patches of an image are masked, as pure functions of an explicit key."""

from dppmask_jax.masking.base import (
    Mask,
    attention,
    block,
    dpp,
    draw_ratio,
    export_masks,
    num_masked,
    num_visible,
    random,
    ratio_range,
)

__all__ = [
    "Mask",
    "attention",
    "block",
    "dpp",
    "draw_ratio",
    "export_masks",
    "num_masked",
    "num_visible",
    "random",
    "ratio_range",
]
