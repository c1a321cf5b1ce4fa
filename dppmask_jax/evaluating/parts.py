"""A task that runs others and ends in one page: each part is run as if it were alone, once.

A part whose record is there, of the same encoder, images and settings, is not run again, so that
the same command goes on after an interruption.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dppmask_jax import parallel, whole_files
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.evals.base import Part
from dppmask_jax.evaluating import records
from dppmask_jax.evaluating.subjects import (
    Subject,
    evaluation_of,
    loaded,
    say,
    subjects,
)
from dppmask_jax.runs import bucket_copy, comparable, encoder_files
from dppmask_jax.runs import workdir as workdir_files
from dppmask_jax.tasks import TASKS, checks
from dppmask_jax.words import count


class _Step(NamedTuple):
    """A part of a subject: its record where it is done, or why it is left out."""

    part: str
    subject: Subject
    record: Mapping[str, Any] | None = None
    left_out: str = ""

    @property
    def is_open(self) -> bool:
        return self.record is None and not self.left_out


class _Plan(NamedTuple):
    """The steps of a subject, its encoder in words, and the step of the checkpoint looked at."""

    subject: Subject
    encoder: str
    checkpoint_step: int
    steps: list[_Step]


def evaluate(
    config, checkpoints: Sequence[Path], workdir: str | Path = "", command: str = ""
) -> Path:
    """Runs the parts of `config.task` on some runs and writes their page.

    Args:
      workdir: where the page is written; "" is the folder of the first run. The results of the runs
        lie in their own folders, with a workdir in it, with several runs in folders of it that have
        their names.

    Returns:
      The path of the page.

    Raises:
      InputError: a config is wrong, an encoder or images cannot be read or do not fit a field, a
        part would write over the projection, or nothing can be run, before any part was; every part
        turned out to have nothing to read; a training saved a newer checkpoint meanwhile; or as for
        the parts.
    """
    together = TASKS[config.task].together
    folders = [encoder_files.results_of(checkpoint) for checkpoint in checkpoints]
    home = Path(workdir or folders[0])
    if workdir:
        several = len(checkpoints) > 1
        folders = [home / name if several else home for name in comparable.labels(checkpoints)]
    for folder in (home, *folders):
        workdir_files.check_folder(folder)
    configs = _configs(config)
    with workdir_files.locked(home, f".lock_eval_{config.task}"):
        plans = [_plan(subject, configs) for subject in subjects(config, checkpoints, folders)]
        _check_any(config, plans)
        _check_overwritten(plans)
        plans = _run(plans, command)
        _check_any(config, plans)
        page = home / together.file
        if parallel.is_main():
            found = [_part(name, plans, home, command) for name in configs]
            encoders = {plan.subject.name: plan.encoder for plan in plans}
            text = together.page(found, encoders, command)
            home.mkdir(parents=True, exist_ok=True)
            whole_files.write_text(page, text)
            say(f"page    {bucket_copy.named(page)}")
    return page


def _configs(config) -> dict[str, Any]:
    """{part: its checked config}; that of a part which a projection does not change has none."""
    together, found = TASKS[config.task].together, {}
    for part in together.parts(config):
        allowed = checks.fields_of(part)
        passed = together.passed(config, part)
        values = {name: value for name, value in passed.items() if name in allowed}
        built = checks.defaults(part)
        with built.unlocked():
            built.update_from_flattened_dict(values)
        if TASKS[part].unprojected(built):
            built.projection = ""
        try:
            checks.check(built)
        except InputError as error:
            raise InputError(f"{part}: {error}") from error
        found[part] = built
    if config.projection and not any(built.projection for built in found.values()):
        raise InputError(
            f"config.projection={config.projection} changes none of {', '.join(found)}; leave it "
            "out, or add others to config.tasks"
        )
    return found


def _plan(subject: Subject, configs: Mapping[str, Any]) -> _Plan:
    """What there is to do, checked."""
    shared, steps = loaded(subject), []
    for part, config in configs.items():
        if subject.config.projection and not config.projection:
            continue
        of_part = subject.with_config(config)
        if not config.projection:
            of_part = of_part._replace(which="")
        evaluation, found = evaluation_of(of_part, shared), {}

        def look(of_part=of_part, evaluation=evaluation, found=found) -> int:
            found["record"] = records.finished(of_part, evaluation)
            return int(found["record"] is not None)

        step = _Step(part, of_part)
        if parallel.decided_by_main(look):
            step = step._replace(record=found.get("record", {}))
        else:
            try:
                TASKS[part].check(evaluation)
            except NotServed as why:
                step = step._replace(left_out=str(why))
        steps.append(step)
    step = shared.run.step
    return _Plan(subject, f"{records.named(shared.run)}, step {step:,}", step, steps)


def _check_any(config, plans: Sequence[_Plan]) -> None:
    """Raises InputError where every step is left out: no page would have anything on it."""
    steps = [step for plan in plans for step in plan.steps]
    if all(step.left_out for step in steps):
        raise InputError(
            f"task {config.task} has nothing to run, all {count(len(steps), 'part')} are left out; "
            f"{steps[0].part}: {steps[0].left_out}"
        )


def _check_overwritten(plans: Sequence[_Plan]) -> None:
    """Raises InputError where a part is about to write over a projection that others read."""
    used = {plan.subject.config.projection for plan in plans} - {""}
    for step in (step for plan in plans for step in plan.steps if step.is_open):
        written = {(step.subject.folder / name).resolve() for name in TASKS[step.part].files}
        for path in sorted(used):
            if Path(path).resolve() in written:
                raise InputError(
                    f"task {step.part} would write over config.projection={path}; copy that file "
                    f"elsewhere and name the copy, or leave {step.part} out of config.tasks"
                )


def _run(plans: Sequence[_Plan], command: str) -> list[_Plan]:
    """The plans with every step done or left out."""
    total = sum(step.is_open for plan in plans for step in plan.steps)
    numbers = iter(range(1, total + 1))
    return [plan._replace(steps=list(_steps(plan, numbers, total, command))) for plan in plans]


def _steps(plan: _Plan, numbers: Iterator[int], total: int, command: str) -> Iterator[_Step]:
    shared = None
    for step in plan.steps:
        if step.left_out:
            say(f"{step.part}: left out of {step.subject.label}: {step.left_out}")
        elif step.record is not None:
            name = records.result_name(step.subject.config)
            say(f"{step.part}: done, {bucket_copy.named(step.subject.folder / name)}")
        else:
            if shared is None:
                shared = loaded(plan.subject)
                _check_unchanged(plan, shared.run.step)
                first = evaluation_of(plan.subject, shared)
                records.announce(plan.subject, first)
            began = time.monotonic()
            say(f"\npart {next(numbers)} of {total}: {step.part} of {step.subject.label}")
            step = _done(step, evaluation_of(step.subject, shared), command)
            say(f"{step.part}: {time.monotonic() - began:.0f} s")
        yield step


def _check_unchanged(plan: _Plan, step: int) -> None:
    """Raises InputError where another checkpoint was read than when the plan was made: parts that
    are done would be of the one, the others of the other."""
    if step != plan.checkpoint_step:
        raise InputError(
            f"the newest checkpoint of {plan.subject.checkpoint} was step "
            f"{plan.checkpoint_step:,} and now is step {step:,}; run the command again when the "
            "training has ended, or evaluate a copy of the run"
        )


def _done(step: _Step, evaluation, command: str) -> _Step:
    with workdir_files.locked(step.subject.folder, f".lock_eval_{step.part}"):
        try:
            return step._replace(record=records.evaluated(step.subject, evaluation, command))
        except NotServed as why:  # images that cannot be read
            return step._replace(left_out=str(why))


def _part(name: str, plans: Sequence[_Plan], home: Path, command: str) -> Part:
    """What was found of a part, compared where it is of several subjects."""
    steps = [step for plan in plans for step in plan.steps if step.part == name]
    left_out = {step.subject.label: step.left_out for step in steps if step.left_out}
    steps = [step for step in steps if not step.left_out]
    table: Sequence[Sequence[str]] = []
    figures: dict[str, str] = {}
    pictures: dict[str, dict[str, str]] = {}
    if len(steps) > 1:
        of_runs = [step.subject for step in steps]
        table, drawn = records.compare(of_runs, [step.record for step in steps], home, command)
        figures = {figure: _from(home, path) for figure, path in drawn.items()}
    elif steps:
        table = steps[0].record["table"]
    for step in steps:
        folder = step.subject.folder
        start = "projected_" * bool(step.subject.config.projection)
        for file in step.record["files"]:
            figure = Path(file).name.removeprefix(start)
            if Path(file).suffix == ".png" and figure not in figures:
                of_figure = pictures.setdefault(figure, {})
                of_figure[step.subject.label] = _from(home, folder / file)
    found = {step.subject.label: step.record for step in steps}
    return Part(name, found, table, figures, pictures, left_out)


def _from(home: Path, path: Path) -> str:
    return os.path.relpath(path, home)
