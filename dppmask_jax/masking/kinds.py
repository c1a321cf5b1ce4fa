"""The strategies of masking by name. A config file may add to them before it builds its config."""

from __future__ import annotations

import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.masking import (
    amt,
    attmask,
    blocks,
    exact_dpp,
    filtered_noise,
    from_file,
    greedy_dpp,
    hard_patches,
    inverse_block,
    multiblock,
    random_patches,
    regular_grid,
    semantic_parts,
    uniform_cells,
    whole_cells,
)
from dppmask_jax.masking.base import Masker, MaskerKind

MASKERS: dict[str, MaskerKind] = {
    "dpp": greedy_dpp.KIND,
    "exact": exact_dpp.KIND,
    "random": random_patches.KIND,
    "block": blocks.KIND,
    "attention": attmask.KIND,
    "amt": amt.KIND,
    "hard": hard_patches.KIND,
    "file": from_file.KIND,
    "grid": regular_grid.KIND,
    "uniform": uniform_cells.KIND,
    "cells": whole_cells.KIND,
    "noise": filtered_noise.KIND,
    "inverse": inverse_block.KIND,
    "multiblock": multiblock.KIND,
    "parts": semantic_parts.KIND,
}


def check_known(mask) -> None:
    """Raises InputError where no masker has the name `mask.strategy`."""
    if mask.strategy in MASKERS:
        return
    where = f"config.mask.strategy={mask.strategy!r}"
    if file := getattr(mask, "defined_in", ""):
        raise InputError(f"{where} is defined in {file}: name it with --masker={file}")
    raise InputError(f"{where} is not known here: {' | '.join(MASKERS)}")


def check_thrown(mask, num_patches: int, num_hidden: int) -> None:
    """Raises InputError where all patches that `config.mask` hides of an image are thrown away.

    Args:
      num_hidden: the fewest that an image with any has hidden; 0: none has.
    """
    thrown = masker_of(mask).num_thrown(num_patches)
    if thrown >= num_hidden > 0:
        raise InputError(
            f"config.mask.ratio={mask.ratio} hides {num_hidden} of {num_patches} patches"
            f"{'' if np.isscalar(mask.ratio) else ' of some views'}, and "
            f"config.mask.strategy={mask.strategy!r} throws {thrown} away, which leaves none to "
            "predict; raise the ratio or throw fewer away"
        )


def hides_any(mask) -> bool:
    """Whether masks of `config.mask` are drawn at all: with a ratio of 0, as overlay and DINO have
    it, or with a list of nothing else, none are, whatever their strategy."""
    ratio = getattr(mask, "ratio", None)
    return any(ratio) if isinstance(ratio, (tuple, list)) else ratio != 0


def masker_of(mask) -> Masker:
    """The masker of `config.mask`; one that is not used needs nothing. Where its strategy is not
    known, as that of a run with masks of a user's own may be, it draws nothing: the run's encoder
    needs none."""
    if mask.strategy in MASKERS:
        masker = MASKERS[mask.strategy].build(mask)
        return masker if hides_any(mask) else masker._replace(needs=frozenset())

    def draw(keys, count, seen, most):
        check_known(mask)

    return Masker(draw, frozenset(), mask.strategy)
