"""Which masks are measured: every masker with its variants, or with settings that were named."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, patches
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field
from dppmask_jax.masking import MASKERS
from dppmask_jax.masking.base import needs_in_words

BASE = "random"  # what all others are compared with


class Way(NamedTuple):
    """One way of masking.

    Attributes:
      strategy: its name in `MASKERS`.
      settings: all of them.
      changes: those that its variant or a flag names.
      label: what it is called, as no other is.
      positions: whether the positions of patches stand in for the features that are shown.
    """

    strategy: str
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]
    label: str
    positions: bool = False


class Terms(NamedTuple):
    """What all masks are drawn on: (rows, columns) of patches, how many are visible, and how far a
    run is, for masks that change over it."""

    grid: tuple[int, int]
    count: int
    progress: float = 1.0


def fields() -> dict[str, Field]:
    """{name without "mask.": field} of all maskers."""
    return {
        name.removeprefix("mask."): field
        for kind in MASKERS.values()
        for name, field in kind.fields.items()
    }


def all_of(
    strategies: Iterable[str],
    varied: Mapping[str, Sequence[Any]],
    ratio: float,
    positions: bool = True,
) -> tuple[list[Way], dict[str, str]]:
    """(ways, {strategy: why none of it can be built}), random masks first.

    Args:
      strategies: names in `MASKERS`.
      varied: {setting: values}; strategies that read one are measured at each value, and others at
        their own variants.
      ratio: share of the patches that are hidden.
      positions: whether masks that are drawn from features are also drawn from positions alone.

    Raises:
      InputError: no strategy of these reads one of the settings.
    """
    names = list(dict.fromkeys((BASE, *strategies)))
    read = {name: [f.removeprefix("mask.") for f in MASKERS[name].fields] for name in names}
    for setting in varied:
        if not any(setting in read[name] for name in names):
            raise InputError(f"--{setting} is read by none of {', '.join(names)}")
    defaults = {name: field.default for name, field in fields().items()} | {"ratio": ratio}
    ways, left_out = [], {}
    for name in names:
        kind = MASKERS[name]
        mine = {setting: varied[setting] for setting in varied if setting in read[name]}
        combined = (
            dict(zip(mine, each, strict=True)) for each in itertools.product(*mine.values())
        )
        for changes in combined if mine else kind.variants:
            settings = defaults | dict(changes) | {"strategy": name}
            try:
                kind.check(SimpleNamespace(**settings))
            except InputError as error:
                left_out[name] = str(error)
                continue
            masker = kind.build(SimpleNamespace(**settings))
            ways.append(Way(name, settings, dict(changes), masker.label))
            if positions and "features" in masker.needs:
                label = f"{masker.label} of positions"
                ways.append(Way(name, settings, dict(changes), label, positions=True))
    return _told_apart(ways), left_out


def _told_apart(ways: list[Way]) -> list[Way]:
    """The ways, those of one label with the settings in which they differ."""
    labels = [way.label for way in ways]
    told = []
    for way in ways:
        alike = [other for other in ways if other.label == way.label]
        differing = {
            name: value
            for name, value in way.settings.items()
            if any(other.settings[name] != value for other in alike)
        }
        words = ", ".join(f"{name} {value}" for name, value in differing.items())
        twice = labels.count(way.label) > 1 and words
        told.append(way._replace(label=f"{way.label}, {words}" if twice else way.label))
    return told


def drawable(
    ways: Iterable[Way], shown: Mapping[str, Any], who: str, terms: Terms
) -> tuple[list[Way], dict[str, str]]:
    """(the ways that can be drawn, {label: why the others cannot}).

    Args:
      shown: what there is to draw from, arrays of some images.
      who: what shows it.
    """
    kept, left_out = [], {}
    hidden = terms.grid[0] * terms.grid[1] - terms.count
    keys = keys_of(0, [0] * max(map(len, shown.values()), default=1))
    for way in ways:
        kind, settings = MASKERS[way.strategy], SimpleNamespace(**way.settings)
        masker = kind.build(settings)
        has = shown.keys() | ({"features"} if way.positions else set())
        if lacking := masker.needs - has:
            left_out[way.label] = f"it needs {needs_in_words(lacking)}, which {who} does not show"
            continue
        try:
            if kind.check_counts:
                kind.check_counts(settings, terms.grid, hidden, hidden)
            jax.eval_shape(lambda way=way: draw(way, keys, shown, terms))
        except ValueError as error:
            left_out[way.label] = " ".join(str(error).split())
            continue
        kept.append(way)
    return kept, left_out


def keys_of(seed: int, numbers: Sequence[int]):
    """(B,) keys: one an image, the same whatever draws a mask with it."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return fold(jax.random.key(seed), np.asarray(numbers, np.uint32))


def draw(way: Way, keys, shown: Mapping[str, Any], terms: Terms):
    """(Mask of (B, ...) arrays, {metric: (B,)}), outside of the steps of a run."""
    kind = MASKERS[way.strategy]
    traced = {name: np.float32(way.settings[name]) for name in kind.traced}
    static = tuple((name, value) for name, value in way.settings.items() if name not in traced)
    progress = np.float32(terms.progress)
    where = kind.build, static, way.positions, terms.grid, terms.count
    return _draw(keys, dict(shown), traced, progress, *where)


@functools.partial(jax.jit, static_argnames=("build", "static", "positions", "grid", "count"))
def _draw(keys, shown, traced, progress, build, static, positions, grid, count):
    masker = build(SimpleNamespace(**dict(static), **traced))
    if positions:
        places = patches.lone_positions(grid)
        shown["features"] = jnp.broadcast_to(places, (len(keys), *places.shape))
    lazy = {name: lambda value=value: value for name, value in shown.items()}
    return masker.draw(keys, count, masking.Seen(grid, progress, **lazy), count)
