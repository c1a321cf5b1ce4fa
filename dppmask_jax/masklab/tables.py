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


VISIBLE = Column("visible", "visible patches", 1, 1)  # where masks differ in it
SHAPE = (
    VISIBLE,
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


SUMMARY = (
    VISIBLE,
    Column("none", "no patch of an object visible, %", 100, 1),
    Column("on_object", "on the object, %", 100, 1),
    Column("equal", "equal neighbours, %", 100, 1),
    Column("piece", "largest piece, %", 100, 0),
    Column("low", "low frequencies"),
    Column("distance", "to the nearest visible"),
    Column("inner", "inner − outer, points", 100, 1),
    Column("copied", "error of copying", 1, 1),
    Column("interpolated", "error of interpolation", 1, 1),
    Column("log_det", "log det", 1, 1),
    Column("milliseconds", "ms an image", 1, 2),
)
SURE = 2  # errors of a difference that is taken for one


def is_sure(statistic: dict[str, Any]) -> bool:
    """Whether a statistic differs from that of random masks, as far as the images can tell."""
    change = abs(statistic.get("change", 0.0))
    return change > SURE * statistic.get("change_error", 0.0) and change > 1e-9


def summary(records: Sequence[dict[str, Any]]) -> str:
    """Means alone, a row a mask; those that surely differ from random masks are bold. Of objects
    they are over all of them."""
    columns = _told(SUMMARY, records)
    lines = [["mask", *(column.heading for column in columns)]]
    for record in records:
        if "of_images" in record:
            found = record["of_images"] | record["of_objects"]["all"]
            found["milliseconds"] = {"mean": record["milliseconds"]}
            lines.append([record["mask"], *(_mean(found.get(c.name), c) for c in columns)])
    return _aligned(lines)


def _told(columns: Sequence[Column], records: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns without the number of visible patches where that is the same for all masks."""
    visible = {
        record["of_images"]["visible"]["mean"] for record in records if "of_images" in record
    }
    return [column for column in columns if column is not VISIBLE or len(visible) > 1]


def _mean(statistic: dict[str, Any] | None, column: Column) -> str:
    if not statistic or "mean" not in statistic:
        return ""
    text = f"{statistic['mean'] * column.factor:.{column.digits}f}"
    return f"**{text}**" if is_sure(statistic) else text


def of_images(records: Sequence[dict[str, Any]], columns: Sequence[Column]) -> str:
    """A row a mask, a column a statistic of it; statistics that no mask has are left out."""
    records = [record for record in records if "of_images" in record]
    columns = [
        column
        for column in _told(columns, records)
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
