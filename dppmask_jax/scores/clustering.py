"""Scores of unsupervised classification: how well clusters agree with classes.

The measures are those of iBOT (arXiv 2111.07832, section 4.1): normalised mutual information,
adjusted Rand index, Fowlkes-Mallows index, and accuracy under the best matching of clusters and
classes. Which cluster has which number is of no consequence to any of them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import scipy.special
import sklearn.cluster
import sklearn.metrics
import sklearn.metrics.cluster

from dppmask_jax.errors import InputError


def cluster_scores(assignment: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    Args:
      assignment: (M,) int, the cluster of each image; any numbers, any number of clusters.
      labels: (M,) int, 0 or more; M at least 1.

    Returns:
      "nmi": mutual information over the arithmetic mean of the two entropies, 0 to 1;
      "ari": adjusted Rand index, -0.5 to 1, 0 on average for chance;
      "fmi": Fowlkes-Mallows index, 0 to 1;
      "acc": share of images that are in the cluster of their class, 0 to 1, where clusters and
        classes are paired one to one so that it is highest (Hungarian method). What has no
        partner, because there are more clusters than classes or the other way about, is wrong.

    Raises:
      InputError: no image, or images without a label.
    """
    assignment, labels = np.asarray(assignment), np.asarray(labels)
    if not len(labels):
        raise InputError("there is no image to score; give an evaluation set that has images")
    if np.any(labels < 0):
        raise InputError(
            f"{np.sum(labels < 0)} of {len(labels)} images have no label to compare the clusters "
            "with; give an evaluation set with labels"
        )
    metrics = sklearn.metrics
    return {
        "nmi": float(metrics.normalized_mutual_info_score(labels, assignment)),
        "ari": float(metrics.adjusted_rand_score(labels, assignment)),
        "fmi": float(metrics.fowlkes_mallows_score(labels, assignment)),
        "acc": _matched_accuracy(assignment, labels),
    }


def _matched_accuracy(assignment, labels):
    confusion = sklearn.metrics.cluster.contingency_matrix(labels, assignment)
    matched = scipy.optimize.linear_sum_assignment(confusion, maximize=True)
    return float(confusion[matched].sum() / len(labels))


def kmeans(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Lloyd's algorithm on L2-normalised features, the best of ten k-means++ starts.

    Args:
      features: (M, D).
      num_clusters: 1 to M.
      seed: of the starts; the same one gives the same clusters on the same machine.

    Returns:
      (M,) int32 in 0..num_clusters-1.

    Raises:
      InputError: fewer images than clusters, or features that are not finite.
    """
    # Threads add up in any order; in double precision that does not show in the clusters.
    features = np.asarray(features, np.float64)
    if not 1 <= num_clusters <= len(features):
        raise InputError(
            f"{len(features)} images cannot make {num_clusters} clusters; ask for 1 to "
            f"{len(features)}, or give more images"
        )
    undefined = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if undefined.size:
        raise InputError(
            f"{undefined.size} of {len(features)} images, the first of them image {undefined[0]}, "
            "have features that are not finite; the model has diverged: cluster an earlier "
            "checkpoint"
        )
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    fit = sklearn.cluster.KMeans(num_clusters, n_init=10, random_state=seed)
    return fit.fit_predict(features / np.maximum(norms, 1e-12)).astype(np.int32)


def fano_bound(acc: float, num_classes: int) -> float:
    """The least NMI, 0 to 1, that an assignment with this matched accuracy can have.

    By Fano's inequality the class keeps at most H2(acc) + (1 - acc) ln(C - 1) of its entropy once
    the cluster is known. It holds for C classes of equal size and at most C clusters: an NMI below
    it, with this accuracy, cannot come from one such assignment.

    Args:
      acc: 0 to 1, as "acc" of `cluster_scores`.
      num_classes: C, at least 2.

    Raises:
      InputError: either is outside its range.
    """
    if not (0 <= acc <= 1 and num_classes >= 2):
        raise InputError(
            f"no bound for accuracy {acc:g} over {num_classes} classes; give an accuracy from 0 "
            "to 1 and at least 2 classes"
        )
    binary_entropy = scipy.special.entr(acc) + scipy.special.entr(1 - acc)
    unknown = binary_entropy + (1 - acc) * math.log(num_classes - 1)
    return float(1 - unknown / math.log(num_classes))
