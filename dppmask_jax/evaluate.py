"""Runs one evaluation task on a run and writes down what it found."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dppmask_jax.errors import InputError
from dppmask_jax.evals import seeds
from dppmask_jax.evaluating import parts, records
from dppmask_jax.evaluating.subjects import Subject, opened, subjects
from dppmask_jax.runs import bucket_copy, bucket_download, encoder_files
from dppmask_jax.runs import workdir as workdir_files
from dppmask_jax.tasks import TASKS, checks

_FOUND = re.compile(r"eval_[^/]+(?:\.json|_images\.npy)|figures/[^/]+")  # by evaluations


def evaluate_all(
    config, checkpoints: Sequence[str | Path], workdir: str | Path = "", command: str = ""
) -> list[Path]:
    """`evaluate` for several runs, each in its own folder; then one table over them is printed, and
    written into the folder of the first, see `records.compared_name`.

    Args:
      workdir: for a task that ends in one page, its folder, see `parts.evaluate`.

    Returns:
      What `evaluate` returns, of each run; the page alone where the task ends in one.

    Raises:
      InputError: as for `evaluate`, for any of the runs; none was evaluated.
    """
    checks.check(config)
    with _local(config, checkpoints, workdir) as (paths, home):
        return [Path(bucket_copy.named(p)) for p in _evaluate_all(config, paths, home, command)]


def _evaluate_all(config, paths: list[Path], workdir: str | Path, command: str) -> list[Path]:
    if TASKS[config.task].together:
        return [parts.evaluate(config, paths, workdir, command)]
    if workdir:
        raise InputError("--workdir takes the result of one --checkpoint; leave it out for several")
    folders = [encoder_files.results_of(path) for path in paths]
    for folder in folders:
        workdir_files.check_folder(folder)
    chosen = subjects(config, paths, folders)
    for subject in chosen:
        opened(subject)
    return _each(chosen, command)


def evaluate(config, checkpoint: str | Path, workdir: str | Path = "", command: str = "") -> Path:
    """Runs `config.task` on the newest checkpoint of a run, and prints a table.

    Args:
      config: a config such as configs/eval.py makes.
      checkpoint: the workdir of a pre-training run, the folder of a fine-tuning, either may be in
        a bucket; the file of an encoder alone or "zoo:NAME".
      workdir: where the result is written; "" is the checkpoint's own, see
        `encoder_files.results_of`.
      command: what was typed, to be written down.

    Returns:
      The path of eval_TASK.json, see `records.result_name`; with a projection that without it, and
      eval_TASK_projected.json lies beside it. Of a task that ends in a page, that of the page.

    Raises:
      InputError: the config is wrong, the checkpoint, the data or the workdir does not fit it, or
        another process is at the same task there.
      Stopped: a training was stopped by a signal, or could not save.
    """
    checks.check(config)
    with _local(config, [checkpoint], workdir) as ((path,), home):
        return Path(bucket_copy.named(_evaluate(config, path, home, command)))


def _evaluate(config, checkpoint: Path, workdir: str | Path, command: str) -> Path:
    if TASKS[config.task].together:
        return parts.evaluate(config, [checkpoint], workdir, command)
    folder = Path(workdir or encoder_files.results_of(checkpoint))
    workdir_files.check_folder(folder)
    chosen = subjects(config, [checkpoint], [folder])
    if len(chosen) > 1:
        for subject in chosen:
            opened(subject)
    return _each(chosen, command)[0]


@contextlib.contextmanager
def _local(
    config, checkpoints: Sequence[str | Path], workdir: str | Path
) -> Iterator[tuple[list[Path], str | Path]]:
    """Checkpoints and workdir, with a local copy of each folder in a bucket that is written to."""
    with contextlib.ExitStack() as stack:
        how = f".lock_eval_{config.task}", _reads(config)
        if workdir:
            home = stack.enter_context(bucket_copy.opened(workdir, *how))
            yield [Path(checkpoint) for checkpoint in checkpoints], home
        else:
            opened = [bucket_copy.opened(checkpoint, *how) for checkpoint in checkpoints]
            yield [stack.enter_context(copy) for copy in opened], ""


def _reads(config) -> Callable[[str], bool]:
    """Whether a file of a run's folder is read, by its name: those of the run, what evaluations
    found, and the trainings that this one goes on with or tests."""
    trainings = []
    if isinstance(config.get("seeds"), tuple | list):  # else it is a field of another task
        trainings += [(seeds.task_of(config), seed) for seed in config.seeds]
    if "classifier_seed" in config and "classifier" in config:
        trainings.append((config.classifier, config.classifier_seed))
    folders = [f"{seeds.folder_of(Path(), *training, projected)}/"
               for training in trainings for projected in (False, True)]  # fmt: skip
    written = {name for task in TASKS.values() for name in task.files}

    def reads(name: str) -> bool:
        inside = next((name[len(f) :] for f in folders if name.startswith(f)), name)
        of_run = bucket_download.of_run(inside)
        return of_run or name in written or _FOUND.fullmatch(name) is not None

    return reads


def _each(chosen: Sequence[Subject], command: str) -> list[Path]:
    """Evaluates each, and compares them where there are several."""
    found = []
    for subject in chosen:
        with workdir_files.locked(subject.folder, f".lock_eval_{subject.config.task}"):
            evaluation = opened(subject)
            records.announce(subject, evaluation)
            found.append(records.evaluated(subject, evaluation, command))
    if len(chosen) > 1:
        records.compare(chosen, found, chosen[0].folder, command)
    return [subject.folder / records.result_name(subject.config) for subject in chosen]
