"""Several labels an image: COCO, CLEVR and the like (DPPMask, arXiv 2303.12736, tables 5 and 6)."""

from __future__ import annotations

import functools

import numpy as np
from scipy.special import expit

from dppmask_jax.data.sources.base import with_targets
from dppmask_jax.errors import InputError
from dppmask_jax.evals import sections, seeds
from dppmask_jax.evals.base import (
    ERRORS,
    TRAINS,
    Evaluation,
    Result,
    Score,
    Task,
    percent,
    require_validation,
    unprojected_pool,
)
from dppmask_jax.evals.sections import Section
from dppmask_jax.evals.starting_head import starting_head
from dppmask_jax.fields import FLAG, Field, above, one_of, with_defaults
from dppmask_jax.methods import supervised
from dppmask_jax.scores.multilabel import multilabel_scores
from dppmask_jax.scores.uncertainty import error_of_mean
from dppmask_jax.training.build import plan_from
from dppmask_jax.words import count

_NAMES = (
    "mAP",
    "f1_micro",
    "f1_macro",
    "f1_weighted",
    "f1_of_means",
    "precision_macro",
    "recall_macro",
    "accuracy",
)


def _fields(train: str, others: dict) -> dict[str, Field]:
    return {
        **with_defaults(
            seeds.FIELDS_OF[train], {"loss.kind": "bce", "loss.smoothing": 0.0, **others}
        ),
        "train": Field(train, one_of("finetune", "linear"), "what is trained"),
        "data.whole": Field(
            True,
            FLAG,
            "test on whole images, squeezed to the model's shape: the usual crop cuts labelled "
            "objects off (paper: not stated)",
        ),
        "threshold": Field(
            0.5, above(0, 1), "of probabilities; ASL's code takes 0.8 (paper: not stated)"
        ),
    }


FIELDS_BY_TRAIN = {
    "finetune": _fields("finetune", {"data.mixup": 0.0, "data.cutmix": 0.0}),
    "linear": _fields("linear", {}),
}


def check(evaluation: Evaluation) -> None:
    """Raises InputError without labels, or where the folder holds another training."""
    require_validation(evaluation)
    where = f"config.data.source={evaluation.config.data.source}"
    if evaluation.train.targets is None:
        raise InputError(
            f"task multilabel needs several labels an image, and {where} has none; use coco:ROOT, "
            "clevr:ROOT, csv:FILE or shapes"
        )
    if not evaluation.val.targets().any():
        raise InputError(
            f"no validation image of {where} has any of the {len(evaluation.val.target_names)} "
            "labels, so there is nothing to score; hold out images that have some"
        )
    seeds.check(evaluation, evaluation.train.target_names)


def run(evaluation: Evaluation) -> Result:
    """mAP, F1 of several kinds and element-wise accuracy on the validation split."""
    config = evaluation.config
    train, val = with_targets(evaluation.train), with_targets(evaluation.val)
    names = evaluation.train.target_names
    build = {"finetune": supervised.finetune, "linear": supervised.linear}[config.train]
    if config.train == "finetune":
        build = functools.partial(build, head=starting_head(evaluation, names, several=True))
    else:
        projection = evaluation.run.method.encoder.projection
        build = functools.partial(build, projection=projection)
    method = build(config, plan_from(config, len(train)), num_outputs=len(names), several=True)

    def all_scores(scores, targets):
        return multilabel_scores(expit(scores), targets, names, config.threshold)

    def score(scores, targets):
        found = all_scores(scores, targets)
        return {name: found[name] for name in _NAMES}

    trained = seeds.train_seeds(
        evaluation,
        method=method,
        train=train,
        val=val,
        names=names,
        score=score,
    )
    found = seeds.best_and_last(trained, _NAMES)
    of_labels = {
        str(seed): all_scores(result.scores, result.labels) for seed, result in trained.items()
    }
    excluded = next(iter(of_labels.values()))["excluded"]
    targets = next(iter(trained.values())).labels  # of the readable images
    no_labels = np.mean(targets == 0, axis=1)
    accuracy_error = _accuracy_error(trained, config.threshold)
    rows = _rows(found, accuracy_error, no_labels, several=len(trained) > 1)
    shares = np.mean(targets != 0, axis=0)
    return Result(
        found
        | {
            "accuracy_standard_error": accuracy_error,
            "accuracy_of_no_labels": float(np.mean(no_labels)),
            "per_label": {seed: scores["per_class"] for seed, scores in of_labels.items()},
            "excluded": excluded,
        },
        rows,
        f"{config.train}, {config.loss.kind} loss, {count(config.epochs, 'epoch')} of "
        f"{len(train):,} images, {len(names)} labels, threshold {config.threshold:g}, tested "
        f"on {len(targets):,} {'whole ' * config.data.whole}images; the best epoch is that of the "
        "highest mAP" + _excluded(excluded),
        Score("mean average precision", found["last"]["mAP"]["mean"], found["last"]["mAP"]["std"]),
        f"{ERRORS}; mAP, F1, precision and recall are no means over images and have none in closed "
        "form",
        {name: cell for name, cell, *_ in rows[1:]},
        # The expected precision of images in any order is the share that has the label.
        {"chance": float(np.mean(shares[shares > 0]))},
    )


def _rows(found, accuracy_error: float, no_labels: np.ndarray, *, several: bool):
    """The table of `seeds.best_and_last`, with a column for the spread over `several` seeds.

    Args:
      no_labels: (M,) what predicting no label gets right of each image.
    """
    rows = [("", "last epoch", *(("std over seeds",) * several), "best epoch")]
    for name in _NAMES:
        last, best = found["last"][name], found["best"][name]
        spread = (percent(last["std"]),) if several else ()
        mean = percent(last["mean"], accuracy_error if name == "accuracy" else None)
        rows.append((name, mean, *spread, percent(best["mean"])))
    baseline = percent(float(np.mean(no_labels)), error_of_mean(no_labels))
    return [*rows, ("accuracy of no labels", baseline, *(("",) * several), "")]


def _excluded(names: list[str]) -> str:
    return f"; left out, without a positive image: {', '.join(names)}" if names else ""


def _accuracy_error(trained: dict[int, seeds.Trained], threshold: float) -> float:
    """The standard error of "accuracy": the labels of an image are not independent, images are."""
    right = [
        np.mean((expit(of_seed.scores) > threshold) == (of_seed.labels == 1), axis=1)
        for of_seed in trained.values()
    ]
    return error_of_mean(np.mean(right, axis=0))


def _cells(record) -> list[dict[str, str]]:
    found = record["metrics"]
    errors = {"accuracy": found.get("accuracy_standard_error")}
    return [
        {
            name: sections.mean(values, error=errors.get(name))
            for name, values in found["last"].items()
        }
    ]


TASK = Task(
    check,
    run,
    FIELDS_BY_TRAIN["finetune"],
    section=Section(
        "Several labels an image",
        {
            "mAP": "mAP",
            "f1_micro": "F1, all (micro)",
            "f1_macro": "F1, class (macro)",
            "f1_weighted": "F1, weighted",
            "accuracy": "accuracy",
        },
        _cells,
        "Measured: the last epoch.",
        "The paper does not say whether its encoders were fine-tuned, or its threshold.",
    ),
    check_fields=seeds.check_several_labels,
    by_train=FIELDS_BY_TRAIN,
    unprojected=lambda config: TRAINS if config.train == "finetune" else unprojected_pool(config),
)
