"""One task of one subject, run and written down, and the table over several that is made of what
was written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dppmask_jax import fields, parallel, whole_files, words
from dppmask_jax.data.sources import identity
from dppmask_jax.data.sources.base import notes_of
from dppmask_jax.evals.base import Evaluation, Result, Score
from dppmask_jax.evaluating.subjects import Subject, say
from dppmask_jax.figures.panels import save
from dppmask_jax.models import encoders
from dppmask_jax.runs import bucket_copy, history
from dppmask_jax.runs import projection as projections
from dppmask_jax.runs import workdir as workdir_files
from dppmask_jax.runs.kinds import ENCODER
from dppmask_jax.runs.run import Run
from dppmask_jax.tasks import TASKS

FIGURES = "figures"
Record = Mapping[str, Any]
_NO_CLASS_TOKEN = "the encoder has no class token, its mean patch token stands for one (cls)"


def result_name(config) -> str:
    """The name of the file that a result goes to: eval_TASK.json, eval_linear_ridge.json, or, for a
    classifier that is not trained further, eval_classifier.json; with a projection
    eval_TASK_projected.json."""
    return f"eval_{name_of(config)}.json"


def images_name(config) -> str:
    """The name of the file with the outcome of each image, such as eval_knn_images.npy."""
    return f"eval_{name_of(config)}_images.npy"


def compared_name(config) -> str:
    """The name of the file with the table over several runs, such as compared_knn.json."""
    return f"compared_{name_of(config)}.json"


def name_of(config) -> str:
    """A task as its files are called."""
    name = TASKS[config.task].record(config) or config.task
    return name + "_projected" * bool(config.projection)


def announce(subject: Subject, evaluation: Evaluation) -> None:
    """Says what is evaluated, and what to know of it."""
    run = evaluation.run
    where = bucket_copy.named(subject.checkpoint)
    say(f"{evaluation.config.task}: {where} ({named(run)}, step {run.step:,})")
    for note in notes_of(evaluation.train, evaluation.val):
        say(f"data: {note}")
    if past := history.of_run(run.history, run.config):
        say(f"history: {past}")
    if idle := parallel.idle_dtype(evaluation.config.get("model", run.config.model).dtype):
        say(f"warning: {idle}")


def evaluated(subject: Subject, evaluation: Evaluation, command: str) -> dict[str, Any]:
    """Runs the task, prints its table and writes its figures, then its record: where there is a
    record, all that belongs to it is there.

    Returns:
      The record, as `finished` reads it.
    """
    config, run = evaluation.config, evaluation.run
    path = subject.folder / result_name(config)
    # Barrier: no process writes before all have checked their input.
    parallel.wait_for_all("the input was looked at")
    if TASKS[config.task].files and parallel.is_main():
        # They are written while it runs, and an older record must not outlive its own.
        path.unlink(missing_ok=True)
    result = TASKS[config.task].run(evaluation)
    projected = f"patch tokens projected by {config.projection}" if config.projection else ""
    notes = [run.resized, _of_class_token(run, result), projected]
    result = result._replace(protocol="; ".join([result.protocol, *filter(None, notes)]))
    figures = {}
    if parallel.is_main():
        subject.folder.mkdir(parents=True, exist_ok=True)
        figures = {
            **result.figures,
            **TASKS[config.task].compare({subject.label: _numbers(result.metrics)}),
        }
    figures = {"projected_" * bool(config.projection) + name: figures[name] for name in figures}
    record = _record(evaluation, subject.checkpoint, result, figures, command)
    if parallel.is_main():
        path.unlink(missing_ok=True)  # an older record must not outlive its figures either
        drawn = [save(figure, subject.folder / FIGURES, name) for name, figure in figures.items()]
        _write_images(subject.folder / images_name(config), result.score)
        whole_files.write_json(path, record)
        note = f"\n{result.note}" if result.note else ""
        table = format_table(result.table)
        say(f"\n{result.protocol}\n\n{table}{note}\n\nresult  {bucket_copy.named(path)}")
        for figure in drawn:
            say(f"figure  {bucket_copy.named(figure)}")
    return record | {"metrics": _numbers(record["metrics"])}


def _write_images(path: Path, score: Score | None) -> None:
    """Writes what the score is the mean of, (M,) bool or float32; takes an older file away where
    there is nothing to write."""
    values = score and score.of_images
    if values is None:
        path.unlink(missing_ok=True)
        return
    with whole_files.replacing(path) as partial, partial.open("wb") as file:
        np.save(file, values if values.dtype == bool else values.astype(np.float32))


def _numbers(values: Any) -> Any:
    """Metrics as tasks compare them: nan where a number is not finite, for which their file has
    null, so that those of a file and those just found are alike."""
    if isinstance(values, Mapping):
        return {name: _numbers(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_numbers(value) for value in values]
    known = values is not None and not (isinstance(values, float) and math.isinf(values))
    return values if known else math.nan


def _record(
    evaluation: Evaluation, checkpoint: Path, result: Result, figures, command: str
) -> dict[str, Any]:
    score = result.score and result.score._asdict()
    of_images = score and score.pop("of_images")
    record = {
        "task": name_of(evaluation.config),
        "protocol": result.protocol,
        "score": score,
        "baselines": result.baselines,
        "metrics": result.metrics,
        "table": result.table,
        "row": result.row,
        "note": result.note,
        "files": [
            *TASKS[evaluation.config.task].files,
            *(f"{FIGURES}/{name}" for name in figures),
            *([] if of_images is None else [images_name(evaluation.config)]),
        ],
        **_subject_of(evaluation, checkpoint),
        "command": command,
        "devices": parallel.describe(),
    }
    return json.loads(json.dumps(record))


def _subject_of(evaluation: Evaluation, checkpoint: Path) -> dict[str, Any]:
    """What the result depends on, as JSON: encoder, images and config."""
    config, run = evaluation.config, evaluation.run
    train, val = evaluation.train, evaluation.val
    return {
        "checkpoint": {
            "workdir": bucket_copy.named(checkpoint),
            "step": run.step,
            "encoder": projections.fingerprint(run),
            "projection": run.projection.digest() if run.projection else "",
            "history": run.history,
            "config": workdir_files.to_json(run.config),
        },
        "data": {
            "train_images": len(train) if train else 0,
            "val_images": len(val) if val else 0,
            "classes": val.num_classes if val else 0,
        },
        "identity": images_of(evaluation),
        "config": workdir_files.to_json(config),
    }


def images_of(evaluation: Evaluation) -> str:
    """The identity of all images that an evaluation reads, as records have it."""
    train, val = evaluation.train, evaluation.val
    images = identity.of_splits(train, val)["digest"] if train else ""
    others = TASKS[evaluation.config.task].also_reads(evaluation)
    return identity.of_parts(images, others) if others else images


def finished(subject: Subject, evaluation: Evaluation) -> dict[str, Any] | None:
    """The record of this very evaluation that stands in the folder, with all of its files; None
    where there is none, or that of another encoder, of other images or with other settings."""
    path = subject.folder / result_name(evaluation.config)
    try:
        record = json.loads(path.read_text())
        there = {name: dict(record[name]) for name in ("checkpoint", "config")}
        there["identity"] = record["identity"]
        files = [subject.folder / name for name in record["files"]]
        metrics = record["metrics"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
        return None
    wanted = json.loads(json.dumps(_subject_of(evaluation, subject.checkpoint)))
    same = _compared(there, evaluation) == _compared(wanted, evaluation)
    if not same or not all(file.is_file() for file in files):
        return None
    return record | {"metrics": _numbers(metrics)}


def _compared(record: Record, evaluation: Evaluation) -> dict[str, Any]:
    """What has to be the same: all of `_subject_of` but the number of images, which their identity
    has, the folder of the run, and fields of how the work is carried out. `data.source` and
    `data.dir` are none of these: images in another place are another evaluation."""
    free = fields.free(evaluation.fields, "carried out")
    config = fields.flatten(record["config"])
    return {
        "checkpoint": {**record["checkpoint"], "workdir": ""},
        "identity": record["identity"],
        "config": {name: value for name, value in config.items() if name not in free},
    }


def compare(
    subjects: Sequence[Subject], records: Sequence[Record], home: Path, command: str
) -> tuple[list[list[str]], dict[str, Path]]:
    """Prints one table over several subjects, of what the task found of all of them, and writes it,
    and their figures, into a folder.

    Args:
      records: of `evaluated`, one for each subject.

    Returns:
      (the table, empty where the task finds nothing to be compared, {name of a figure, as the task
      has it: path of the file}).
    """
    if not parallel.is_main():
        return [], {}
    config = _projected(subjects)
    rows = [record["row"] for record in records]
    table = [] if None in rows else _table(subjects, records)
    if table:
        _write_table(subjects, records, table, home, command)
    metrics = {
        subject.label: record["metrics"] for subject, record in zip(subjects, records, strict=True)
    }
    compared = "compare_projected" if config.projection else "compare"
    drawn = {}
    for name, figure in TASKS[config.task].compare(metrics).items():
        drawn[name] = save(figure, home / FIGURES, f"{compared}_{name}")
        say(f"figure  {bucket_copy.named(drawn[name])}")
    return table, drawn


def _projected(subjects: Sequence[Subject]):
    """The config of a subject with a projection, where there is one, for names of files."""
    configs = [subject.config for subject in subjects]
    return next((config for config in configs if config.projection), configs[-1])


def _table(subjects: Sequence[Subject], records: Sequence[Record]) -> list[list[str]]:
    columns = dict.fromkeys(name for record in records for name in record["row"])
    table = [["run", "step", *columns]]
    for subject, record in zip(subjects, records, strict=True):
        cells = (record["row"].get(name, "") for name in columns)
        table.append([subject.label, f"{record['checkpoint']['step']:,}", *cells])
    return table


def _write_table(subjects, records, table, home: Path, command: str) -> None:
    config = _projected(subjects)
    path = home / compared_name(config)
    notes = [*_of_results(subjects, records), *_unlike(records), *_of_runs(subjects, records)]
    runs = [
        {
            "workdir": bucket_copy.named(subject.folder),
            "projection": record["config"]["projection"],
            "step": record["checkpoint"]["step"],
            "score": record["score"],
            "protocol": record["protocol"],
        }
        for subject, record in zip(subjects, records, strict=True)
    ]
    written = {
        "task": name_of(config),
        "runs": runs,
        "table": table,
        "notes": notes,
        "command": command,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_json(path, written)
    heading = words.count(len({subject.folder for subject in subjects}), "run")
    below = "\n".join(filter(None, notes))
    say(f"\n{heading}\n\n{format_table(table)}\n{below}\n\ntable   {bucket_copy.named(path)}")


def _of_results(subjects: Sequence[Subject], records: Sequence[Record]) -> list[str]:
    """The lines of the results' notes, each once; with whose they are where not all have them."""
    pairs = zip(subjects, records, strict=True)
    return words.by_whom({subject.label: record["note"].splitlines() for subject, record in pairs})


