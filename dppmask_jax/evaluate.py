"""Runs one evaluation task on a run and writes down what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import config_table, fields, parallel, paths, whole_files, words
from dppmask_jax.data.sources.base import notes_of
from dppmask_jax.errors import InputError
from dppmask_jax.evals.base import Evaluation, Result
from dppmask_jax.figures.panels import save
from dppmask_jax.models import encoders
from dppmask_jax.runs import comparable, history
from dppmask_jax.runs import workdir as workdir_files
from dppmask_jax.runs.image_sizes import checked_image_size
from dppmask_jax.runs.kinds import ENCODER, encoder_options
from dppmask_jax.runs.run import Run, load_run, open_data
from dppmask_jax.tasks import TASKS, checks

_NO_CLASS_TOKEN = "the encoder has no class token, its mean patch token stands for one (cls)"


def evaluate_all(config, checkpoints: Sequence[str | Path], command: str = "") -> list[Path]:
    """`evaluate` for several runs, each in its own folder; then one table over them is printed, and
    written into the folder of the first, see `compared_name`.

    Returns:
      What `evaluate` returns, of each run.

    Raises:
      InputError: as for `evaluate`, for any of the runs; none was evaluated.
    """
    checks.check(config)
    folders = [Path(checkpoint) for checkpoint in checkpoints]
    for folder in folders:
        workdir_files.check_folder(folder)
    subjects = _subjects(config, folders, folders)
    for subject in subjects:
        _opened(subject)
    return _each(config, subjects, command)


def evaluate(config, checkpoint: str | Path, workdir: str | Path = "", command: str = "") -> Path:
    """Runs `config.task` on the newest checkpoint of a run, and prints a table.

    Args:
      config: a config such as configs/eval.py makes.
      checkpoint: the workdir of a pre-training run, or the folder of a fine-tuning.
      workdir: where the result is written; "" is the checkpoint's own.
      command: what was typed, to be written down.

    Returns:
      The path of eval_TASK.json, see `result_name`; with a projection that without it, and
      eval_TASK_projected.json lies beside it.

    Raises:
      InputError: the config is wrong, the checkpoint, the data or the workdir does not fit it, or
        another process is at the same task there.
      Stopped: a training was stopped by a signal, or could not save.
    """
    checks.check(config)
    folder = Path(workdir or checkpoint)
    workdir_files.check_folder(folder)
    subjects = _subjects(config, [Path(checkpoint)], [folder])
    if len(subjects) > 1:
        for subject in subjects:
            _opened(subject)
    return _each(config, subjects, command)[0]


class _Subject(NamedTuple):
    """What is evaluated: a checkpoint, without a projection or with one."""

    config: Any
    checkpoint: Path
    folder: Path
    label: str


class _Outcome(NamedTuple):
    """What `_compare` needs of an evaluation."""

    result: Result
    run: Run
    config: Any


def _subjects(config, checkpoints: Sequence[Path], folders: Sequence[Path]) -> list[_Subject]:
    """One for each checkpoint; with `config.projection` two, without and with."""
    labels = comparable.labels(folders)
    given = paths.split(config.projection)
    if not given:
        return [_Subject(config, *of) for of in zip(checkpoints, folders, labels, strict=True)]
    if len(given) not in (1, len(checkpoints)):
        raise InputError(
            f"config.projection names {len(given)} files for {len(checkpoints)} checkpoints; name "
            "one for all, or one each"
        )
    given = given * (len(checkpoints) // len(given))
    found = []
    for path, checkpoint, folder, label in zip(given, checkpoints, folders, labels, strict=True):
        for projection, which in (("", "without projection"), (path, "with projection")):
            chosen = config.copy_and_resolve_references()
            with chosen.unlocked():
                chosen.projection = projection
            found.append(_Subject(chosen, checkpoint, folder, f"{label}, {which}"))
    return found


def _each(config, subjects: Sequence[_Subject], command: str) -> list[Path]:
    """Evaluates each, and compares them where there are several."""
    found = []
    for subject in subjects:
        with workdir_files.locked(subject.folder, f".lock_eval_{config.task}"):
            found.append(_evaluate(subject, command))
    if len(subjects) > 1:
        _compare(config, subjects, [outcome for _, outcome in found], command)
    return [path for path, _ in found]


def _evaluate(subject: _Subject, command: str) -> tuple[Path, _Outcome]:
    evaluation = _opened(subject)
    checkpoint, folder = subject.checkpoint, subject.folder
    config, run = evaluation.config, evaluation.run
    # Barrier: no process writes before all have checked their input.
    parallel.wait_for_all("the input was looked at")
    _say(f"{config.task}: {checkpoint} ({_named(run)}, step {run.step:,})")
    for note in notes_of(evaluation.train, evaluation.val):
        _say(f"data: {note}")
    if past := history.of_run(run.history, run.config):
        _say(f"history: {past}")
    if idle := parallel.idle_dtype(config.get("model", run.config.model).dtype):
        _say(f"warning: {idle}")

    result = TASKS[config.task].run(evaluation)
    projected = f"patch tokens projected by {config.projection}" if config.projection else ""
    notes = [run.resized, _of_class_token(run, result), projected]
    result = result._replace(protocol="; ".join([result.protocol, *filter(None, notes)]))

    path = folder / result_name(config)
    if parallel.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        whole_files.write_json(path, _record(evaluation, str(checkpoint), result, command))
        note = f"\n{result.note}" if result.note else ""
        table = format_table(result.table)
        print(f"\n{result.protocol}\n\n{table}{note}\n\nresult  {path}", flush=True)
        figures = {
            **result.figures,
            **TASKS[config.task].compare({subject.label: result.metrics}),
        }
        for name, figure in figures.items():
            name = "projected_" * bool(config.projection) + name
            print(f"figure  {save(figure, folder / 'figures', name)}", flush=True)
    return path, _Outcome(result, run, config)


def _compare(
    config, subjects: Sequence[_Subject], outcomes: Sequence[_Outcome], command: str
) -> None:
    """Prints and writes one table over several runs, where the task gives rows of one, and draws
    what it found of all of them."""
    if not parallel.is_main():
        return
    folder, labels = subjects[0].folder, [subject.label for subject in subjects]
    if all(outcome.result.row is not None for outcome in outcomes):
        _tabulate(config, subjects, outcomes, command)
    metrics = {
        label: outcome.result.metrics for label, outcome in zip(labels, outcomes, strict=True)
    }
    compared = "compare_projected" if config.projection else "compare"
    for name, figure in TASKS[config.task].compare(metrics).items():
        print(f"figure  {save(figure, folder / 'figures', f'{compared}_{name}')}", flush=True)


def _tabulate(
    config, subjects: Sequence[_Subject], outcomes: Sequence[_Outcome], command: str
) -> None:
    rows = [outcome.result.row for outcome in outcomes]
    columns = dict.fromkeys(name for row in rows for name in row)
    folders, labels = ([getattr(s, name) for s in subjects] for name in ("folder", "label"))
    table = [("run", "step", *columns)]
    for label, outcome, row in zip(labels, outcomes, rows, strict=True):
        table.append((label, f"{outcome.run.step:,}", *(row.get(name, "") for name in columns)))
    notes = [*_of_results(labels, outcomes), *_unlike(outcomes), *_of_runs(subjects, outcomes)]
    path = folders[0] / compared_name(config)
    record = {
        "task": _name(config),
        "runs": [
            {
                "workdir": str(folder),
                "projection": outcome.config.projection,
                "step": outcome.run.step,
                "score": outcome.result.score and outcome.result.score._asdict(),
                "protocol": outcome.result.protocol,
            }
            for folder, outcome in zip(folders, outcomes, strict=True)
        ],
        "table": table,
        "notes": notes,
        "command": command,
    }
    whole_files.write_json(path, record)
    below = "\n".join(filter(None, notes))
    heading = words.count(len(set(folders)), "run")
    print(f"\n{heading}\n\n{format_table(table)}\n{below}\n\ntable   {path}", flush=True)


def _of_results(labels: Sequence[str], outcomes: Sequence[_Outcome]) -> list[str]:
    """The notes of results, each once; with whose they are where they differ."""
    told: dict[str, list[str]] = {}
    for label, outcome in zip(labels, outcomes, strict=True):
        told.setdefault(outcome.result.note, []).append(label)
    if len(told) == 1:
        return list(filter(None, told))
    return [f"{', '.join(whose)}: {note}" for note, whose in told.items() if note]


def _of_runs(subjects: Sequence[_Subject], outcomes: Sequence[_Outcome]) -> list[str]:
    """What to know of single runs, said once of each: a run with a projection has two rows."""
    notes: dict[Path, dict[str, None]] = {}
    for subject, outcome in zip(subjects, outcomes, strict=True):
        past = history.of_run(outcome.run.history, outcome.run.config)
        found = filter(None, (past, _of_class_token(outcome.run, outcome.result)))
        notes.setdefault(subject.folder, {}).update(dict.fromkeys(found))
    names = comparable.labels(list(notes))
    return [
        f"{name}: {note}"
        for name, of_run in zip(names, notes.values(), strict=True)
        for note in of_run
    ]


def _unlike(outcomes: Sequence[_Outcome]) -> list[str]:
    """What differs between the evaluations of several runs, beside the runs."""
    lines = []
    for field in ("data.source", "data.range", "data.classes", "data.val_fraction", "image_size"):
        values = [str(fields.flatten(outcome.config).get(field)) for outcome in outcomes]
        if len(set(values)) > 1:
            lines.append(f"not on the same images: {field} {' | '.join(dict.fromkeys(values))}")
    return lines


def _opened(subject: _Subject) -> Evaluation:
    """An evaluation that can run.

    Raises:
      InputError: the checkpoint, the data or a training in the folder does not fit the config.
    """
    config = subject.config
    run = load_run(
        subject.checkpoint,
        image_size=config.image_size,
        dtype=config.get("model", {}).get("dtype") or None,
        projection=config.projection or None,
    )
    run.check_encodes()
    config = completed(config, run.config)
    if "data" in config and not config.data.source:
        raise InputError(
            "config.data.source is empty, and the checkpoint does not know what it was trained on; "
            "say where the images are: --config.data.source=folder:PATH (or tfds:NAME, …)"
        )
    train, val = open_data(config) if "data" in config else (None, None)
    evaluation = Evaluation(
        config,
        run,
        subject.folder,
        train,
        val,
        _say,
        config_table.fields_of(config),
        free_of(run.config, *fields.FREE),
    )
    TASKS[config.task].check(evaluation)
    return evaluation


def free_of(config, *groups: str) -> dict[str, str]:
    """`fields.free` of the config of a pre-training or an evaluation, also as JSON."""
    return fields.free(config_table.fields_of(config), *groups)


def completed(config, run_config):
    """The config of an evaluation with what it leaves to the run filled in."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.image_size = checked_image_size(
            config.image_size or tuple(run_config.image_size), run_config.model.patch_size
        )
        if "model" in config:
            config.model.options = encoder_options(run_config)
            encoders.copy_shape(config.model, run_config.model)
            config.model.dtype = config.model.dtype or run_config.model.dtype
        if "data" in config and not config.data.source:
            data = run_config.data
            config.data.source, config.data.val_fraction = data.source, data.val_fraction
            if config.data.range == "auto":
                config.data.range = data.range
            config.data.dir = config.data.dir or data.dir
            config.data.classes = config.data.classes or data.classes
    return config


