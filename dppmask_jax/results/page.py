"""The page: sections of evaluations, sweeps, and the commands that made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dppmask_jax.evals import sections
from dppmask_jax.evals.sections import Section
from dppmask_jax.results import paper, rows, tables
from dppmask_jax.results.records import evaluations_of
from dppmask_jax.tasks import TASKS

_INTRODUCTION = """\
# Results

Made by `dppmask results`; do not edit. Rows marked *paper* are what DPPMask (arXiv
2303.12736) reports, with its table. Rows marked *measured here* come from the runs that they name:
where data, model or schedule are not the paper's, compare the masks of these runs among themselves,
never their level with the paper's."""
_INTRODUCTION_ALONE = """\
# Results

Made by `dppmask results`; do not edit. All rows come from the runs that they name."""
_UNITS = """\
Accuracies, mAP and F1 are in percent. ± is the standard error over the validation images, where it
has a closed form; σ is the standard deviation over seeds. Commands stand at the end, where RUN and
IMAGES are folders."""


def _pretraining(record):
    found = record.get("pretraining", {})
    if "loss" not in found:
        return []
    row = {name: f"{found[name]:.3f}" for name in ("loss", "val_loss") if name in found}
    if "knn_images" in found:  # or it is not known what the accuracy was measured on
        row["knn"] = sections.share(found["knn"], found["knn_images"])
    return [row]


_PRETRAINING = Section(
    "Loss of pre-training",
    {"loss": "loss", "val_loss": "validation loss", "knn": "k-NN"},
    _pretraining,
    "Of the runs of sweeps, at their last step. Losses under different masks are not comparable.",
    "The paper's prose says that the loss falls as τ rises; its table shows the opposite.",
)


def page(records: Sequence[dict[str, Any]], with_paper: bool = True) -> str:
    """The page of some records of `load`, the same for any order of them; those of a task without
    a section have no number to show. Without the paper's rows, sections without a row are left
    out."""
    evaluations, sweeps = [], []
    for record in records:
        evaluations += evaluations_of(record)
        sweeps += [record] if record.get("points") else []
    parts = [_INTRODUCTION if with_paper else _INTRODUCTION_ALONE, _UNITS]
    commands: list[str] = []
    parts.append(
        tables.of_section(_PRETRAINING, evaluations, rows.how_trained, with_paper, commands)
    )
    for name, task in TASKS.items():
        shown = [record for record in evaluations if record["config"]["task"] == name]
        if task.section:
            parts.append(
                tables.of_section(task.section, shown, rows.footnote, with_paper, commands)
            )
    if sweeps or with_paper:
        parts.append("## Sweeps")
    if with_paper:
        parts.append("*paper*: " + paper.RATIO_SWEEP)
    parts += sorted({tables.of_sweep(record) for record in sweeps})
    if commands:
        numbered = (f"{number}. {text}" for number, text in enumerate(commands, 1))
        parts.append("## Commands\n\n" + "\n".join(numbered))
    return "\n\n".join(filter(None, parts)) + "\n"
