"""A part of the results page: what an evaluation shows there, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dppmask_jax.scores.uncertainty import standard_error

NONE = "–"  # a cell without a number


class Section(NamedTuple):
    """What the results page shows of one evaluation.

    Attributes:
      title: the heading.
      columns: {key: heading of a column}. Keys of the paper's rows are the same, see
        `results.paper`.
      cells: record, as eval_TASK.json has it -> its rows {key: text}.
      note: stands below the table.
      of_paper: stands after it, on pages that have the paper's rows.
      optional: keys of columns that are left out where no record has them.
    """

    title: str
    columns: dict[str, str]
    cells: Callable[[dict[str, Any]], list[dict[str, str]]]
    note: str = ""
    of_paper: str = ""
    optional: frozenset[str] = frozenset()


def share(value: float | None, count: int | None = None, error: float | None = None) -> str:
    """A share in percent, with its standard error, which for one of `count` images is known."""
    if value is None:
        return NONE
    error = standard_error(value, count) if count else error
    return f"{100 * value:.2f}" + ("" if error is None else f" ± {100 * error:.2f}")


def mean(values: dict[str, Any], count: int | None = None, error: float | None = None) -> str:
    """Of {"mean", "std"}, as `share`."""
    spread = "" if values["std"] is None else f", σ {share(values['std'])}"
    return share(values["mean"], count, error) + spread


def plain(values: dict[str, Any]) -> str:
    """Of {"mean", "std"}, as a number from 0 to 1."""
    spread = "" if values["std"] is None else f", σ {values['std']:.3f}"
    return f"{values['mean']:.3f}{spread}"


def images(record) -> int:
    """How many images were tested."""
    return record["data"]["val_images"]


def accuracies(first: str) -> Callable[[dict[str, Any]], list[dict[str, str]]]:
    """Cells of top-1, under the key `first`, and top-5, of the last epoch or of the closed form."""

    def cells(record):
        found, count = record["metrics"].get("last", record["metrics"]), images(record)
        texts = {
            name: mean(value, count) if isinstance(value, dict) else share(value, count)
            for name, value in found.items()
            if name in ("top1", "top5")
        }
        row = {first: texts["top1"], "top5": texts.get("top5", NONE)}
        if "best" in record["metrics"]:
            row["best"] = mean(record["metrics"]["best"]["top1"], count)
        return [row]

    return cells
