"""The folder of a comparison: which runs of a study are finished in it, and what they found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dppmask_jax import whole_files
from dppmask_jax.comparing import study as studies
from dppmask_jax.comparing.outcomes import Outcome
from dppmask_jax.comparing.study import Planned, Study
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs import workdir

_SPENT = "spent.json"  # in the folder of a run: {"seconds": all that it took, over its starts}
Records = Mapping[str, Mapping[str, Any]]  # of a run: {name of an evaluation: its record}


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
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(
                f"{folder} holds another version of study {study.name} "
                f"({'; '.join(changed[:3])}{more}); name another folder, or go back to that one"
            )
    if replace:
        folder.mkdir(parents=True, exist_ok=True)
        whole_files.write_json(path, study.definition)


def records_of(study: Study, planned: Planned, folder: Path) -> dict[str, dict[str, Any]]:
    """{name of an evaluation: record} of what is done of a run in a folder."""
    found = {}
    for name, config in study.evaluations.items():
        path = folder / planned.point.name / f"eval_{study.records[name]}.json"
        try:
            record = json.loads(path.read_text())
            files = [path.parent / file for file in record["files"]]
            there = record["config"], record["checkpoint"]["config"]
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


def is_finished(study: Study, planned: Planned, folder: Path) -> bool:
    """Whether all evaluations of a run are done in a folder."""
    return len(records_of(study, planned, folder)) == len(study.evaluations)


def outcomes(study: Study, folder: Path) -> Iterator[Outcome]:
    """What was found so far, run by run in the study's order."""
    for planned in study.runs:
        for name, record in records_of(study, planned, folder).items():
            images = folder / planned.point.name / f"eval_{study.records[name]}_images.npy"
            of_images = np.load(images) if images.name in record["files"] else None
            if of_images is not None and of_images.dtype != bool:
                of_images = None
            yield Outcome(
                planned.method,
                planned.masker,
                planned.seed,
                name,
                record["score"]["value"],
                of_images,
            )


def score_of(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """{name of an evaluation: the score of its first record, see `evals.base.Score`}."""
    found: dict[str, dict[str, Any]] = {}
    for planned in study.runs:
        for name, record in records_of(study, planned, folder).items():
            found.setdefault(name, record["score"])
        if len(found) == len(study.evaluations):
            break
    return {name: found[name] for name in study.evaluations if name in found}


def merge(study: Study, other: Path, folder: Path) -> int:
    """Copies what another folder has of the study, and this one not: results, no checkpoints.

    Returns:
      How many runs were copied.

    Raises:
      InputError: the other folder holds another version of the study, or nothing of it.
    """
    if not (other / f"study_{study.name}.json").exists():
        raise InputError(f"--merge={other} holds nothing of study {study.name}")
    open_folder(study, other, replace=False)
    copied = 0
    for planned in study.runs:
        there = records_of(study, planned, other)
        if not there or is_finished(study, planned, folder):
            continue
        source, target = (root / planned.point.name for root in (other, folder))
        names = [f"eval_{study.records[name]}.json" for name in there]
        files = [file for record in there.values() for file in record["files"]]
        for name in (*files, _SPENT, *names):  # the records last: what they speak of is there
            if (source / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with whole_files.replacing(target / name) as partial:
                    shutil.copyfile(source / name, partial)
        copied += 1
    return copied


def seconds(planned: Planned, folder: Path) -> float:
    """What a run took so far; 0 where that is not known."""
    try:
        return float(json.loads((folder / planned.point.name / _SPENT).read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def add_seconds(planned: Planned, folder: Path, spent: float) -> None:
    """Adds to what a run took."""
    path = folder / planned.point.name / _SPENT
    if path.parent.is_dir():
        whole_files.write_json(path, {"seconds": round(seconds(planned, folder) + spent, 1)})
