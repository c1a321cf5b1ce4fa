"""Which classifiers of an encoder an analysis tests: one that is fitted to frozen features at once,
or the head of a fine-tuned checkpoint."""

from __future__ import annotations

import numpy as np

from dppmask_jax.analyses import base
from dppmask_jax.evals import linear
from dppmask_jax.evals.base import Evaluation, frozen_features
from dppmask_jax.evals.starting_head import head_for
from dppmask_jax.fields import Field, whole
from dppmask_jax.scores import ridge

FIELDS = {
    "train_images": Field(
        5000, whole(2), "training images of a classifier, evenly spread over the split"
    ),
    **linear.RIDGE_FIELDS,
}


def chosen(evaluation: Evaluation) -> np.ndarray:
    """The numbers of the training images that classifiers are fitted to."""
    return base.spread(len(evaluation.train), evaluation.config.train_images)


def no_own_head_because(evaluation: Evaluation) -> str:
    """Why the checkpoint has no head for the classes of the source, in words; "" where it has."""
    run = evaluation.run
    if run is None:
        return "the runs of a sweep have none"
    head, because = head_for(
        run, evaluation.train.class_names, several=False, pool=run.config.model.get("pool")
    )
    return "" if head is not None else because


def fitted_ridge(evaluation: Evaluation) -> tuple[ridge.Ridge, int]:
    """(a ridge classifier of the mean patch token, the number of images that it was fitted to)."""
    found, labels = frozen_features(
        evaluation, evaluation.train, ("patches",), "training", chosen(evaluation)
    )
    strengths = tuple(evaluation.config.ridge)
    fitted = ridge.fit(found["patches"], labels, evaluation.train.num_classes, strengths)
    return fitted, len(labels)
