"""Fine-tuning: encoder, positions and head trained together (MAE, arXiv 2111.06377, table 9)."""

from __future__ import annotations

import functools

import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.evals import features, sections, seeds
from dppmask_jax.evals.base import (
    ERRORS,
    TRAINS,
    Evaluation,
    Result,
    Score,
    Task,
    batches,
    percent,
    require_labels,
)
from dppmask_jax.evals.sections import Section
from dppmask_jax.evals.starting_head import head_for, starting_head
from dppmask_jax.fields import FLAG, Field, number
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.scores.classification import in_top_k, top_k_accuracy
from dppmask_jax.scores.uncertainty import standard_error
from dppmask_jax.training.build import plan_from
from dppmask_jax.words import count

FIELDS = seeds.FIELDS_OF["finetune"]
FIELDS = FIELDS | {
    "epochs": FIELDS["epochs"]._replace(
        rule=number(0), note="times that all images are seen; 0 tests a classifier as it is"
    ),
    "scratch": Field(
        False, FLAG, "train from random parameters, as a baseline: the run gives the shape alone"
    ),
}


def check(evaluation: Evaluation) -> None:
    """Raises InputError without labels, where the folder holds another training or, for no epochs,
    where the checkpoint's own head does not fit."""
    require_labels(evaluation)
    if evaluation.config.epochs:
        seeds.check(evaluation, evaluation.train.class_names)
    elif evaluation.config.scratch:
        raise InputError(
            "config.epochs=0 tests a classifier as it is, which config.scratch=True takes the "
            "parameters from; raise config.epochs"
        )
    else:
        _check_own_head(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Top-1 and top-5 accuracy on the validation split; of a classifier as it is, where
    `config.epochs` is 0."""
    if not evaluation.config.epochs:
        return _as_it_is(evaluation)
    if evaluation.config.scratch:
        how = "trained from random parameters"
        return accuracy(evaluation, supervised.finetune, how, "top-1 accuracy, from scratch")
    head = starting_head(evaluation, evaluation.train.class_names, several=False)
    return accuracy(
        evaluation,
        functools.partial(supervised.finetune, head=head),
        "fine-tuned",
        "top-1 accuracy, fine-tuned",
    )


def _check_own_head(evaluation: Evaluation) -> None:
    names, pool = evaluation.train.class_names, evaluation.config.model.pool
    head, because = head_for(evaluation.run, names, several=False, pool=pool)
    if head is None:
        raise InputError(
            f"config.epochs=0 tests the checkpoint's own head, but {because}; raise config.epochs "
            "to train one"
        )


def _as_it_is(evaluation: Evaluation) -> Result:
    config, run, names = evaluation.config, evaluation.run, evaluation.train.class_names
    method = supervised.finetune(config, Plan(1, 1), num_outputs=len(names), several=False)
    extract = features.extractor(
        lambda params, extra, images: {"scores": method.logits(params, extra, images)}
    )
    found, labels = extract(
        run.params, run.extra, batches(evaluation, evaluation.val, "validation")
    )
    return plain_result(
        found["scores"],
        labels,
        f"the classifier as it is, not trained further; {config.model.pool} pooling, {len(names)} "
        f"classes, tested on {len(labels):,} images",
        "top-1 accuracy of the classifier",
        len(names),
    )


def plain_result(
    scores: np.ndarray, labels: np.ndarray, protocol: str, score_name: str, num_classes: int
) -> Result:
    """The result of one classifier, from its scores (M, C) of images with labels (M,)."""
    values, count = score(scores, labels), len(labels)
    error = standard_error(values["top1"], count)
    shown = {name: percent(value, standard_error(value, count)) for name, value in values.items()}
    return Result(
        values,
        [("", "accuracy"), *shown.items()],
        protocol,
        Score(score_name, values["top1"], None, error, of_images=in_top_k(scores, labels)),
        ERRORS,
        shown,
        {"chance": 1 / num_classes},
    )


def accuracy(evaluation: Evaluation, build, how: str, score_name: str) -> Result:
    """Top-1 and top-5 accuracy of a training for each seed.

    Args:
      build: `supervised.finetune` or `supervised.linear`.
      how: what is trained, in words.
      score_name: of the last epoch's top-1.
    """
    config, num_classes = evaluation.config, evaluation.train.num_classes
    plan = plan_from(config, len(evaluation.train))
    method = build(config, plan, num_outputs=num_classes, several=False)
    trained = seeds.train_seeds(
        evaluation,
        method=method,
        train=evaluation.train,
        val=evaluation.val,
        names=evaluation.train.class_names,
        score=score,
    )
    tested = len(next(iter(trained.values())).labels)  # the readable ones
    protocol = (
        f"{how} for {count(config.epochs, 'epoch')} of {len(evaluation.train):,} images, "
        f"{config.model.pool} pooling, {num_classes} classes, tested on {tested:,} images"
    )
    return _result(trained, protocol, score_name)._replace(baselines={"chance": 1 / num_classes})


def score(scores, labels) -> dict[str, float]:
    """Top-1 accuracy, and top-5 where there are more classes than that."""
    topk = functools.partial(top_k_accuracy, scores, labels)
    values = {"top1": topk(1)}
    return values | ({"top5": topk(5)} if scores.shape[1] > 5 else {})


def _result(trained, protocol: str, score_name: str) -> Result:
    """The result of trainings whose scores are `score`'s; the last epoch's top-1 stands for it."""
    any_seed = next(iter(trained.values()))
    count, several = len(any_seed.labels), len(trained) > 1
    names = tuple(name for name in ("top1", "top5") if name in any_seed.records[-1])
    found = seeds.best_and_last(trained, names)
    rows = [("", "accuracy", *(("std over seeds", "of each seed") if several else ()))]
    for epoch in ("last", "best"):
        for name in names:
            values = found[epoch][name]
            cells = [percent(values["mean"], standard_error(values["mean"], count))]
            if several:
                cells += [percent(values["std"]), ", ".join(map(percent, values["values"]))]
            rows.append((f"{name}, {epoch} epoch", *cells))
    top1 = found["last"]["top1"]
    right = [in_top_k(of_seed.scores, of_seed.labels) for of_seed in trained.values()]
    return Result(
        found,
        rows,
        protocol,
        Score(
            score_name,
            top1["mean"],
            top1["std"],
            standard_error(top1["mean"], count),
            of_images=np.mean(right, axis=0),
        ),
        ERRORS,
        {row[0]: row[1] for row in rows[1:]},
    )


def _unswept(config) -> str:
    if config.epochs:
        return ""
    return (
        "config.epochs=0 tests a classifier as it is, and the runs of a sweep have none; raise it"
    )


def _record(config) -> str:
    if not config.epochs:
        return "classifier"
    return seeds.task_of(config) if config.scratch else ""


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Fine-tuning",
        {"finetune": "top-1", "top5": "top-5", "best": "top-1, best epoch"},
        sections.accuracies("finetune"),
        "Measured: the last epoch. The best epoch is chosen on the validation images and flatters.",
        "The paper does not say which it reports.",
    ),
    record=_record,
    unswept=_unswept,
    check_fields=seeds.check_one_label,
    unprojected=lambda config: TRAINS,
)
