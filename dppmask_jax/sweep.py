"""Pre-trains and evaluates at every point of a grid, such as DPPMask's mask ratios (arXiv
2303.12736, figure 4) or thresholds (tables 1 and 2).

    python -m dppmask_jax.sweep --config=configs/mae.py:dataset=shapes \\
        --eval=configs/eval.py:task=linear --workdir=runs/sweep \\
        --grid="mask.ratio=0.5,0.6,0.75 mask.tau=0.85,0.9,1.0"

--config and --eval are those of train.py and eval.py, with overrides such as --config.epochs=5.0
and --eval.solver=ridge. The grid gives fields of --config, each with its values between commas:
numbers, words, or any Python literal, such as mask.ratio=(0.0,0.5),(0.0,0.7) for iBOT. A tau of 1
is random masking. Points that differ in `seed` alone are averaged in the figure.

WORKDIR receives a folder for each point, which train.py and eval.py can work in as well, sweep.json
and figures/sweep.png. The same command goes on where it was interrupted, and so does one with more
values in the grid or other seeds of the evaluation; finished points are left alone.
"""

from __future__ import annotations

import ast
import difflib
import functools
import itertools
import json
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags
from ml_collections import config_flags

from dppmask_jax import command as command_line
from dppmask_jax import config as training_config
from dppmask_jax import evaluate, parallel, pretrain
from dppmask_jax.data.sources import identity
from dppmask_jax.errors import InputError
from dppmask_jax.evals import checks
from dppmask_jax.evals.base import Evaluation, percent
from dppmask_jax.evals.tasks import TASKS
from dppmask_jax.fields import flatten
from dppmask_jax.figures.sweep import write_sweep_figure
from dppmask_jax.runs import comparable, history, metrics, workdir
from dppmask_jax.runs.run import open_data
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.training import resuming

# What may change while a sweep goes on: the numbers stay the same.
_FREE = resuming.CARRIED_OUT
# Of metrics.jsonl.
_NOT_RESULTS = ("step", "lr", "grad_norm", "images_per_sec", "data_wait_frac", "bad_steps")
_AXES = {
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


class Point(NamedTuple):
    """One point of a grid: its folder's name, {field: value} and the config to pre-train with."""

    name: str
    values: dict[str, Any]
    config: Any


def sweep(config, eval_config, grid: str, folder: str | Path, command: str = "") -> Path:
    """Pre-trains and evaluates at every point of a grid, or goes on where that was interrupted.

    Args:
      config: a config such as configs/mae.py makes.
      eval_config: a config such as configs/eval.py makes.
      grid: see `grid_points`.
      folder: receives the points' workdirs, sweep.json and figures/sweep.png.
      command: what was typed, to be written down.

    Returns:
      The path of sweep.json: "grid", and for each finished point of "points" its "name", "values",
      "evaluation" (what eval_TASK.json holds) and "pretraining" (the last value of each metric).

    Raises:
      InputError: the grid, a config of one of its points, the data or the folder will not do;
        nothing was trained.
      loop.TrainingDiverged: too many steps of a pre-training in a row were not finite.
      Stopped: by a signal, or because nothing could be saved.
    """
    folder = Path(folder)
    points = grid_points(config, grid)
    _check_evaluation(eval_config)
    for point in points:
        with _Naming(f"--grid at {_words(point.values)}"):
            training_config.check(point.config)
            parallel.check_batch(
                point.config.batch_size, point.config.optim.accum_steps, "config.batch_size"
            )
    path = folder / "sweep.json"
    record = _record(config, eval_config, points, folder, command)
    finished = _finished(_read(path), record, points, eval_config, folder)
    ahead = [point for point in points if point.name not in finished]
    _check_data(ahead, eval_config, folder)
    for point in ahead:
        if (folder / point.name).exists():
            images = functools.partial(_images, point.config)
            resuming.start_in(folder / point.name, point.config, images, resuming.Terms(_FREE))
    parallel.wait_for_all("the sweep's folder was read")

    def write():
        record["points"] = [finished[point.name] for point in points if point.name in finished]
        if parallel.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(record, indent=2) + "\n")
            partial.replace(path)

    write()
    for number, point in enumerate(points, 1):
        done = point.name in finished
        _say(
            f"point {number} of {len(points)}: {_words(point.values)}, in {folder / point.name}"
            + (", finished before" if done else "")
        )
        if not done:
            found = _run(point, eval_config, folder / point.name, command)
            finished[point.name] = found
            write()
    if parallel.is_main():
        drawn = _draw(folder, record["points"])
        for line in _histories(record["points"]):
            print(line)
        print(f"\n{_table(record['points'])}\n\nresult  {path}\nfigure  {drawn}", flush=True)
    return path


