"""What was changed in a run on the way: kept with its checkpoints, said wherever it is shown.

A history is a list of {"step": the last step before the change, "changed": {field: [old, new]}} in
the order of the steps. The field "data" stands for the images; its values are those of
`data.sources.identity.of_splits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dppmask_jax.words import count


def describe(history: Iterable[Mapping[str, Any]]) -> str:
    """A history in words, on one line; "" where nothing was changed."""
    return "; ".join(
        f"changed at step {entry['step']:,}: "
        + ", ".join(words(field, *values) for field, values in entry["changed"].items())
        for entry in history
    )


def of_run(history: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """`describe` of a run, and of the run that it started from, where it is a fine-tuning."""
    before = config.get("pretrained", {}).get("history", "")
    return "; ".join(filter(None, [describe(history), before and f"pre-training {before}"]))


def words(field: str, old, new) -> str:
    """How one field changed, such as "mask.tau: 0.9 -> 0.5"."""
    if field != "data":
        return f"{field}: {_plain(old)!r} -> {_plain(new)!r}"
    there, here = (images["training"] + images["validation"] for images in (old, new))
    if there == here:
        others = "other names, sizes, labels, splits, masks or parts"
        return f"data: {count(there, 'image')} there as here, of {others}"
    return f"data: {count(there, 'image')} there, {here:,} here"


def _plain(value):
    """JSON's lists as the tuples of a config."""
    return tuple(map(_plain, value)) if isinstance(value, list) else value
