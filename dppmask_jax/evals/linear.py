"""Linear probing of the frozen encoder.

`lars` is MAE's protocol (arXiv 2111.06377, table 10): a batch norm in front of the layer. `sgd`
trains the layer alone, on features as they are.
`ridge` is a shortcut: features of the evaluation crop, computed once, and a closed-form solution.
"""

from __future__ import annotations

import functools

from dppmask_jax.evals import sections, seeds
from dppmask_jax.evals.base import (
    Evaluation,
    Result,
    Task,
    frozen_features,
    require_labels,
    unprojected_pool,
)
from dppmask_jax.evals.finetune import accuracy, plain_result
from dppmask_jax.evals.sections import Section
from dppmask_jax.fields import Field, number, one_of, several
from dppmask_jax.methods import supervised
from dppmask_jax.scores import ridge

RIDGE_FIELDS = {
    "ridge": Field(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        several(number(0), "a list of strengths such as (1e-4, 1e-2, 1.0)"),
        "strengths to choose from, each a share of the features' variance",
    ),
}
FIELDS = {
    **seeds.FIELDS_OF["linear"],
    "solver": Field(
        "lars",
        one_of("lars", "sgd", "ridge"),
        "lars: MAE's protocol; sgd: with plain momentum, and features as they are; ridge: closed "
        "form, features computed once, in seconds",
    ),
    **RIDGE_FIELDS,
}


def check(evaluation: Evaluation) -> None:
    """Raises NotServed without labels, and InputError where the folder holds another training."""
    require_labels(evaluation)
    if evaluation.config.solver != "ridge":
        seeds.check(evaluation, evaluation.train.class_names)


def run(evaluation: Evaluation) -> Result:
    """Top-1 and top-5 accuracy on the validation split."""
    return (_ridge if evaluation.config.solver == "ridge" else _trained)(evaluation)


def _trained(evaluation: Evaluation) -> Result:
    return accuracy(
        evaluation,
        functools.partial(supervised.linear, projection=evaluation.run.method.encoder.projection),
        f"linear layer on frozen features, {evaluation.config.solver.upper()}",
        "top-1 accuracy, linear probe",
    )


def _ridge(evaluation: Evaluation) -> Result:
    config = evaluation.config
    pool = config.model.pool
    train, train_labels = frozen_features(evaluation, evaluation.train, (pool,), "training")
    val, val_labels = frozen_features(evaluation, evaluation.val, (pool,), "validation")
    fitted = ridge.fit(train[pool], train_labels, evaluation.train.num_classes, tuple(config.ridge))
    result = plain_result(
        fitted(val[pool]),
        val_labels,
        f"closed-form ridge regression on frozen features ({pool} pooling, evaluation crop), "
        f"{len(train_labels):,} training images, {fitted.words}, tested on {len(val_labels):,} "
        "images; not MAE's protocol",
        "top-1 accuracy, ridge probe",
        evaluation.train.num_classes,
    )
    return result._replace(metrics={**result.metrics, "strength": fitted.strength})


TASK = Task(
    check,
    run,
    FIELDS,
    section=Section(
        "Linear probing",
        {"linear": "top-1", "top5": "top-5", "best": "top-1, best epoch"},
        sections.accuracies("linear"),
        "Closed-form ridge regression is a shortcut of this project, not MAE's protocol.",
    ),
    record=lambda config: "linear_ridge" if config.solver == "ridge" else "",
    check_fields=seeds.check_one_label,
    unprojected=unprojected_pool,
)
