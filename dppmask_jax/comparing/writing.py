"""The page of a comparison and its figures, from the files of results alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dppmask_jax import whole_files
from dppmask_jax.comparing import drawing, page
from dppmask_jax.comparing.describing import Description
from dppmask_jax.comparing.outcomes import Measure, Outcome
from dppmask_jax.comparing.published import Published
from dppmask_jax.comparing.statistics import differences
from dppmask_jax.errors import InputError
from dppmask_jax.figures import panels

_HIDDEN = "hidden"  # the task that measures masks and not encoders


def write(path: Path, there: Published) -> list[Path]:
    """Writes the page and, beside it, the forest plot of each study that has differences.

    Returns:
      The paths, the page first.

    Raises:
      InputError: there are no results.
    """
    if not there.about:
        raise InputError("--results holds no results of comparisons; run a study with it first")
    descriptions, outcomes, figures, drawn = {}, {}, {}, []
    for name, about in there.about.items():
        descriptions[name] = _description(about, there.outcomes[name])
        of_masks = _of_masks(about)
        outcomes[name] = [each for each in there.outcomes[name] if each.evaluation not in of_masks]
        if differences(outcomes[name], about["base"]):
            figure = drawing.draw(descriptions[name], outcomes[name])
            file = f"{path.stem}_{name}.png"
            drawn.append(panels.save(figure, path.parent, file))
            figures[name] = file
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(path, page.page(descriptions, outcomes, figures))
    return [path, *drawn]


def _description(about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> Description:
    hours = sum(run["seconds"] for run in about["runs"]) / 3600
    wanted = len(about["seeds"]) * len(about["labels"]) * len(about["methods"])
    of_masks = _of_masks(about)
    lost: dict[str, dict[str, list[float]]] = {}
    for outcome in outcomes:
        if outcome.evaluation in of_masks:
            of_method = lost.setdefault(outcome.method, {})
            of_method.setdefault(outcome.masker, []).append(outcome.value)
    ran = f"{len(about['runs'])} of {wanted} runs, {hours:.1f} hours of them."
    return Description(
        about["title"],
        tuple(filter(None, (about["about"], ran))),
        about["labels"],
        about["methods"],
        {
            name: Measure(
                score["name"],
                score["in_percent"],
                # Numbers of analyses that are no shares have no better end, see `evals.base.Score`.
                "higher" if score["in_percent"] else None,
            )
            for name, score in about["scores"].items()
            if name not in of_masks
        },
        about["seeds"],
        about["base"],
        {
            method: {masker: statistics.fmean(values) for masker, values in of_method.items()}
            for method, of_method in lost.items()
        },
    )


def _of_masks(about: Mapping[str, Any]) -> set[str]:
    """The evaluations that measure masks."""
    evaluations = about["definition"]["evaluations"]
    return {name for name, config in evaluations.items() if config["task"] == _HIDDEN}
