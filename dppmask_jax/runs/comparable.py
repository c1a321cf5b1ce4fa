"""What keeps the numbers of several runs from being compared, from their configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dppmask_jax.fields import flatten

# Fields of `mask` that one strategy alone reads.
_READ_BY = {
    "mask.attention": "attention",
    **{
        f"mask.{name}": "dpp"
        for name in (
            "tau", "tau_end", "threshold_on", "kernel", "bandwidth", "normalize", "features",
        )
    },
}  # fmt: skip
_DATA = ("data.source", "data.range", "data.classes", "data.val_fraction", "image_size")
_OF_LOSS = ("method", "mask.", "loss.", "model.patch_size", "model.prototypes", *_DATA)
_NAMED = 4  # fields
_OF_KNN = ("evaluate.knn_", *_DATA)


def warnings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that say of which numbers the runs with these configs differ in what they measure.

    Args:
      configs: of pre-training runs, as in config.json.
    """
    flat = [flatten(config) for config in configs]
    lines = []
    if differ := _differences(flat, _OF_LOSS):
        what = "under different masks " * all(line.startswith(("mask.", "and ")) for line in differ)
        lines.append(f"losses {what}are not comparable: {', '.join(differ)}")
    if differ := _differences(flat, _OF_KNN):
        lines.append(f"k-NN accuracies are not comparable: {', '.join(differ)}")
    return lines


def _differences(configs: list[dict[str, Any]], prefixes: tuple[str, ...]) -> list[str]:
    """Texts "field a | b", one for each field that differs between the runs that read it."""
    differ = []
    for field in sorted(set().union(*configs)):
        values = [
            str(config[field])
            for config in configs
            if field in config and _READ_BY.get(field) in (None, config.get("mask.strategy"))
        ]
        if field.startswith(prefixes) and len(set(values)) > 1:
            differ.append(f"{field} {' | '.join(dict.fromkeys(values))}")
    return differ[:_NAMED] + [f"and {len(differ) - _NAMED} more"] * (len(differ) > _NAMED)
