"""The masks that figures of a run draw.

All masks of an image are drawn from the same noise, so random and DPP mask differ only by what the
determinantal point process did. They are those of the end of the run, outside of any step: what a
step draws once for all of its images is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, patches
from dppmask_jax.masking import MASKERS, Mask, Masker


class Way(NamedTuple):
    """One way of masking: a strategy's name in MASKERS, what draws it, and how many patches of an
    image it hides."""

    strategy: str
    masker: Masker
    num_hidden: int


def way(run, strategy: str, num_hidden: int, **settings) -> Way:
    """A strategy with the run's settings, as they end, but for some. One that is not the run's own
    has those of its recipe, and a field that came after the run has its default."""
    own = dict(run.config.mask)
    fields = MASKERS[strategy].fields if strategy in MASKERS else {}
    mask = {name.removeprefix("mask."): field.default for name, field in fields.items()} | own
    if strategy != own["strategy"]:
        recipe = run.mask_recipes.get(strategy, {})
        mask |= {name: value for name, value in recipe.items() if f"mask.{name}" in fields}
    mask = at_end(mask) | settings | {"strategy": strategy}
    return Way(strategy, masking.masker_of(SimpleNamespace(**mask)), num_hidden)


def at_end(mask: Mapping[str, Any]) -> dict[str, Any]:
    """`config.mask` at the end of a run: NAME_end, where it is set, takes the place of NAME."""
    settings = dict(mask)
    for name in mask:
        if settings.get(f"{name}_end") is not None:
            settings |= {name: settings[f"{name}_end"], f"{name}_end": None}
    return settings


def has_tau(run) -> bool:
    """Whether the run's masks depend on a tau."""
    kind = MASKERS.get(run.config.mask.strategy)
    return kind is not None and "mask.tau" in kind.fields


def can_draw(run, way: Way) -> bool:
    """Whether the run's method can show what a strategy draws from, which then throws fewer patches
    away than are hidden."""
    return (
        way.masker.needs <= run.gives and way.masker.num_thrown(num_patches(run)) < way.num_hidden
    )


def hidden_by(run, strategy: str) -> int:
    """How many patches of an image figures hide with a strategy.

    As many as its recipe hides, where the method has a recipe of each strategy; else as many as the
    run's own masks. Where shares are drawn from ranges, the middle of the largest one counts.
    """
    ratio = run.config.mask.get("ratio")
    if strategy != run.config.mask.strategy:
        ratio = run.mask_recipes.get(strategy, {}).get("ratio", ratio)
    if not isinstance(ratio, Sequence):
        return run.num_hidden[1]
    return max(1, int(masking.num_masked(num_patches(run), max(ratio))))


def draw(run, images, seed: int, ways: Sequence[Way]) -> list[tuple[Mask, dict[str, Any]]]:
    """(Mask of (R, ...), {metric: (R,)}) of some images, for each way; NumPy arrays."""

    def all_ways(keys, count, seen, most):
        counts = [num_patches(run) - each.num_hidden for each in ways]
        seen = _computed_once(seen)
        return [each.masker.draw(keys, n, seen, n) for each, n in zip(ways, counts, strict=True)]

    return _drawn(run, images, seed, all_ways) if ways else []


def draw_taus(run, images, seed: int, taus: Sequence[float]) -> tuple[Mask, dict[str, Any]]:
    """As `draw`, by the run's strategy at each of T taus: (Mask of (T, R, ...), {metric: (T, R)}).

    They are compiled once.
    """
    own = run.config.mask.strategy
    count = num_patches(run) - hidden_by(run, own)

    def all_taus(keys, _, seen, most):
        tokens = seen.features()  # outside of the loop
        seen = seen._replace(features=lambda: tokens)

        def at(tau):
            return way(run, own, 0, tau=tau).masker.draw(keys, count, seen, count)

        return jax.lax.map(at, jnp.asarray(taus, jnp.float32))

    return _drawn(run, images, seed, all_taus)


def _drawn(run, images, seed: int, draw):
    keys = jax.random.split(jax.random.key(seed), len(images))
    together = Masker(draw, frozenset(), "")
    return jax.device_get(run.masks(images, keys, together, num_patches(run)))


def _computed_once(seen: masking.Seen) -> masking.Seen:
    lazy = {name: value for name, value in seen._asdict().items() if callable(value)}
    return seen._replace(**{name: functools.cache(value) for name, value in lazy.items()})


def greedy_picks(mask: Mask, num_greedy) -> np.ndarray:
    """(..., N) bool: the patches that were picked greedily, the first of the order."""
    greedy = np.zeros(mask.order.shape, bool)
    picked = np.arange(mask.order.shape[-1]) < num_greedy[..., None]
    np.put_along_axis(greedy, mask.order, picked, axis=-1)
    return greedy


def hidden_note(num_hidden: int, num_patches: int) -> str:
    """What to know of masks that all hide as much, in words."""
    return f"{num_hidden} of {num_patches} patches are hidden"


def num_patches(run) -> int:
    """The number of patches of an image."""
    rows, columns = patches.grid_shape(run.image_size, run.config.model.patch_size)
    return rows * columns