# The grid.


def grid_points(config, grid: str) -> list[Point]:
    """Every combination of a grid's values, the last field varying fastest.

    Args:
      config: the config that the points differ from.
      grid: "FIELD=VALUE,VALUE FIELD=VALUE,..."; a value is a Python literal or a bare word.

    Raises:
      InputError: a field is unknown, comes twice or has no value, a value is of the wrong type or
        comes twice.
    """
    fields: dict[str, list[str]] = {}
    for part in filter(None, _split(grid, " \t\n")):
        field, separator, values = part.partition("=")
        if field in fields:
            raise InputError(f"--grid gives {field} twice; write all its values after one {field}=")
        fields[field] = [value.strip() for value in _split(values, ",")]
        if not separator or not all(fields[field]):
            raise InputError(f"--grid: {part!r} lacks a value; write {field}=VALUE,VALUE")
    if not fields:
        raise InputError('--grid is empty; write for example --grid="mask.ratio=0.5,0.75"')
    _check_known(config, fields)

    points = []
    for values in itertools.product(*fields.values()):
        changed = config.copy_and_resolve_references()
        for field, value in zip(fields, values, strict=True):
            _set(changed, field, value)
        flat = flatten(changed)
        chosen = {field: flat[field] for field in fields}
        points.append(Point(_folder_name(chosen), chosen, changed))
    names = [point.name for point in points]
    for point in points:
        if names.count(point.name) > 1:
            raise InputError(f"--grid has two points that would be {point.name}; name each once")
    return points


def _split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char in separators and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _check_known(config, fields) -> None:
    known = flatten(config)
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see the fields in the config file"
            raise InputError(f"--grid: unknown config field {field!r}; {hint}")


def _set(config, field: str, text: str) -> None:
    *path, leaf = field.split(".")
    node = config
    for part in path:
        node = node[part]
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text  # a bare word
    old = node[leaf]
    if isinstance(old, str) and not isinstance(value, str):
        value = text
    try:
        node[leaf] = value
    except TypeError as error:
        raise InputError(
            f"--grid: {field}={text} is of the wrong type; the config has {old!r}"
        ) from error


def _folder_name(values: dict[str, Any]) -> str:
    leaves = [field.split(".")[-1] for field in values]

    def part(field, value):
        leaf = field.split(".")[-1]
        several = value if isinstance(value, (tuple, list)) else (value,)
        words = "-".join(str(each).rstrip("/").split("/")[-1] for each in several)
        return f"{leaf if leaves.count(leaf) == 1 else field}-{words}"

    name = "_".join(part(field, value) for field, value in values.items())
    return re.sub(r"[^\w.+-]+", "-", name)


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{field}={_plain(value)}" for field, value in values.items())