def result_name(config) -> str:
    """The name of the file that a result goes to: eval_TASK.json, eval_linear_ridge.json, or, for a
    classifier that is not trained further, eval_classifier.json; with a projection
    eval_TASK_projected.json."""
    return f"eval_{_name(config)}.json"


def compared_name(config) -> str:
    """The name of the file with the table over several runs, such as compared_knn.json."""
    return f"compared_{_name(config)}.json"


def _name(config) -> str:
    name = TASKS[config.task].record(config) or config.task
    return name + "_projected" * bool(config.projection)


def _of_class_token(run: Run, result: Result) -> str:
    """What the class token of a result is where its encoder has none; "" where it names none."""
    words = [result.protocol, *(cell for row in result.table for cell in row)]
    named = any("cls" in text or "class token" in text for text in words)
    return _NO_CLASS_TOKEN if named and not run.has_class_token else ""


def _named(run: Run) -> str:
    name = run.label if run.kind == ENCODER else run.kind
    return f"{name} {encoders.name_of(run.config.model)}"


def _record(
    evaluation: Evaluation, checkpoint: str, result: Result, command: str
) -> dict[str, Any]:
    config, run = evaluation.config, evaluation.run
    return {
        "task": _name(config),
        "protocol": result.protocol,
        "score": result.score and result.score._asdict(),
        "baselines": result.baselines,
        "metrics": result.metrics,
        "table": result.table,
        "note": result.note,
        "checkpoint": {
            "workdir": checkpoint,
            "step": run.step,
            "history": run.history,
            "config": workdir_files.to_json(run.config),
        },
        "data": {
            "train_images": len(evaluation.train) if evaluation.train else 0,
            "val_images": len(evaluation.val) if evaluation.val else 0,
            "classes": evaluation.val.num_classes if evaluation.val else 0,
        },
        "config": workdir_files.to_json(config),
        "command": command,
        "devices": parallel.describe(),
    }


def _say(line: str) -> None:
    if parallel.is_main():
        print(line, flush=True)


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Rows of texts in columns of even width, the first row as the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row):
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    heading, *body = map(line, rows)
    return "\n".join([heading, "-" * len(heading), *body])
