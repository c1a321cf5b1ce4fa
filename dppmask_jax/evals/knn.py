"""k-nearest-neighbour classification of frozen features (iBOT, arXiv 2111.07832, section 4.1)."""

from __future__ import annotations

from dppmask_jax.evals.base import (
    Evaluation,
    Result,
    Score,
    frozen_features,
    percent,
    require_labels,
)
from dppmask_jax.scores.knn import accuracies

_FEATURES = ("cls", "patches", "pixels")


def check(evaluation: Evaluation) -> None:
    """Raises InputError where the data will not do."""
    require_labels(evaluation)


def run(evaluation: Evaluation) -> Result:
    """Accuracy for each feature and k, and that of the raw pixels."""
    config = evaluation.config
    train, labels = frozen_features(evaluation, evaluation.train, _FEATURES, "training")
    val, val_labels = frozen_features(evaluation, evaluation.val, _FEATURES, "validation")

    found = {}
    for name in train:
        mean = train[name].mean(axis=0) if config.center else 0.0
        of_k = accuracies(
            train[name],
            labels,
            val[name],
            val_labels,
            num_classes=evaluation.train.num_classes,
            ks=tuple(config.k),
            temperature=config.temperature,
            mean=mean,
        )
        found[name] = {str(k): accuracy for k, accuracy in of_k.items()}
    rows = [("feature", *(f"k = {k}" for k in config.k))]
    rows += [(name, *map(percent, of_k.values())) for name, of_k in found.items()]
    rows.append(("chance", *[percent(1 / evaluation.train.num_classes)] * len(config.k)))
    # The run's own probe says which feature its method trains; 20 neighbours are iBOT's usual best.
    feature = evaluation.run.knn_feature
    k = 20 if 20 in config.k else config.k[0]
    return Result(
        found,
        rows,
        f"cosine k-NN, votes weighted by exp(similarity / {config.temperature:g})"
        + (", features less the training mean" if config.center else "")
        + f", {len(labels):,} training and {len(val_labels):,} validation images; cls: class "
        "token, patches: mean patch token, pixels: 32x32 means",
        Score(f"k-NN accuracy (k = {k}, {feature})", found[feature][str(k)]),
    )
