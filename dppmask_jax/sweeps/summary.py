"""What the points of a sweep came to: its table and its figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dppmask_jax.evals.base import percent
from dppmask_jax.evaluating import records as evaluated
from dppmask_jax.fields import flatten
from dppmask_jax.figures import panels
from dppmask_jax.figures.sweep import Panel, draw_sweep
from dppmask_jax.runs import comparable, history
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.sweeps.grid import plain
from dppmask_jax.tasks import TASKS

_AXES = {
    "hybrid.weight": "weight λ of the contrastive loss",
    "mask.ratio": "share of patches masked",
    "mask.tau": "threshold τ of the DPP",
    "mask.strategy": "kind of masks",
    "mask.bandwidth": "bandwidth of the kernel",
    "epochs": "epochs of pre-training",
    "batch_size": "images in a step of pre-training",
    "optim.base_lr": "base learning rate of pre-training",
    "seed": "seed of pre-training",
}
_LEGENDS = {"mask.strategy": "{} masks", "mask.tau": "τ = {}", "mask.ratio": "{} masked"}


def table(records: Sequence[dict]) -> str:
    """The scores of all points as text, with what to compare them with below."""
    fields = list(records[0]["values"])
    evaluations = of_each(records)
    shown = [
        name
        for name in ("loss", "val_loss", "knn")
        if all(name in record["pretraining"] for record in records)
    ]
    headings = {"loss": "pre-training loss", "val_loss": "validation loss", "knn": "k-NN"}
    scores = [of_one[0]["evaluation"]["score"]["name"] for of_one in evaluations]
    columns = [column for name in scores for column in (name, "std over seeds")]
    rows = [(*fields, *columns, *(headings[name] for name in shown))]
    for number, record in enumerate(records):
        trained = record["pretraining"]
        rows.append(
            (
                *(plain(record["values"][field]) for field in fields),
                *(cell for of_one in evaluations for cell in _cells(of_one[number])),
                *(_knn(trained) if name == "knn" else f"{trained[name]:.4f}" for name in shown),
            )
        )
    has_error = any("±" in cell for row in rows for cell in row)
    notes = ["± is the standard error over the images that were tested"] * has_error
    for score, of_one in zip(scores, evaluations, strict=True):
        for name, points in baselines(of_one).items():
            shares = [share for _, share in points]
            ends = dict.fromkeys(map(percent, (min(shares), max(shares))))
            whose = f", {score}" if len(scores) > 1 else ""
            notes.append(f"{name}{whose}: {' to '.join(ends)}")
    if "loss" in shown:
        configs = [record["evaluation"]["checkpoint"]["config"] for record in records]
        notes += [line for line in comparable.warnings(configs) if line.startswith("loss")]
    return "\n".join([evaluated.format_table(rows), *notes])


def of_each(records: Sequence[dict]) -> list[list[dict]]:
    """The points as each of their evaluations has them, the first first: every list as if the sweep
    had this "evaluation" alone."""
    names = records[0].get("beside", {})
    return [list(records)] + [
        [record | {"evaluation": record["beside"][name]} for record in records] for name in names
    ]


def _cells(record: dict) -> tuple[str, str]:
    """The score of a point with its error, and its deviation over seeds."""
    score = record["evaluation"]["score"]
    words = percent if _in_percent([record]) else _number
    std = score["std"]
    return words(score["value"], score.get("standard_error")), "" if std is None else words(std)


def _number(value: float, error: float | None = None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _in_percent(records: Sequence[dict]) -> bool:
    return records[0]["evaluation"]["score"].get("in_percent", True)


def _knn(trained: dict[str, Any]) -> str:
    """What the probe of a run found, with its error where it says of how many images."""
    images = trained.get("knn_images")
    return percent(trained["knn"], standard_error(trained["knn"], images) if images else None)


def _groups(records: Sequence[dict]) -> dict[tuple, list[dict]]:
    """The records of each point of the figure, by their x and the words for its line: those that
    differ in `seed` alone are one.

    Where the masks of a run do not depend on a field, the words leave it out; of runs that are then
    one training done twice, the first stands for both.
    """
    first, *others = _shown_fields(records)
    groups: dict[tuple, dict[Any, dict]] = {}
    for record in records:
        values = record["values"]
        config = flatten(record["evaluation"]["checkpoint"]["config"])
        label = ", ".join(
            _LEGENDS.get(field, field.split(".")[-1] + " {}").format(plain(values[field]))
            for field in others
            if not field.startswith("mask.") or comparable.is_read(field, config)
        )
        point = (_hashable(values[first]), label)
        groups.setdefault(point, {}).setdefault(values.get("seed"), record)
    return {point: list(of_seeds.values()) for point, of_seeds in groups.items()}


def _mean_and_error(records: Sequence[dict]) -> tuple[float, float | None, str]:
    """The score of one point, the length of its error bar to either side, and what that is."""
    scores = [record["evaluation"]["score"] for record in records]
    values = [score["value"] for score in scores]
    mean = statistics.fmean(values)
    if len(values) > 1:
        return mean, statistics.stdev(values), "standard deviation over the seeds of pre-training"
    if scores[0]["std"] is not None:
        return mean, scores[0]["std"], "standard deviation over the seeds of the evaluation"
    error = scores[0].get("standard_error")
    return mean, error, "standard error over the images" if error is not None else ""


def histories(records: Sequence[dict]) -> list[str]:
    """A line for each point whose config was changed while it trained."""
    pasts = {
        record["name"]: history.describe(record["evaluation"]["checkpoint"].get("history", ()))
        for record in records
    }
    return [f"note: {name} was {past}" for name, past in pasts.items() if past]


def lines(records: Sequence[dict]) -> dict[str, list[tuple[Any, float, float | None]]]:
    """The lines of a sweep's figure: label -> (x, mean, error bar or None).

    x is the first field of the grid; each combination of the others is a line. Points that differ
    in `seed` alone are one, whose error bar is their standard deviation (n - 1); that of a single
    point is the one over the seeds of its evaluation or, for one of these, its standard error.

    Args:
      records: "points" of a sweep.json.
    """
    found: dict[str, list] = {}
    for (x, label), group in _groups(records).items():
        found.setdefault(label, []).append((x, *_mean_and_error(group)[:2]))
    return found


def note(records: Sequence[dict]) -> str:
    """How many runs and images a point of the figure stands for, and what its error bar is; what
    does not hold of all evaluations stands behind the names of theirs."""
    of_scores = {
        of_one[0]["evaluation"]["score"]["name"]: _notes(of_one) for of_one in of_each(records)
    }
    common = [
        part
        for part in next(iter(of_scores.values()))
        if all(part in parts for parts in of_scores.values())
    ]
    own: dict[str, list[str]] = {}
    for name, parts in of_scores.items():
        own.setdefault(", ".join(part for part in parts if part not in common), []).append(name)
    lines = [f"{' and '.join(names)}: {parts}" for parts, names in own.items() if parts]
    return "; ".join([*common, *lines])


def _notes(records: Sequence[dict]) -> list[str]:
    """Of one evaluation."""
    groups = list(_groups(records).values())
    runs = sorted({len(group) for group in groups})
    images = sorted({_images(record["evaluation"]) for record in records})
    parts = [f"{_ends(runs)} run{'s' * (runs[-1] > 1)} a point"]
    if images[0]:
        parts.append(f"{_ends(images)} validation images")
    bars = dict.fromkeys(filter(None, (_mean_and_error(group)[2] for group in groups)))
    if bars:
        parts.append(f"bars: {', or '.join(bars)}")
    return parts


def _images(evaluation: dict) -> int:
    """How many images a score is of; 0 where that is not known."""
    of_score = evaluation["score"].get("images")
    return of_score or evaluation.get("data", {}).get("val_images", 0)


def _ends(numbers: Sequence[int]) -> str:
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def baselines(records: Sequence[dict]) -> dict[str, list[tuple[Any, float]]]:
    """The baselines of a sweep's scores: label -> (x, mean over the points at x).

    They include what the runs measured themselves, see `Task.of_run`.
    """
    first = _shown_fields(records)[0]
    found: dict[str, dict[Any, list[float]]] = {}
    for record in records:
        evaluation = record["evaluation"]
        task = TASKS[evaluation["config"]["task"]]
        given = evaluation.get("baselines") or {}
        for name, share in {**given, **task.of_run(evaluation, record["pretraining"])}.items():
            x = _hashable(record["values"][first])
            found.setdefault(name, {}).setdefault(x, []).append(share)
    return {
        name: [(x, statistics.fmean(shares)) for x, shares in of_x.items()]
        for name, of_x in found.items()
    }


def _shown_fields(records) -> list[str]:
    fields = list(records[0]["values"])
    return [field for field in fields if field != "seed"] or fields


def _hashable(value):
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def draw(folder: Path, records: Sequence[dict]) -> Path:
    """Writes figures/sweep.png and returns its path."""
    first = _shown_fields(records)[0]
    shown = [
        Panel(
            lines(of_one),
            of_one[0]["evaluation"]["score"]["name"],
            baselines(of_one),
            _in_percent(of_one),
        )
        for of_one in of_each(records)
    ]
    figure = draw_sweep(shown, _AXES.get(first, first), note(records))
    return panels.save(figure, folder / "figures", "sweep.png")
