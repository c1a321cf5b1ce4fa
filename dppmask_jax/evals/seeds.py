"""Supervised trainings of an evaluation: one for each seed, resumable, scored while they run."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dppmask_jax import fields, parallel, pixel_format
from dppmask_jax.data.sources import identity
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base, features
from dppmask_jax.evals.base import Evaluation, batches
from dppmask_jax.fields import Field, several, whole, with_defaults
from dppmask_jax.methods import supervised
from dppmask_jax.runs import history, metrics, workdir
from dppmask_jax.runs.run import Run
from dppmask_jax.training import build, fit, resuming, saves
from dppmask_jax.training.build import plan_from
from dppmask_jax.training.fit import Training
from dppmask_jax.training.step import init_state
from dppmask_jax.words import count

_SCORED = "images_scored"  # in the records of scores alone
_SHOWN = 3  # scores that are printed after an epoch, unless they are those of the one before
# Fields that may change too while an evaluation goes on: each seed is a training of its own, and
# other classes are refused by `_refuse_other_names`.
_FREE = {"seeds": "carried out", "class_names": "carried out"}

SEEDS = several(whole(0), "a list of different whole numbers such as (0, 1, 2)", different=True)
FIELDS = {
    **base.FIELDS,
    "seeds": Field((0,), SEEDS, "a training for each; mean and standard deviation are reported"),
    **build.FIELDS,
    **with_defaults(fit.FIELDS, {"log_every": 20}),
    "evaluate.every_epochs": build.FIELDS["evaluate.every_epochs"]._replace(
        default=1.0, note="epochs between tests; 0: at the end alone"
    ),
    **with_defaults(saves.FIELDS, {"checkpoint.every": 500, "checkpoint.keep": 1}),
}
# What a training adds to these, with MAE's length and batch, by what it trains.
FIELDS_OF = {
    "finetune": with_defaults(FIELDS, {"batch_size": 1024, "epochs": 100.0})
    | supervised.FINETUNE_FIELDS,
    "linear": with_defaults(FIELDS, {"batch_size": 16384, "epochs": 90.0})
    | supervised.LINEAR_FIELDS,
}


def check_loss(config, several_labels: bool) -> None:
    """Raises InputError where `config.loss` is not for images of one label, or of several."""
    if (config.loss.kind == "softmax") == several_labels:
        right = "bce | asl" if several_labels else "softmax"
        raise InputError(
            f"config.loss.kind={config.loss.kind!r} does not fit config.task={config.task}: {right}"
        )
    if several_labels and config.loss.smoothing:
        raise InputError(
            f"config.loss.smoothing={config.loss.smoothing:g} is for one label an image; set it "
            "to 0"
        )


check_one_label = functools.partial(check_loss, several_labels=False)
check_several_labels = functools.partial(check_loss, several_labels=True)


def folder_of(evaluation_folder: Path, task: str, seed: int, projected: bool = False) -> Path:
    """Where the training of a seed lies, one of projected tokens or not."""
    return evaluation_folder / f"eval_{task}{'_projected' * projected}" / f"seed-{seed}"


def task_of(config) -> str:
    """The task of a training, and whether it starts from random parameters; for names of files."""
    return f"{config.task}_scratch" if config.get("scratch") else config.task


def pretrained(run: Run) -> dict:
    """What tells the encoder that a training starts from; it is kept in the training's config."""
    projected = {"projection": run.projection.digest()} if run.projection else {}
    return projected | {
        "step": run.step,
        "config": run.config.to_dict(),
        "data_identity": run.data_identity,
        "history": history.describe(run.history),
    }


def is_of(training_config, evaluation: Evaluation) -> bool:
    """Whether a training began with the encoder of an evaluation's run."""
    kept = {"pretrained": workdir.to_json(training_config)["pretrained"]}
    here = {"pretrained": json.loads(json.dumps(pretrained(evaluation.run)))}
    return not resuming.differences(kept, here, (), evaluation.free_of_run)[0]


def check(evaluation: Evaluation, names: Sequence[str]) -> None:
    """Raises InputError where `train_seeds` would, before it starts; `names` are its."""
    config = evaluation.config
    parallel.check_batch(
        config.batch_size,
        config.optim.accum_steps,
        "config.batch_size",
        group=2 if config.data.get("mixup") or config.data.get("cutmix") else 1,
    )
    if config.data.get("randaugment"):
        what = f"RandAugment, config.data.randaugment={config.data.randaugment:g},"
        pixel_format.check_rgb(config, what, "set --config.data.randaugment=0")
    if evaluation.run is not None:
        _runs(evaluation, names)


