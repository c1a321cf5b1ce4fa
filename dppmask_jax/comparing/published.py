"""The files of results that page and figures are made from, and that are kept with the source.

comparison.csv has the values, a row each; comparison/images.csv which images were right, as base64
of packed bits; comparison/studies.json what the studies are and which of their runs are finished.
What is finished here is not run again, on any machine.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dppmask_jax import whole_files
from dppmask_jax.comparing import finished
from dppmask_jax.comparing import study as studies
from dppmask_jax.comparing.finished import Found, Kept, Where
from dppmask_jax.comparing.outcomes import Outcome, check, named
from dppmask_jax.comparing.study import Study
from dppmask_jax.errors import InputError

VALUES = "comparison.csv"
IMAGES = "comparison/images.csv"
STUDIES = "comparison/studies.json"
_KEY = ("study", "method", "masker", "seed", "evaluation")


class Published(NamedTuple):
    """{study: what it is, see `_about`}, and {study: its outcomes}."""

    about: Mapping[str, Mapping[str, Any]] = {}
    outcomes: Mapping[str, Sequence[Outcome]] = {}


def read(folder: Path) -> Published:
    """What `keep` wrote into a folder; nothing where there is none.

    Raises:
      InputError: a file is missing beside the others, or damaged.
    """
    paths = [folder / name for name in (STUDIES, VALUES, IMAGES)]
    if not any(path.exists() for path in paths):
        return Published()
    try:
        about = json.loads(paths[0].read_text())
        right = {
            tuple(row[name] for name in _KEY): _unpacked(row["right"], int(row["images"]))
            for row in csv.DictReader(io.StringIO(paths[2].read_text()))
        }
        found: dict[str, list[Outcome]] = {name: [] for name in about}
        told = {who for name, of_study in about.items() for who in _told(name, of_study)}
        for row in csv.DictReader(io.StringIO(paths[1].read_text())):
            who = row["method"], row["masker"], int(row["seed"]), row["evaluation"]
            images = right.get(tuple(row[name] for name in _KEY))
            outcome = Outcome(*who, float(row["value"]), images)
            # Others were being written when their process was killed.
            if (row["study"], *who) in told:
                told.remove((row["study"], *who))
                check(outcome)
                found[row["study"]].append(outcome)
            elif who in [other[:4] for other in found.get(row["study"], ())]:
                raise ValueError(f"{named(outcome)} is there twice")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} holds damaged results of comparisons ({error!r}); restore {VALUES}, "
            f"{IMAGES} and {STUDIES}, or move them away"
        ) from error
    return Published(about, found)


def _told(name: str, about: Mapping[str, Any]) -> Iterator[tuple]:
    """(study, method, masker, seed, evaluation) of all that is finished of a study.

    Raises:
      KeyError, TypeError, AttributeError, ValueError: something that is read later is missing.
    """
    _ = [about[field] for field in ("title", "about", "base", "seeds", "labels", "methods")]
    _ = [dict(about["definition"][group]) for group in studies.GROUPS]
    _ = [(score["name"], score["in_percent"]) for score in about["scores"].values()]
    for run in about["runs"]:
        _ = run["name"], float(run["seconds"])
        for evaluation in run["evaluations"]:
            yield name, run["method"], run["masker"], run["seed"], evaluation


def kept(study: Study, there: Published, folder: Path) -> dict[str, Kept]:
    """The runs of a study that are there, whichever study they were run for, by the names of their
    folders, with the evaluations that this study has as well.

    Raises:
      InputError: there is another version of this study.
    """
    if study.name in there.about:
        changed = studies.changes(there.about[study.name]["definition"], study.definition)
        finished.check_same(study, changed, folder)
    wanted = study.definition["evaluations"]
    found: dict[str, Kept] = {}
    for name, about in there.about.items():
        theirs = about["definition"]["evaluations"]
        same = [evaluation for evaluation in wanted if theirs.get(evaluation) == wanted[evaluation]]
        of_run = {tuple(outcome[:4]): outcome for outcome in there.outcomes[name]}
        for run in about["runs"]:
            mine = dict(found[run["name"]].found) if run["name"] in found else {}
            for evaluation in same:
                outcome = of_run.get((run["method"], run["masker"], run["seed"], evaluation))
                if of_one := _found(evaluation, outcome, run, about["scores"]):
                    mine[evaluation] = of_one
            found[run["name"]] = Kept(mine, run["seconds"])
    return found


def _found(evaluation: str, outcome: Outcome | None, run, scores) -> Found | None:
    """What a run came to; None where it is not known: it is found out anew."""
    if evaluation not in run["evaluations"]:
        return None
    images = run.get("images", {}).get(evaluation, "")
    if outcome:
        score = scores[evaluation] | {"value": outcome.value}
        return Found(score, outcome.of_images, images)
    # A row may be missing where a process was killed between two files.
    return None if evaluation in scores else Found(None, images=images)


def keep(study: Study, where: Where, folder: Path) -> None:
    """Writes what is finished of a study into the files of a folder; what they have of other
    studies stays, and of seeds, maskers, methods and evaluations that the study does not ask for
    now. Each file is whole at any time."""
    there = read(folder)
    where = where._replace(kept=kept(study, there, folder))  # another process may have added runs
    about, found = _about(study, where), list(finished.outcomes(study, where))
    if study.name in there.about:
        about, found = _with_earlier(study, about, found, there)
    about = {**there.about, study.name: about}
    outcomes = {**there.outcomes, study.name: found}
    values, images = [], []
    for name in sorted(outcomes):
        for outcome in outcomes[name]:
            key = (name, outcome.method, outcome.masker, outcome.seed, outcome.evaluation)
            values.append((*key, repr(float(outcome.value))))
            if outcome.of_images is not None:
                images.append((*key, len(outcome.of_images), _packed(outcome.of_images)))
    (folder / IMAGES).parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(folder / IMAGES, _csv((*_KEY, "images", "right"), images))
    whole_files.write_text(folder / VALUES, _csv((*_KEY, "value"), values))
    whole_files.write_json(folder / STUDIES, {name: about[name] for name in sorted(about)})


def _about(study: Study, where: Where) -> dict[str, Any]:
    """What a study is, and which of its runs have finished evaluations."""
    runs, scores = [], {}
    for planned in study.runs:
        found = finished.found_of(study, planned, where)
        for evaluation, of_one in found.items():
            if of_one.score is not None and evaluation not in scores:
                described = ("name", "in_percent")
                scores[evaluation] = {name: of_one.score[name] for name in described}
        if found:
            runs.append(
                {
                    "name": planned.point.name,
                    "method": planned.method,
                    "masker": planned.masker,
                    "seed": planned.seed,
                    "evaluations": list(found),
                    "images": {name: of_one.images for name, of_one in found.items()},
                    "seconds": finished.seconds(planned, where),
                }
            )
    return {
        "title": study.title,
        "about": study.about,
        "base": study.base,
        "seeds": list(study.seeds),
        "labels": dict(study.labels),
        "methods": dict(study.methods),
        "scores": scores,
        "runs": runs,
        "definition": dict(study.definition),
    }


def _with_earlier(
    study: Study, about: dict[str, Any], outcomes: list[Outcome], there: Published
) -> tuple[dict[str, Any], list[Outcome]]:
    """What is kept of a study, with what there is of it beyond what it asks for now."""
    asked = {
        (run.method, run.masker, run.seed, evaluation)
        for run in study.runs
        for evaluation in study.evaluations
    }
    before = there.about[study.name]
    earlier = [outcome for outcome in there.outcomes[study.name] if outcome[:4] not in asked]
    kinds = {
        "methods": [outcome.method for outcome in earlier],
        "maskers": [outcome.masker for outcome in earlier],
        "evaluations": [outcome.evaluation for outcome in earlier],
    }

    def joined(group: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
        return {**new, **{name: old[name] for name in kinds[group] if name not in new}}

    runs = {run["name"]: run for run in about["runs"]}
    for run in before["runs"]:
        who = run["method"], run["masker"], run["seed"]
        more = [name for name in run["evaluations"] if (*who, name) not in asked]
        if more:
            now = runs.get(run["name"], run | {"evaluations": [], "images": {}})
            images = {name: run["images"][name] for name in more if name in run.get("images", {})}
            runs[run["name"]] = now | {
                "evaluations": [*now["evaluations"], *more],
                "images": now["images"] | images,
            }
    definition = about["definition"] | {
        group: joined(group, about["definition"][group], before["definition"][group])
        for group in kinds
    }
    return about | {
        "seeds": sorted({*about["seeds"], *(outcome.seed for outcome in earlier)}),
        "labels": joined("maskers", about["labels"], before["labels"]),
        "methods": joined("methods", about["methods"], before["methods"]),
        "scores": joined("evaluations", about["scores"], before["scores"]),
        "runs": list(runs.values()),
        "definition": definition,
    }, [*outcomes, *earlier]


def _csv(heading: Sequence[str], rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return text.getvalue()


def _packed(right: np.ndarray) -> str:
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def _unpacked(text: str, count: int) -> np.ndarray:
    bits = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)
