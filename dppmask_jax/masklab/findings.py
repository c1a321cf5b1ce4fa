"""What the tables say, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dppmask_jax.masklab import tables

_NAMED = 6  # masks that a sentence names


def of(records: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences about some masks of one share."""
    others = [record for record in records if "change" in _of_images(record, "low")]
    return list(filter(None, [_clumps(others), *_objects(others), _middle(others), _guess(others)]))


def _of_images(record: dict[str, Any], name: str) -> dict[str, Any]:
    return record.get("of_images", {}).get(name, {})


def _changed(records, statistic) -> tuple[list[str], list[str]]:
    """(masks with less, masks with more than random ones), the furthest first.

    Args:
      statistic: record -> {"change", "change_error"}.
    """
    sure = []
    for record in records:
        found = statistic(record)
        if tables.is_sure(found):
            sure.append((found["change"], record["mask"]))
    sure.sort()
    less = [label for change, label in sure if change < 0]
    return less, [label for change, label in reversed(sure) if change > 0]


def _clumps(records) -> str:
    spaced, clumped = _changed(records, lambda record: _of_images(record, "low"))
    return _sentence("More in clumps than random masks", clumped, "more spaced", spaced)


def _objects(records) -> Iterator[str]:
    names = records[0]["of_objects"] if records else ()
    for group in [name for name in names if name.startswith("small (")]:
        less, more = _changed(records, lambda record, of=group: record["of_objects"][of]["none"])
        size = group.partition(" ")[2]
        yield _sentence(
            f"The smallest third of the objects {size} is hidden altogether less often than by "
            "random masks with",
            less,
            "more often with",
            more,
        )


def _middle(records) -> str:
    border, middle = _changed(records, lambda record: _of_images(record, "inner"))
    return _sentence(
        "The middle of images is seen more than their border under", middle, "less under", border
    )


def _guess(records) -> str:
    easier, harder = _changed(records, lambda record: _of_images(record, "interpolated"))
    return _sentence(
        "Hidden patches are easier to interpolate than under random masks with", easier,
        "harder with", harder,
    )  # fmt: skip


def _sentence(first: str, these: list[str], second: str, those: list[str]) -> str:
    """ "FIRST: these; SECOND: those."; "" where nothing is to be told."""
    if not these and not those:
        return ""
    return f"{first}: {_listed(these)}; {second}: {_listed(those)}."


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return (", ".join(labels[:_NAMED]) + more) or "none"
