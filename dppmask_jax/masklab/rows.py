"""Means over images and seeds, standard errors, and differences from random masks of one noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dppmask_jax.masklab.measuring import Found
from dppmask_jax.masklab.ways import Way
from dppmask_jax.scores import coverage
from dppmask_jax.words import count

EXACT = "random, exact"  # the hypergeometric distribution


def groups_of(sizes: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (M,) bool} of objects by their sizes in patches (M,), the first of them all."""
    groups = {"all": np.ones(len(sizes), bool)}
    smallest = sizes <= np.quantile(sizes, 0.1)
    thirds = coverage.terciles(sizes)
    if smallest.sum() < thirds[0].sum():
        groups[f"smallest tenth ({_in_words(sizes[smallest])})"] = smallest
    for name, among in zip(("small", "medium", "large"), thirds, strict=True):
        if among.any():
            groups[f"{name} ({_in_words(sizes[among])})"] = among
    return groups


def _in_words(sizes: np.ndarray) -> str:
    low, high = int(sizes.min()), int(sizes.max())
    return f"{low} to {high} patches" if low < high else count(low, "patch", "patches")


def rows_of(
    chosen: Sequence[Way],
    found: Mapping[str, Found],
    objects: np.ndarray,
    owner: np.ndarray,
    num_visible: int,
    almost: float,
) -> list[dict[str, Any]]:
    """One record a way of masking, in their order, what is exact of random masks first.

    Args:
      chosen: random masks first.
      found: by label.
      objects, owner: of `Photographs`.
      num_visible: how many patches are.
      almost: see `coverage.coverage`.

    Returns:
      "mask" its label, "strategy" and the "settings" that were named; "of_images" {statistic: S}
      and "of_objects" {group: {statistic: S}}, where S is {"mean", "error", "change",
      "change_error"}, changes from random masks; "visible_rate" by row and column,
      "milliseconds", "most_picks" where there are greedy ones.
    """
    groups = groups_of(objects.sum(axis=1))
    exact = coverage.exact_random(objects, num_visible, almost)
    records = [
        {
            "mask": EXACT,
            "of_objects": {
                group: {name: {"mean": float(each[among].mean())} for name, each in exact.items()}
                for group, among in groups.items()
            },
        }
    ]
    base = found[chosen[0].label]
    for way in chosen:
        own = found[way.label]
        record = {"mask": way.label, "strategy": way.strategy, "settings": dict(way.changes)}
        if way.positions:
            record["settings"]["features"] = "positions"
        record |= _statistics(own, None if own is base else base, owner, groups)
        record["visible_rate"] = own.visible_rate.tolist()
        record["milliseconds"] = own.milliseconds
        if "num_greedy" in own.of_images:
            record["most_picks"] = int(own.of_images["num_greedy"].max())
        records.append(record)
    return records


def _statistics(own: Found, base: Found | None, owner, groups) -> dict[str, Any]:
    """ "of_images" and "of_objects" of a record."""
    images = np.arange(own.of_images["equal"].shape[1])
    return {
        "of_images": {
            name: _statistic(values, base and base.of_images.get(name), images)
            for name, values in own.of_images.items()
        },
        "of_objects": {
            group: {
                name: _statistic(
                    values[:, among], base and base.of_objects[name][:, among], owner[among]
                )
                for name, values in own.of_objects.items()
            }
            for group, among in groups.items()
        },
    }


def _statistic(values: np.ndarray, base: np.ndarray | None, owner: np.ndarray) -> dict[str, Any]:
    """Mean over seeds and columns of values (seeds, M), with its error, and how it differs from the
    base; of what is finite in both."""
    mean = values.mean(axis=0)
    other = mean if base is None else base.mean(axis=0)
    finite = np.isfinite(mean) & np.isfinite(other)
    found: dict[str, Any] = {} if finite.all() else {"not_finite": int((~finite).sum())}
    if finite.any():
        found["mean"], found["error"] = coverage.mean_and_error(mean[finite], owner[finite])
    if base is not None and finite.any():
        change = mean[finite] - other[finite]
        found["change"], found["change_error"] = coverage.mean_and_error(change, owner[finite])
    return found
