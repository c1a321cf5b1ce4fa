"""The parts of the page that are tables: one a section, and one a sweep."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from dppmask_jax.evals import sections
from dppmask_jax.evals.sections import NONE, Section
from dppmask_jax.results import paper, rows


def of_section(
    section: Section,
    records,
    footnote: Callable[[dict[str, Any]], str],
    with_paper: bool,
    commands: list[str],
) -> str:
    """The text of a section, "" where it is empty; new commands are added to the page's.

    Args:
      footnote: says how a record was measured.
    """
    lines = [
        (f"*paper*, table {row.table}", row.data, row.method, row.masks, NONE, row.figures)
        for row in paper.ROWS
        if with_paper and row.figures.keys() & section.columns.keys()
    ]
    measured = []
    for record in records:
        note = (footnote(record), rows.command(record))
        measured += [(*rows.of(record), cells, note) for cells in section.cells(record)]
    notes: list[tuple[str, str]] = []
    seen = []
    for *common, cells, note in sorted(measured, key=_sort_key):
        if (common, cells, note) in seen:  # an evaluation that a sweep holds as well
            continue
        seen.append((common, cells, note))
        if note not in notes:
            notes.append(note)
        lines.append((f"*measured here* ({notes.index(note) + 1})", *common, cells))
    if not lines and not (with_paper and section.of_paper):
        return ""
    columns = {
        key: words
        for key, words in section.columns.items()
        if key not in section.optional or any(key in line[-1] for line in lines)
    }
    heading = ["", "data", "method", "masks", "checkpoint", *columns.values()]
    body = [[*common, *(cells.get(key, NONE) for key in columns)] for *common, cells in lines]
    parts = [f"## {section.title}"]
    parts += [_markdown_table(heading, body)] if body else []
    words = " ".join(filter(None, (section.note, section.of_paper * with_paper)))
    parts += [words] if words else []
    if notes:
        texts = (_footnote_line(note, commands) for note in notes)
        parts.append("\n".join(f"{number}. {text}" for number, text in enumerate(texts, 1)))
    return "\n\n".join(parts)


def _footnote_line(note: tuple[str, str], commands: list[str]) -> str:
    words, command_line = note
    if not command_line:
        return f"{words}."
    if command_line not in commands:
        commands.append(command_line)
    return f"{words}; command {commands.index(command_line) + 1}."


def _sort_key(row):
    """By the words, with numbers in them by size."""
    texts = [*row[:4], *row[5], *row[4].values()]
    return [
        [(0, float(part), "") if part[0].isdigit() else (1, 0.0, part) for part in parts]
        for parts in (re.findall(r"\d+(?:\.\d+)?|\D+", text) for text in texts)
    ]


def _markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    return "\n".join([line(heading), "|" + "---|" * len(heading), *map(line, rows)])


def of_sweep(record) -> str:
    """The scores of a sweep, a table for each of its evaluations."""
    points = record["points"]
    names = points[0].get("beside", {})
    of_each = [[point["evaluation"] for point in points]]
    of_each += [[point["beside"][name] for point in points] for name in names]
    return "\n\n".join(_of_evaluation(record, found) for found in of_each)


def _of_evaluation(record, evaluations: Sequence[dict[str, Any]]) -> str:
    """One evaluation of the points of a sweep: a row for each value of the first field, a column
    for each combination of the others."""
    grid = record["grid"]
    first, *others = grid
    scores = {
        json.dumps([point["values"][field] for field in grid]): evaluation["score"]
        for point, evaluation in zip(record["points"], evaluations, strict=True)
    }
    columns = list(itertools.product(*(grid[field] for field in others)))
    heading = [
        f"`{first}`",
        *(
            ", ".join(f"`{f}` {_value(v)}" for f, v in zip(others, values, strict=True))
            for values in columns
        ),
    ]
    if not others:
        heading[1:] = ["score"]
    evaluation = evaluations[0]
    body = []
    for x in grid[first]:
        cells = []
        for values in columns:
            score = scores.get(json.dumps([x, *values]))
            cells.append(NONE if score is None else _score(score))
        body.append([_value(x), *cells])
    where = f"{rows.data(evaluation)}; {rows.model(evaluation)}"
    return "\n\n".join(
        [
            f"### {record['name']}: {evaluation['score']['name']}",
            f"*measured here*: {where}. `{record['command']}`",
            _markdown_table(heading, body),
        ]
    )


def _score(score: dict[str, Any]) -> str:
    values = {"mean": score["value"], "std": score["std"]}
    if not score.get("in_percent", True):
        return sections.plain(values)
    return sections.mean(values, error=score.get("standard_error"))


def _value(value) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(_value, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)
