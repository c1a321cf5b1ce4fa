"""The files of results that page and figures are made from, and that are kept with the source.

comparison.csv has the values, a row each; comparison_images.csv which images were right, as base64
of packed bits; comparison.json what the studies are.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dppmask_jax import whole_files
from dppmask_jax.comparing.outcomes import Outcome
from dppmask_jax.errors import InputError

VALUES = "comparison.csv"
IMAGES = "comparison_images.csv"
STUDIES = "comparison.json"
_KEY = ("study", "method", "masker", "seed", "evaluation")


def read(folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[Outcome]]]:
    """({study: what it is}, {study: its outcomes}), as `write` kept them; both empty where there is
    nothing.

    Raises:
      InputError: a file is missing beside the others, or damaged.
    """
    paths = [folder / name for name in (STUDIES, VALUES, IMAGES)]
    if not any(path.exists() for path in paths):
        return {}, {}
    try:
        about = json.loads(paths[0].read_text())
        right = {
            tuple(row[name] for name in _KEY): _unpacked(row["right"], int(row["images"]))
            for row in csv.DictReader(io.StringIO(paths[2].read_text()))
        }
        found: dict[str, list[Outcome]] = {name: [] for name in about}
        for row in csv.DictReader(io.StringIO(paths[1].read_text())):
            key = tuple(row[name] for name in _KEY)
            found[row["study"]].append(
                Outcome(
                    row["method"],
                    row["masker"],
                    int(row["seed"]),
                    row["evaluation"],
                    float(row["value"]),
                    right.get(key),
                )
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} holds damaged results of comparisons ({error!r}); restore {VALUES}, "
            f"{IMAGES} and {STUDIES}, or move them away"
        ) from error
    return about, found


def write(folder: Path, about: Mapping[str, Mapping], found: Mapping[str, Iterable[Outcome]]):
    """Writes the three files anew, studies in the order of their names, each file whole."""
    values, images = [], []
    for study in sorted(found):
        for outcome in found[study]:
            key = (study, outcome.method, outcome.masker, outcome.seed, outcome.evaluation)
            values.append((*key, repr(float(outcome.value))))
            if outcome.of_images is not None:
                images.append((*key, len(outcome.of_images), _packed(outcome.of_images)))
    folder.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(folder / IMAGES, _csv((*_KEY, "images", "right"), images))
    whole_files.write_text(folder / VALUES, _csv((*_KEY, "value"), values))
    whole_files.write_json(folder / STUDIES, {name: about[name] for name in sorted(about)})


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
