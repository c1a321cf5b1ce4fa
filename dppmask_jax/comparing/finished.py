"""Which runs of a study are finished, and what they found: in the folder of a comparison, or in the
files of results that are kept without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax import whole_files
from dppmask_jax.comparing import study as studies
from dppmask_jax.comparing.outcomes import Outcome
from dppmask_jax.comparing.study import Planned, Study
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs import workdir

_SPENT = "spent.json"  # in the folder of a run: {"seconds": all that it took, over its starts}


class Found(NamedTuple):
    """What one evaluation of a run came to, without a score where `score` is None.

    Attributes:
      score: as `evals.base.Score`, a dict.
      of_images: see `Outcome`.
      images: identity of the images that were read, "" where that is not known.
    """

    score: Mapping[str, Any] | None
    of_images: np.ndarray | None = None
    images: str = ""


class Kept(NamedTuple):
    """What the files of results have of a run: {evaluation: found}, and what it took."""

    found: Mapping[str, Found]
    seconds: float


class Where(NamedTuple):
    """Where finished runs are looked for: in a folder, and among those that are kept, by the names
    of their folders."""

    folder: Path
    kept: Mapping[str, Kept]


def open_folder(study: Study, folder: Path, replace: bool = True) -> None:
    """Makes the folder, and writes down what the study is.

    Args:
      replace: whether maskers, methods and evaluations that came later are written down.

    Raises:
      InputError: the folder holds another version of the study, or cannot be written.
    """
    workdir.check_folder(folder)
    path = folder / f"study_{study.name}.json"
    if path.exists():
        try:
            old = json.loads(path.read_text())
            changed = studies.changes(old, study.definition)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged ({error!r}); move it away to take the study as it is now"
            ) from error
        check_same(study, changed, folder)
    if replace:
        folder.mkdir(parents=True, exist_ok=True)
        whole_files.write_json(path, study.definition)


def check_same(study: Study, changed: list[str], where: Path) -> None:
    """Raises InputError where a folder holds a version of a study that differs."""
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{where} holds another version of study {study.name} "
            f"({'; '.join(changed[:3])}{more}); name another folder, or go back to that one"
        )


def records_of(study: Study, planned: Planned, folder: Path) -> dict[str, dict[str, Any]]:
    """{name of an evaluation: record} of what is done of a run in a folder."""
    found = {}
    for name, config in study.evaluations.items():
        path = folder / planned.point.name / f"eval_{study.records[name]}.json"
        try:
            record = json.loads(path.read_text())
            files = [path.parent / file for file in record["files"]]
            there = record["config"], record["checkpoint"]["config"]
            _ = record["score"], record["identity"]
            for file in files:
                if file.suffix == ".npy":
                    np.load(file, allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged one
            continue
        wanted = subjects.completed(config, planned.point.config), planned.point.config
        same = all(
            studies.kept(workdir.from_json(old)) == studies.kept(new)
            for old, new in zip(there, wanted, strict=True)
        )
        if same and all(file.is_file() for file in files):
            found[name] = record
    return found


def found_of(study: Study, planned: Planned, where: Where) -> dict[str, Found]:
    """{name of an evaluation: what it came to} of what is done of a run, in the study's order."""
    name = planned.point.name
    found = dict(where.kept[name].found) if name in where.kept else {}
    for evaluation, record in records_of(study, planned, where.folder).items():
        images = where.folder / name / f"eval_{study.records[evaluation]}_images.npy"
        right = np.load(images, allow_pickle=False) if images.name in record["files"] else None
        if right is not None and right.dtype != bool:
            right = None  # a share over several seeds of an evaluation
        score = record["score"]
        if score and score["value"] is None:
            score = None  # it was not finite
        found[evaluation] = Found(score, right, record["identity"])
    return {
        evaluation: found[evaluation] for evaluation in study.evaluations if evaluation in found
    }


def is_finished(study: Study, planned: Planned, where: Where) -> bool:
    """Whether all evaluations of a run are done."""
    return len(found_of(study, planned, where)) == len(study.evaluations)


def check_images(
    runs: Sequence[Planned],
    seen: Mapping[str, str],
    to_come: Mapping[str, str],
    words: str,
) -> None:
    """Raises InputError where finished runs of a method saw other images than those to come.

    Args:
      seen, to_come: {name of a run's folder: identity of the images of one evaluation}; "" where
        that is not known.
      words: what messages call the evaluation.
    """
    of_method: dict[str, str] = {}
    for run in runs:
        images = seen.get(run.point.name)
        if images and of_method.setdefault(run.method, images) != images:
            raise InputError(
                f"{words}: finished runs saw different images, and cannot be compared; take one of "
                "the folders that were merged, or the results of one of them"
            )
    for run in runs:
        wanted = of_method.get(run.method)
        if wanted and to_come.get(run.point.name, wanted) != wanted:
            raise InputError(
                f"{words}: the images are not those of the runs that are finished; name these, or "
                "another --workdir and --results"
            )


def outcomes(study: Study, where: Where) -> Iterator[Outcome]:
    """What was found so far, run by run in the study's order."""
    for planned in study.runs:
        for name, found in found_of(study, planned, where).items():
            if found.score is not None:
                who = planned.method, planned.masker, planned.seed, name
                yield Outcome(*who, found.score["value"], found.of_images)


def merge(study: Study, other: Path, where: Where) -> int:
    """Copies what another folder has of the study, and this one not: results, no checkpoints.

    Returns:
      How many runs were copied.

    Raises:
      InputError: the other folder holds another version of the study, or nothing of it.
    """
    if not (other / f"study_{study.name}.json").exists():
        raise InputError(f"--merge={other} holds nothing of study {study.name}")
    open_folder(study, other, replace=False)
    open_folder(study, where.folder)
    copied = 0
    for planned in study.runs:
        here = found_of(study, planned, where)
        there = {
            name: record
            for name, record in records_of(study, planned, other).items()
            if name not in here
        }
        if not there:
            continue
        source, target = (root / planned.point.name for root in (other, where.folder))
        names = [f"eval_{study.records[name]}.json" for name in there]
        files = [file for record in there.values() for file in record["files"]]
        spent = [] if here else [_SPENT]
        for name in (*files, *spent, *names):  # the records last: what they speak of is there
            if (source / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with whole_files.replacing(target / name) as partial:
                    shutil.copyfile(source / name, partial)
        copied += 1
    return copied


def seconds(planned: Planned, where: Where) -> float:
    """What a run took so far; 0 where that is not known."""
    path = where.folder / planned.point.name / _SPENT
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        kept = where.kept.get(planned.point.name)
        return kept.seconds if kept else 0.0


def add_seconds(planned: Planned, where: Where, spent: float) -> None:
    """Adds to what a run took."""
    path = where.folder / planned.point.name / _SPENT
    if path.parent.is_dir():
        whole_files.write_json(path, {"seconds": round(seconds(planned, where) + spent, 1)})
