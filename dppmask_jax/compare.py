"""Pre-trains and evaluates under many maskers, with seeds, and says which differences are real.

    dppmask compare --study=cpu --workdir=runs/compare \\
        --study.source=folder:IMAGES --jobs=2 --results=docs/results --page=docs/comparison.md

--study is a study or its file, with overrides such as --study.seeds=(0,1,2,3,4). Runs of one seed
have the same start, images, crops and noise under every masker. WORKDIR receives a folder for each
run, which train.py and eval.py can work in as well; several studies may share it, and so the runs
that they have in common. The same command goes on where it was interrupted, and so does one with
more seeds, maskers or evaluations; what is finished is left alone.

--jobs=N        N runs side by side, each with its share of the cores
--part=I/N      the I-th of N parts, 1 to N, of the runs: for several machines
--merge=FOLDER  takes over what a folder of another machine has finished (several: commas between)
--list          says what is left and how long it will take, and ends
--results=DIR   keeps comparison.csv and comparison/ there up to date, run by run
--page=FILE     writes the page from these files, and its figures beside it; alone it needs no study
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path
from typing import NamedTuple

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from absl import flags

from dppmask_jax import command as command_line
from dppmask_jax import joining, parallel, paths
from dppmask_jax.comparing import finished, published, side_by_side, writing
from dppmask_jax.comparing import study as studies
from dppmask_jax.comparing.finished import Where
from dppmask_jax.comparing.study import Planned, Study
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.evals.base import percent
from dppmask_jax.evaluating.subjects import say
from dppmask_jax.runs import workdir
from dppmask_jax.sweeps import points
from dppmask_jax.training import loop
from dppmask_jax.words import count

_USUAL = "python -m dppmask_jax.compare"


class How(NamedTuple):
    """How the runs of a study are carried out.

    Attributes:
      jobs: how many side by side.
      part, parts: which part of the runs.
      results: the folder of the files of results, None for none.
    """

    jobs: int = 1
    part: int = 1
    parts: int = 1
    results: Path | None = None

    def mine(self, study: Study) -> tuple[Planned, ...]:
        """The runs of the part: of each seed another share of the maskers, so that none of them is
        one machine's alone."""
        of_seed = len(study.runs) // len(study.seeds)
        return tuple(
            run
            for number, run in enumerate(study.runs)
            if (number + number // of_seed) % self.parts == self.part - 1
        )


def compare(study: Study, folder: Path, how: How, command: list[str]) -> None:
    """Runs what is left of a study.

    Args:
      folder: receives the folders of the runs.
      command: the words that start this process, for those side by side.

    Raises:
      InputError: the data or a folder is wrong; nothing was trained.
      Stopped: by a signal, or because runs failed.
    """
    side_by_side.check_jobs(how.jobs)
    with workdir.locked(folder, f".lock_{study.name}_{how.part}_of_{how.parts}"):
        where = look(study, folder, how.results)
        left = [run for run in how.mine(study) if not finished.is_finished(study, run, where)]
        check(study, left, where)
        finished.open_folder(study, folder)
        _keep(study, where, how.results)
        say(progress(study, where, how))
        run = _one_by_one if how.jobs == 1 else _side_by_side
        failed = run(study, left, where, how, command)
    if failed:
        names = ", ".join(planned.point.name for planned in failed)
        see = f"; see {side_by_side.LOG} in their folders in {folder}" if how.jobs > 1 else ""
        raise Stopped(f"{count(len(failed), 'run')} of {len(left)} failed: {names}{see}", 1)


def look(study: Study, folder: Path, results: Path | None) -> Where:
    """Where runs of a study may be finished.

    Raises:
      InputError: the folder or the files of results hold another version of the study.
    """
    finished.open_folder(study, folder, replace=False)
    kept = published.kept(study, published.read(results), results) if results else {}
    return Where(folder, kept)


def check(study: Study, left: list[Planned], where: Where) -> None:
    """Raises InputError where the data or the folders of runs are wrong."""
    found = {run.point.name: finished.found_of(study, run, where) for run in study.runs}
    for name, config in study.evaluations.items():
        words = f"study.evaluations.{name}"
        missing = [run.point for run in left if name not in found[run.point.name]]
        seen = {run: of_run[name].images for run, of_run in found.items() if name in of_run}
        to_come = points.check_data(missing, config, where.folder, words)
        finished.check_images(study.runs, seen, to_come, words)
    points.check_folders([planned.point for planned in left], where.folder)


def run_one(study: Study, planned: Planned, where: Where, command: str) -> None:
    """Trains and evaluates one run, as far as it is not done, and adds up what it takes."""
    done = finished.records_of(study, planned, where.folder)
    evaluations = {study.records[name]: config for name, config in study.evaluations.items()}
    there = {study.records[name]: record for name, record in done.items()}
    start = time.monotonic()
    try:
        points.run(planned.point, evaluations, there, where.folder / planned.point.name, command)
    finally:
        if parallel.is_main():
            finished.add_seconds(planned, where, time.monotonic() - start)


def progress(study: Study, where: Where, how: How) -> str:
    """What is left of the runs and how long it will take, in words."""
    mine = how.mine(study)
    done = [planned for planned in mine if finished.is_finished(study, planned, where)]
    left = len(mine) - len(done)
    spent = [seconds for planned in done if (seconds := finished.seconds(planned, where))]
    line = f"study {study.name}: {len(done)} of {count(len(mine), 'run')} finished"
    if spent:
        line += f", {_hours(sum(spent))} of runs"
    if left and spent:
        line += f"; {left} left, about {_hours(left * sum(spent) / len(spent) / how.jobs)}"
    return line


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _one_by_one(study, left, where, how, command) -> list[Planned]:
    failed = []
    for number, planned in enumerate(left, 1):
        say(f"run {number} of {len(left)}: {_words(study, planned)}, in {planned.point.name}")
        try:
            run_one(study, planned, where, _typed())
        except (InputError, loop.TrainingDiverged) as error:  # of this run alone
            failed.append(planned)
            say(f"failed: {planned.point.name}: {error}")
        else:
            _ended(study, planned, where, how)
    return failed


def _side_by_side(study, left, where, how, command) -> list[Planned]:
    failed = []
    commands = [[*command, f"--run={planned.point.name}"] for planned in left]
    logs = [where.folder / planned.point.name / side_by_side.LOG for planned in left]
    for number, status in side_by_side.run_all(commands, logs, how.jobs):
        planned = left[number]
        if status:
            failed.append(planned)
            last = side_by_side.last_line(logs[number])
            say(f"failed with status {status}: {planned.point.name}: {last}")
        else:
            _ended(study, planned, where, how)
    return failed


def _ended(study: Study, planned: Planned, where: Where, how: How) -> None:
    if not parallel.is_main():
        return
    scores = [
        f"{name} {_score(found.score)}"
        for name, found in finished.found_of(study, planned, where).items()
        if found.score is not None
    ]
    took = _hours(finished.seconds(planned, where))
    say(f"finished: {_words(study, planned)}, {took}; {', '.join(scores)}")
    say(progress(study, where, how))
    _keep(study, where, how.results)


def _score(score) -> str:
    if not score["in_percent"]:
        return f"{score['value']:.4g}"
    return percent(score["value"], score.get("standard_error"))


def _words(study: Study, planned: Planned) -> str:
    return f"{planned.method}, {study.labels[planned.masker]}, seed {planned.seed}"


def _keep(study: Study, where: Where, results: Path | None) -> None:
    if results is not None and parallel.is_main():
        published.keep(study, where, results)


def main() -> None:
    """Compares; see the module's docstring."""
    config = command_line.define_config_flag("study", "STUDY, or the FILE of one.")
    folder = flags.DEFINE_string("workdir", None, "Where the runs are; resumed if there.")
    jobs = flags.DEFINE_integer("jobs", 1, "Runs side by side.", lower_bound=1)
    part = flags.DEFINE_string("part", "1/1", "I/N: the I-th of N parts of the runs.")
    merge = flags.DEFINE_string("merge", "", "Folders whose finished runs are taken over.")
    listed = flags.DEFINE_boolean("list", False, "Say what is left, and end.")
    results = flags.DEFINE_string("results", "", "Folder of the files of results.")
    page = flags.DEFINE_string("page", "", "The page that is written from --results.")
    one = flags.DEFINE_string("run", "", "The one run that this process does, for --jobs.")
    processes = command_line.define_process_flags()

    def run(_):
        if page.value and not results.value:
            raise InputError("--page is made from --results: name their folder, as docs/results")
        if config.value is None:
            if not page.value:
                raise InputError(command_line.missing_config("study", "cpu"))
            return _write_page(Path(results.value), Path(page.value))
        if not folder.value:
            raise InputError("--workdir is missing: name a folder, such as runs/compare")
        joining.initialize(*processes())
        study = studies.read(config.value)
        how = How(jobs.value, *_part(part.value), Path(results.value) if results.value else None)
        target = Path(folder.value)
        if one.value:
            planned = _run_of(study, one.value)
            side_by_side.end_with_parent()
            return run_one(study, planned, Where(target, {}), _typed())
        for note in study.left_out:
            say(f"left out: {note}")
        if merge.value and listed.value:
            raise InputError("--list changes nothing, and --merge does; leave one out")
        for other in paths.split(merge.value):
            taken = finished.merge(study, Path(other), look(study, target, how.results))
            say(f"{count(taken, 'run')} of {other} taken over")
        if listed.value:
            _list(study, target, how)
        else:
            compare(study, target, how, _command(sys.argv))
        if page.value and parallel.is_main():
            _write_page(Path(results.value), Path(page.value))
        return None

    command_line.run(run, _USUAL, __doc__)


def _run_of(study: Study, name: str) -> Planned:
    for planned in study.runs:
        if planned.point.name == name:
            return planned
    raise InputError(f"--run={name} is none of study {study.name}; --list shows them")


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise InputError(f"--part={text} is no part: write I/N, I from 1 to N, such as 1/2")
    return part, parts


def _command(argv: list[str]) -> list[str]:
    """The words that start this command anew, for one run."""
    ours = re.compile(r"--?(jobs|part|merge|results|page)(=.*)?", re.DOTALL)
    words, kept = iter(argv[1:]), []
    for word in words:
        if found := ours.fullmatch(word):
            if found[2] is None:
                next(words, None)  # the value stands in a word of its own
        else:
            kept.append(word)
    return [sys.executable, "-m", "dppmask_jax.compare", *kept]


def _typed() -> str:
    return shlex.join(command_line.words(_USUAL))


def _list(study: Study, folder: Path, how: How) -> None:
    where = look(study, folder, how.results)
    for planned in how.mine(study):
        state = "left"
        if finished.is_finished(study, planned, where):
            state = "finished"
        elif (folder / planned.point.name / "metrics.jsonl").exists():
            state = "begun"
        say(f"{state:9} {planned.point.name}  {_words(study, planned)}")
    say(progress(study, where, how))


def _write_page(results: Path, page: Path) -> None:
    for path in writing.write(page, published.read(results)):
        say(f"written {path}")


if __name__ == "__main__":
    main()
