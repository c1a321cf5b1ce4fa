"""Scores of multi-label classification: average precision, F1 and accuracy.

The measures are those of multi-label recognition on COCO (overall and per-class F1, mAP: arXiv
1604.04573) and of attribute prediction on CLEVR (ADIOS, arXiv 2201.13100). All lie
between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from dppmask_jax.errors import InputError


def multilabel_scores(
    probabilities: np.ndarray, targets: np.ndarray, names: Sequence[str], threshold: float
) -> dict[str, Any]:
    """All scores of one evaluation set, to be called once with all its images.

    A class is predicted where its probability is above `threshold`. A class without a positive
    image has no recall and no average precision: it is left out of every mean over classes and of
    "per_class", and named in "excluded". What is summed over images and classes ("f1_micro",
    "accuracy") counts it.

    Args:
      probabilities: (M, C), 0 to 1.
      targets: (M, C), 1 where the image has the label, else 0.
      names: of the C classes.
      threshold: 0 to 1.

    Returns:
      Values that JSON can hold. The scores, 0 to 1:
        "mAP": mean of the classes' average precision;
        "precision_macro", "recall_macro": means of the classes' precision and recall;
        "f1_macro": mean of the classes' F1, where one without a true positive has 0;
        "f1_of_means": harmonic mean of "precision_macro" and "recall_macro" (CF1);
        "f1_micro": of the decisions on all images and classes taken together (OF1);
        "f1_weighted": as "f1_macro", each class weighted by its number of positives;
        "accuracy": share of all images x classes that are decided rightly.
      Besides them, "per_class": {name: {"ap", "f1", "precision", "recall", "positives"}} and
      "excluded": the names of the classes without positives.

    Raises:
      InputError: probabilities or threshold outside 0 to 1 (or not numbers), targets other than 0
        and 1, names that do not fit, or no positive at all.
    """
    probabilities, targets = np.asarray(probabilities), np.asarray(targets)
    _check(probabilities, targets, names, threshold)
    actual, predicted = targets == 1, probabilities > threshold
    hits = np.sum(actual & predicted, axis=0)
    positives, claims = np.sum(actual, axis=0), np.sum(predicted, axis=0)
    present = np.flatnonzero(positives)

    # By hand: scikit-learn takes a single column for the decisions between two classes.
    precision = _ratio(hits, claims)[present]
    recall = _ratio(hits, positives)[present]
    f1 = _ratio(2 * hits, positives + claims)[present]
    # Images of equal probability share the rank of the last of them.
    ap = np.array([average_precision_score(actual[:, c], probabilities[:, c]) for c in present])
    columns = {"ap": ap, "f1": f1, "precision": precision, "recall": recall}
    per_class = {
        names[c]: {name: float(column[row]) for name, column in columns.items()}
        | {"positives": int(positives[c])}
        for row, c in enumerate(present)
    }
    mean_precision, mean_recall = float(precision.mean()), float(recall.mean())
    return {
        "mAP": float(ap.mean()),
        "precision_macro": mean_precision,
        "recall_macro": mean_recall,
        "f1_macro": float(f1.mean()),
        "f1_of_means": float(
            _ratio(2 * mean_precision * mean_recall, mean_precision + mean_recall)
        ),
        "f1_micro": float(_ratio(2 * hits.sum(), positives.sum() + claims.sum())),
        "f1_weighted": float(np.average(f1, weights=positives[present])),
        "accuracy": float(np.mean(actual == predicted)),
        "per_class": per_class,
        "excluded": [name for name, count in zip(names, positives, strict=True) if not count],
    }


def _ratio(part, whole):
    """0 where the whole is 0: then the part is 0 too."""
    return np.divide(part, np.where(whole == 0, 1, whole))


def _check(probabilities, targets, names, threshold):
    if probabilities.shape != targets.shape or targets.shape[1:] != (len(names),):
        raise InputError(
            f"probabilities {probabilities.shape}, targets {targets.shape} and {len(names)} class "
            "names do not fit together; evaluate on the classes the model was trained on"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise InputError(f"two classes are named {twice!r}; give each class a name of its own")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold:g} is not a probability; choose one from 0 to 1")
    outside = np.argwhere(~((probabilities >= 0) & (probabilities <= 1)))
    if outside.size:
        image, c = outside[0]
        raise InputError(
            f"the probability of {names[c]!r} in image {image} is {probabilities[image, c]:g}, not "
            "a number from 0 to 1; apply a sigmoid to logits, and where it is nan the model has "
            "diverged: evaluate an earlier checkpoint"
        )
    other = np.argwhere((targets != 0) & (targets != 1))
    if other.size:
        image, c = other[0]
        raise InputError(
            f"the target of {names[c]!r} in image {image} is {targets[image, c]}; write 1 where "
            "the image has the label and 0 where it has not"
        )
    if not np.any(targets):
        raise InputError(
            "no image has any of the labels, so there is nothing to score; give an evaluation set "
            "with labels"
        )
