"""The measured numbers as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Column(NamedTuple):
    """A statistic: its name in a record, its heading, what it is multiplied with, and digits."""

    name: str
    heading: str
    factor: float = 1
    digits: int = 2


SHAPE = (
    Column("equal", "equal neighbours, %", 100, 1),
    Column("piece", "largest piece, %", 100, 1),
    Column("low", "low frequencies"),
    Column("distance", "to the nearest visible"),
    Column("inner", "inner − outer, points", 100, 1),
    Column("thrown", "thrown away, %", 100, 1),
)
LEFT_TO_GUESS = (
    Column("copied", "error of copying", 1, 1),
    Column("interpolated", "error of interpolation", 1, 1),
    Column("log_det", "log det", 1, 1),
    Column("num_greedy", "DPP picks (most)", 1, 1),
    Column("milliseconds", "ms an image", 1, 2),
)
OF_OBJECTS = (
    Column("none", "no patch visible, %", 100),
    Column("almost", "almost none visible, %", 100),
    Column("kept", "visible part of the object, %", 100),
    Column("on_object", "on the object, % of what is visible", 100),
)


def of_images(records: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A row a mask, a column a statistic of it; statistics that no mask has are left out."""
    records = [record for record in records if "of_images" in record]
    columns = [
        column
        for column in columns
        if any(column.name in {**record, **record["of_images"]} for record in records)
    ]
    lines = [["mask", *(column.heading for column in columns)]]
    for record in records:
        lines.append([record["mask"], *(_of_images(record, column) for column in columns)])
    return _aligned(lines)


def _of_images(record: dict[str, Any], column: Column) -> str:
    if column.name == "milliseconds":
        return f"{record['milliseconds']:.{column.digits}f}"
    statistic = record["of_images"].get(column.name)
    if column.name == "num_greedy" and statistic:
        return f"{statistic['mean']:.{column.digits}f} ({record['most_picks']})"
    return _cell(statistic, column)


def of_objects(records: Sequence[dict[str, Any]], column: Column) -> str:
    """A row a mask, a column a group of objects."""
    groups = list(records[0]["of_objects"])
    lines = [["mask", *groups]]
    for record in records:
        cells = (record["of_objects"][group].get(column.name) for group in groups)
        lines.append([record["mask"], *(_cell(each, column) for each in cells)])
    return _aligned(lines)


def _cell(statistic: dict[str, Any] | None, column: Column) -> str:
    """The mean, with its error or with the change from random masks and its error."""
    if not statistic or "mean" not in statistic:
        return ""
    scaled = {name: value * column.factor for name, value in statistic.items()}
    digits = column.digits
    text = f"{scaled['mean']:.{digits}f}"
    if "change" in scaled:
        return f"{text} ({scaled['change']:+.{digits}f} ± {scaled['change_error']:.{digits}f})"
    return f"{text} ± {scaled['error']:.{digits}f}" if "error" in scaled else text


def _aligned(lines: list[list[str]]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |"
        for line in lines
    )
