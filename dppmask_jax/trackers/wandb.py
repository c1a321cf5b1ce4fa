"""Weights & Biases. W&B's own environment says the rest: WANDB_MODE=offline, WANDB_API_KEY, …"""

from __future__ import annotations

import secrets
from pathlib import Path

from dppmask_jax.fields import Field, Rule, is_text
from dppmask_jax.trackers.base import Opening, Tracker, TrackerKind

_REFUSED = frozenset("\\#?%:")  # by W&B, in the name of a project


def _is_project(value) -> bool:
    if not is_text(value):
        return False
    *entity, project = value.split("/")
    fits = len(entity) < 2 and all(entity) and len(project) <= 128 and not _REFUSED & set(value)
    return fits and (bool(project) or not entity)


_PROJECT = Rule(_is_project, 'PROJECT or ENTITY/PROJECT, without any of \\#?%:; "" for none')


def _open(opening: Opening) -> Tracker:
    import wandb

    entity, _, project = opening.target.rpartition("/")
    run = wandb.init(
        entity=entity or None,
        project=project,
        id=opening.ident or secrets.token_hex(4),
        resume="allow",
        dir=opening.folder,
        reinit="create_new",  # one that the process may have of its own is left alone
    )
    run.config.update(dict(opening.config), allow_val_change=True)
    if run.offline or not opening.ident:  # later starts keep a name that was given on W&B's page
        run.name = opening.folder.resolve().name
        run.tags = opening.tags
    _set_aside(opening.folder / "wandb", run.id, Path(run.dir).parent)
    # W&B takes steps in order and refuses those that its server has.
    first = run.step
    if opening.restored_step is not None and first > opening.restored_step + 1:
        opening.say(
            f"W&B has lines up to step {first - 1:,} of an earlier start; they stay, and those "
            "steps are not written again"
        )

    def write(step, values):
        if step >= first:
            run.log(values, step=step)

    def catch_up(records):
        for step, values in records:
            write(step, values)

    def show(step, paths):
        pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in paths}
        run.log(pictures, step=max(step, first))

    return Tracker(
        write,
        ident=run.id,
        catch_up=catch_up,
        show=show,
        close=lambda finished: run.finish(exit_code=0 if finished else 1),
    )


def _set_aside(folder: Path, ident: str, current: Path) -> None:
    """Moves what earlier starts wrote offline into `replaced/`.

    A killed process leaves little or nothing of it, and W&B does not go on in a file. So each start
    writes all lines anew, from metrics.jsonl, and `wandb sync` of one folder is the whole run.
    """
    for old in folder.glob(f"offline-run-*-{ident}"):
        if old.resolve() != current.resolve():
            (folder / "replaced").mkdir(exist_ok=True)
            old.rename(folder / "replaced" / old.name)


KIND = TrackerKind(
    "W&B",
    _open,
    target=lambda log: log.get("wandb", ""),
    fields={
        "log.wandb": Field(
            "", _PROJECT, "project on Weights & Biases; needs the extra [wandb]", free="carried out"
        )
    },
    package="wandb",
    extra="wandb",
)
