"""Which patches of an image are masked, as pure functions of an explicit key."""

from dppmask_jax.masking.attmask import attention
from dppmask_jax.masking.base import (
    WITH_IMAGES,
    Mask,
    Masker,
    MaskerKind,
    Seen,
    draw_num_masked,
    draw_ratio,
    nothing_hidden,
    num_masked,
    num_visible,
    over_steps,
    progress_at,
    ratio_range,
)
from dppmask_jax.masking.blocks import block
from dppmask_jax.masking.export import export_masks
from dppmask_jax.masking.greedy_dpp import dpp
from dppmask_jax.masking.kinds import MASKERS, hides_any, masker_of
from dppmask_jax.masking.random_patches import random

__all__ = [
    "MASKERS",
    "WITH_IMAGES",
    "Mask",
    "Masker",
    "MaskerKind",
    "Seen",
    "attention",
    "block",
    "dpp",
    "draw_num_masked",
    "draw_ratio",
    "export_masks",
    "hides_any",
    "masker_of",
    "nothing_hidden",
    "num_masked",
    "num_visible",
    "over_steps",
    "progress_at",
    "random",
    "ratio_range",
]
