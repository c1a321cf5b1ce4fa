"""The strategies of masking by name. A config file may add to them before it builds its config."""

from __future__ import annotations

from dppmask_jax.masking import attmask, blocks, greedy_dpp, random_patches
from dppmask_jax.masking.base import MaskerKind

MASKERS: dict[str, MaskerKind] = {
    "dpp": greedy_dpp.KIND,
    "random": random_patches.KIND,
    "block": blocks.KIND,
    "attention": attmask.KIND,
}