def _plain(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# Before the first point trains.


class _Naming:
    """Puts in front of an InputError what it is about."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError):
            raise InputError(f"{self._what}: {error}") from error


def _check_evaluation(config) -> None:
    with _Naming("--eval"):
        checks.check(config)
        if because := TASKS[config.task].unswept(config):
            raise InputError(because)


def _check_data(points: Sequence[Point], eval_config, folder: Path) -> None:
    """Opens the data of all points, which would otherwise be found missing after hours."""
    seen = set()
    for point in points:
        completed = evaluate.completed(eval_config, point.config)
        asked = json.dumps(
            [workdir.to_json(config)["data"] for config in (point.config, completed)]
        )
        if asked in seen:
            continue
        seen.add(asked)
        open_data(point.config)
        with _Naming("--eval"):
            train, val = open_data(completed)
            evaluation = Evaluation(completed, None, folder, train, val, _say)
            TASKS[completed.task].check(evaluation)


def _images(config) -> dict[str, Any]:
    return identity.of_splits(*open_data(config))


def _record(config, eval_config, points, folder, command) -> dict[str, Any]:
    values: dict[str, list] = {field: [] for field in points[0].values}
    for point in points:
        for field, value in point.values.items():
            if value not in values[field]:
                values[field].append(value)
    return {
        "name": folder.resolve().name,
        "grid": values,
        "config": workdir.to_json(config),
        "eval": workdir.to_json(eval_config),
        "points": [],
        "command": command,
    }


def _read(path: Path) -> dict[str, Any] | None:
    """What was written so far; None where the folder is empty or missing.

    Raises:
      InputError: the folder is something else than that of a sweep.
    """
    folder = path.parent
    workdir.check_folder(folder)
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"--workdir={folder} is not empty and holds no sweep.json; name another folder"
            )
        return None
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("grid", "config", "eval", "points")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}); move the folder away to start again"
        ) from error


def _finished(old, new, points, eval_config, folder) -> dict[str, dict]:
    """The records of the points whose evaluation is there, by name.

    Raises:
      InputError: the folder holds another sweep.
    """
    if old is None:
        return {}
    foreign = []
    if list(old["grid"]) != list(new["grid"]):
        foreign = [f"grid: {', '.join(old['grid'])} -> {', '.join(new['grid'])}"]
    foreign += _changes(old["config"], new["config"], "", (*_FREE, *new["grid"]))
    foreign += _changes(old["eval"], new["eval"], "eval.", (*_FREE, "seeds"))
    if foreign:
        raise InputError(
            f"--workdir={folder} holds another sweep ({'; '.join(foreign)}); name another folder, "
            "or go back to that one"
        )
    recorded = {record["name"]: record for record in old["points"]}
    return {
        point.name: recorded[point.name]
        for point in points
        if point.name in recorded and _is_done(recorded[point.name], point, eval_config, folder)
    }


def _is_done(record, point: Point, eval_config, folder: Path) -> bool:
    path = folder / point.name / evaluate.result_name(eval_config)
    wanted = evaluate.completed(eval_config, point.config)
    found = record["evaluation"]
    return (
        path.exists()
        and json.loads(path.read_text()) == found
        and not _changes(found["checkpoint"]["config"], workdir.to_json(point.config), "", _FREE)
        and not _changes(found["config"], workdir.to_json(wanted), "", _FREE)
    )


def _changes(old, new, prefix: str, free) -> list[str]:
    """How a config that was kept differs from one of now, both as JSON."""
    changed, _ = resuming.differences(workdir.to_json(workdir.from_json(old)), new, free)
    return [f"{prefix}{history.words(field, *values)}" for field, values in changed.items()]


# Points.


def _run(point: Point, eval_config, folder: Path, command: str) -> dict[str, Any]:
    pretrain.train(point.config, folder)
    path = evaluate.evaluate(eval_config, folder, command=command)
    if not parallel.is_main():
        return {}
    last = {}
    for logged in metrics.read_metrics(folder / "metrics.jsonl"):
        last |= {name: value for name, value in logged.items() if value is not None}
    return {
        "name": point.name,
        "values": json.loads(json.dumps(point.values)),
        "evaluation": json.loads(path.read_text()),
        "pretraining": {name: last[name] for name in last if name not in _NOT_RESULTS},
    }


def _table(records: Sequence[dict]) -> str:
    """The scores of all points as text, with what to compare them with below."""
    score = records[0]["evaluation"]["score"]
    fields = list(records[0]["values"])
    shown = [
        name
        for name in ("loss", "val_loss", "knn")
        if all(name in record["pretraining"] for record in records)
    ]
    headings = {"loss": "pre-training loss", "val_loss": "validation loss", "knn": "k-NN"}
    rows = [(*fields, score["name"], "std over seeds", *(headings[name] for name in shown))]
    words = percent if _in_percent(records) else "{:.4f}".format
    for record in records:
        found, trained = record["evaluation"]["score"], record["pretraining"]
        rows.append(
            (
                *(_plain(record["values"][field]) for field in fields),
                words(found["value"], found.get("standard_error")),
                "" if found["std"] is None else words(found["std"]),
                *(_knn(trained) if name == "knn" else f"{trained[name]:.4f}" for name in shown),
            )
        )
    has_error = any("±" in cell for row in rows for cell in row)
    notes = ["± is the standard error over the images that were tested"] * has_error
    for name, points in sweep_baselines(records).items():
        shares = [share for _, share in points]
        ends = dict.fromkeys(map(percent, (min(shares), max(shares))))
        notes.append(f"{name}: {' to '.join(ends)}")
    if "loss" in shown:
        configs = [record["evaluation"]["checkpoint"]["config"] for record in records]
        notes += [line for line in comparable.warnings(configs) if line.startswith("loss")]
    return "\n".join([evaluate.format_table(rows), *notes])


def _in_percent(records: Sequence[dict]) -> bool:
    return records[0]["evaluation"]["score"].get("in_percent", True)


def _knn(trained: dict[str, Any]) -> str:
    """What the probe of a run found, with its error where it says of how many images."""
    images = trained.get("knn_images")
    return percent(trained["knn"], standard_error(trained["knn"], images) if images else None)


def _groups(records: Sequence[dict]) -> dict[tuple, list[dict]]:
    """The records of each point of the figure: those that differ in `seed` alone are one."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        values = (_hashable(record["values"][field]) for field in _shown_fields(records))
        groups.setdefault(tuple(values), []).append(record)
    return groups


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


def _histories(records: Sequence[dict]) -> list[str]:
    """A line for each point that is not what the grid says of it from its first step on."""
    pasts = {
        record["name"]: history.describe(record["evaluation"]["checkpoint"].get("history", ()))
        for record in records
    }
    return [f"note: {name} was {past}" for name, past in pasts.items() if past]


def sweep_lines(records: Sequence[dict]) -> dict[str, list[tuple[Any, float, float | None]]]:
    """The lines of a sweep's figure: label -> (x, mean, error bar or None).

    x is the first field of the grid; each combination of the others is a line. Points that differ
    in `seed` alone are one, whose error bar is their standard deviation (n - 1); that of a single
    point is the one over the seeds of its evaluation or, for one of these, its standard error.

    Args:
      records: "points" of a sweep.json.
    """
    _, *others = _shown_fields(records)
    lines: dict[str, list] = {}
    for (x, *rest), group in _groups(records).items():
        label = ", ".join(
            _LEGENDS.get(field, field.split(".")[-1] + " {}").format(_plain(value))
            for field, value in zip(others, rest, strict=True)
        )
        lines.setdefault(label, []).append((x, *_mean_and_error(group)[:2]))
    return lines


def sweep_note(records: Sequence[dict]) -> str:
    """How many runs and images a point of the figure stands for, and what its error bar is."""
    groups = list(_groups(records).values())
    runs = sorted({len(group) for group in groups})
    images = sorted({r["evaluation"].get("data", {}).get("val_images", 0) for r in records})
    parts = [f"{_ends(runs)} run{'s' * (runs[-1] > 1)} a point"]
    if images[0]:
        parts.append(f"{_ends(images)} validation images")
    bars = dict.fromkeys(filter(None, (_mean_and_error(group)[2] for group in groups)))
    if bars:
        parts.append(f"bars: {', or '.join(bars)}")
    return "; ".join(parts)


def _ends(numbers: Sequence[int]) -> str:
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def sweep_baselines(records: Sequence[dict]) -> dict[str, list[tuple[Any, float]]]:
    """What the scores of a sweep are to be compared with: label -> (x, mean over the points at x).

    What the run itself measured is there where it measured the same, see `Task.of_run`.
    """
    first = _shown_fields(records)[0]
    found: dict[str, dict[Any, list[float]]] = {}
    for record in records:
        evaluation = record["evaluation"]
        task = TASKS[evaluation["config"]["task"]]
        baselines = dict(evaluation.get("baselines") or {})
        baselines |= task.of_run(evaluation, record["pretraining"])
        for name, share in baselines.items():
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


def _draw(folder: Path, records: Sequence[dict]) -> Path:
    first = _shown_fields(records)[0]
    name = records[0]["evaluation"]["score"]["name"]
    return write_sweep_figure(
        folder / "figures",
        sweep_lines(records),
        _AXES.get(first, first),
        name,
        sweep_baselines(records),
        sweep_note(records),
        in_percent=_in_percent(records),
    )


def _say(line: str) -> None:
    if parallel.is_main():
        print(line, flush=True)


def main() -> None:
    """Sweeps; see the module's docstring."""
    config = config_flags.DEFINE_config_file(
        "config", None, "FILE[:key=value,...] to pre-train with.", lock_config=True
    )
    evaluation = config_flags.DEFINE_config_file(
        "eval", None, "FILE:task=TASK to evaluate with.", lock_config=True
    )
    grid = flags.DEFINE_string("grid", "", "FIELD=VALUE,VALUE ... of --config.")
    folder = flags.DEFINE_string("workdir", None, "Where the sweep is written; resumed if there.")
    processes = command_line.define_process_flags()

    def run(argv):
        if len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; put the grid in quotes")
        if config.value is None:
            raise InputError("--config is missing: name a config file, such as configs/mae.py")
        if evaluation.value is None:
            raise InputError("--eval is missing: name one, such as configs/eval.py:task=linear")
        if not folder.value:
            raise InputError("--workdir is missing: name a folder, such as runs/sweep")
        parallel.initialize(*processes())
        typed = shlex.join(["python", "-m", "dppmask_jax.sweep", *sys.argv[1:]])
        sweep(config.value, evaluation.value, grid.value, folder.value, typed)

    command_line.run(run)


if __name__ == "__main__":
    main()