def _of_runs(subjects: Sequence[Subject], records: Sequence[Record]) -> list[str]:
    """What to know of single runs, said once of each: a run with a projection has two rows."""
    notes: dict[str, None] = {}
    for subject, record in zip(subjects, records, strict=True):
        checkpoint = record["checkpoint"]
        past = history.of_run(checkpoint["history"], checkpoint["config"])
        of_class_token = _NO_CLASS_TOKEN if _NO_CLASS_TOKEN in record["protocol"] else ""
        found = filter(None, (past, of_class_token))
        notes |= dict.fromkeys(f"{subject.name}: {note}" for note in found)
    return list(notes)


def _unlike(records: Sequence[Record]) -> list[str]:
    """What differs between the evaluations of several runs, beside the runs."""
    lines = []
    fields_of_images = (
        "data.source", "data.range", "data.channels", "data.axis", "data.classes",
        "data.val_fraction", "image_size",
    )  # fmt: skip
    for field in fields_of_images:
        values = [str(fields.flatten(record["config"]).get(field)) for record in records]
        if len(set(values)) > 1:
            lines.append(f"not on the same images: {field} {' | '.join(dict.fromkeys(values))}")
    return lines


def _of_class_token(run: Run, result: Result) -> str:
    """What the class token of a result is where its encoder has none; "" where it names none."""
    named = [result.protocol, *(cell for row in result.table for cell in row)]
    named = any("cls" in text or "class token" in text for text in named)
    return _NO_CLASS_TOKEN if named and not run.has_class_token else ""


def named(run: Run) -> str:
    """Whose encoder it is, and which."""
    name = run.label if run.kind == ENCODER else run.kind
    return f"{name} {encoders.name_of(run.config.model)}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of texts in columns of even width, the first row as the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row):
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    heading, *body = map(line, rows)
    return "\n".join([heading, "-" * len(heading), *body])