def other_names(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """How the classes of a training differ from those at hand, in words; "" where they do not."""
    if len(theirs) != len(ours):
        return f"{len(theirs):,} classes there, {len(ours):,} here"
    differ = ((a, b) for a, b in zip(theirs, ours, strict=True) if a != b)
    return next((f"class {a!r} there, where {b!r} is here" for a, b in differ), "")


def _runs(evaluation, names) -> list[tuple]:
    """(config, folder, where it starts) of the training of each seed."""
    images = functools.cache(
        functools.partial(identity.of_splits, evaluation.train, evaluation.val)
    )
    known, runs = evaluation.fields, []
    free = {**fields.free(known, "carried out"), **_FREE}
    for seed in evaluation.config.seeds:
        config = evaluation.config.copy_and_resolve_references()
        with config.unlocked():
            config.seed = seed
            config.pretrained = pretrained(evaluation.run)
            config.class_names = tuple(names)
        folder = folder_of(evaluation.folder, task_of(config), seed, bool(config.projection))
        refuse = functools.partial(_refuse_other_names, folder, names)
        terms = resuming.Terms(known, free, evaluation.free_of_run, refuse=refuse)
        start = resuming.start_in(folder, config, images, terms)
        runs.append((config, folder, start))
    return runs


def _refuse_other_names(folder: Path, names: Sequence[str], kept) -> None:
    if differ := other_names(kept["class_names"], names):
        raise InputError(
            f"the training in {folder} knows other classes ({differ}); give the "
            "config.data.source that it began with, or another --workdir"
        )


class Trained(NamedTuple):
    """A finished training.

    `records` are its scores, one an epoch, in order; `scores` (M, C) and `labels` those of the
    whole validation split at the end.
    """

    records: list[dict]
    scores: np.ndarray
    labels: np.ndarray


def train_seeds(
    evaluation: Evaluation,
    *,
    method,
    train,
    val,
    names: Sequence[str],
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> dict[int, Trained]:
    """Trains once for each of `config.seeds`, or goes on where that was interrupted.

    Args:
      method: `supervised.finetune` or `supervised.linear` of the evaluation's config.
      train, val: the splits, with the labels that the method takes.
      names: of the C classes or labels, in order; they are kept with the training.
      score: (scores (M, C), labels) of the whole validation split -> values to log, each epoch.

    Returns:
      The training of each seed.

    Raises:
      InputError: a training with another config, or of another encoder, lies there, or the batch
        does not split over the devices; nothing was changed.
    """
    runs = _runs(evaluation, names)
    extract = features.extractor(
        lambda params, extra, images: {"scores": method.logits(params, extra, images)}
    )

    def scores_of(state):
        found, labels = extract(state.params, state.extra, batches(evaluation, val, "validation"))
        return found["scores"], labels

    trained = {}
    for config, folder, start in runs:
        state = _train(evaluation, config, folder, start, method, train, scores_of, score)
        parallel.wait_for_all("scores are written")
        logged = metrics.read_metrics(folder / "metrics.jsonl")
        records = [record for record in logged if _SCORED in record]
        trained[config.seed] = Trained(records, *scores_of(state))
    return trained


def _train(evaluation, config, folder, start, method, train, scores_of, score):
    plan = plan_from(config, len(train))
    init_key, seed_key = jax.random.split(jax.random.key(config.seed))

    def first():
        state = init_state(method, init_key)
        if config.get("scratch"):
            return state
        params, extra = method.with_encoder(state.params, state.extra, evaluation.run.encoder)
        return state._replace(params=params, extra=extra)

    def probe(say):
        said = ""

        def run(state, step):
            nonlocal said
            if step == 0:
                return {}
            scores, labels = scores_of(state)
            values = score(scores, labels)
            shown = "  ".join(f"{name} {values[name]:.4f}" for name in list(values)[:_SHOWN])
            if shown != said or step == plan.total_steps:
                say(f"seed {config.seed}  step {step}/{plan.total_steps}  {shown}")
            said = shown
            return {_SCORED: len(labels), **values}

        return run

    def announce(state):
        del state
        where = f"resuming at step {start.step:,}" if start.step else "from step 0"
        if start.step >= plan.total_steps:
            where = f"finished at step {start.step:,}"
        evaluation.say(
            f"seed {config.seed}: {count(plan.total_steps, 'step')} of "
            f"{count(config.batch_size, 'image')} "
            f"({count(config.epochs, 'epoch')}), learning rate {plan.peak_lr:.3g} at its peak, "
            f"{where}, in {folder}"
        )

    training = Training(config, folder, start, plan, method, train, seed_key)
    return fit.fit(training, first, announce=announce, probe=probe)


def best_and_last(trained: dict[int, Trained], names: tuple[str, ...]) -> dict:
    """The scores of the last epoch and of that with the best `names[0]`, over the seeds.

    Returns:
      {"last" | "best": {name: {"mean", "std", "values"}}}; "std" is that of a sample, null for one
      seed. The best epoch is chosen on the validation split itself: it flatters.
    """

    def over_seeds(chosen):
        return {
            name: summary([chosen(of_seed.records)[name] for of_seed in trained.values()])
            for name in names
        }

    return {
        "last": over_seeds(lambda records: records[-1]),
        "best": over_seeds(lambda records: max(records, key=lambda record: record[names[0]])),
    }


def summary(values: list[float]) -> dict:
    """{"mean", "std", "values"}; "std" (n - 1) is None for a single value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values), "std": spread, "values": values}
