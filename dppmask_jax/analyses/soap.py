"""SOAP: which principal components of patch tokens respond to the position alone, and a projector
that damps them ("Suppressing Non-Semantic Noise in Masked Image Modeling Representations", and its
authors' code).

A component that responds at the same positions to photographs and to images without content says
nothing of the content. Its semantic-invariance score (SI) is 1 where both respond surely and alike,
.71 where both are a coin's throw, 0 where they are opposite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from dppmask_jax.analyses import components
from dppmask_jax.analyses.components import GROUPS, Basis, Responses
from dppmask_jax.analyses.synthetic import synthetic_images
from dppmask_jax.scores import moments
from dppmask_jax.scores.uncertainty import jackknife

__all__ = ["Fit", "fit", "semantic_invariance", "similarity", "synthetic_images"]

MODES = ("soft", "auto", "hard", "scores")
HIGH = 0.75  # SI above which mode "auto" damps a component
CHANCE = 0.5**0.5  # SI of a component that responds to one half of the images everywhere
_AT_ONCE = 256  # images


class Fit(NamedTuple):
    """Components by rank, 0 = largest variance; float64.

    Attributes:
      mean, covariance, eigenvalues, eigenvectors: see `components.Basis`.
      P, Q: (N, D), the share of real and of synthetic images that respond above 0 at a position.
      scores: (D,) SI.
      weights: (D,) from 0 to 1, how far each component is damped.
      projector: (D, D) symmetric; tokens @ projector are the damped tokens.
    """

    mean: np.ndarray
    covariance: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    P: np.ndarray
    Q: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    projector: np.ndarray


def semantic_invariance(p, q, gamma: float = 1.0):
    """How surely and how alike two probabilities of a response are, elementwise.

    Args:
      p, q: of real and of synthetic images, from 0 to 1; NumPy or JAX.
      gamma: above 0; the power of the agreement.

    Returns:
      From 0 (opposite) to 1 (both 0, or both 1).
    """
    agreement = (p * q + (1 - p) * (1 - q)) ** gamma
    return 2 * agreement / ((p * p + (1 - p) ** 2) ** 0.5 + (q * q + (1 - q) ** 2) ** 0.5)


def component_scores(P, Q, gamma: float = 1.0) -> np.ndarray:
    """(N, D), (N, D) -> (D,): SI at each position, and then its mean.

    Probabilities must not be averaged first: a component that tells left from right would respond
    to one half of the positions, as any other.
    """
    return np.mean(semantic_invariance(np.asarray(P), np.asarray(Q), gamma), axis=0)


def component_weights(
    scores, mode: str = "soft", mu: float = 2.0, temperature: float = 0.05
) -> np.ndarray:
    """(D,): how far each component is damped, from 0 to 1.

    Args:
      scores: (D,).
      mode: "soft": the score of the `mu` highest, the border softened by `temperature`; "auto": the
        same with as many as have an SI above HIGH; "hard": 1 for the `mu` highest; "scores": the
        score of every component, to look at only, for it damps everything.
    """
    scores = np.asarray(scores, np.float64)
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not {' | '.join(MODES)}")
    if mode == "scores":
        return scores
    ranks = np.argsort(np.argsort(-scores, kind="stable"))
    if mode == "auto":
        mu = int(np.sum(scores > HIGH))
        if not mu:
            return np.zeros_like(scores)
    if mode == "hard":
        return (ranks < mu).astype(np.float64)
    return scores * expit((mu - 0.5 - ranks) / temperature)


def projector(eigenvectors, weights) -> np.ndarray:
    """(D, D): I - V diag(w) V^T. It takes off no mean."""
    vectors = np.asarray(eigenvectors, np.float64)
    return np.eye(len(vectors)) - (vectors * weights) @ vectors.T


def fit(
    real_tokens,
    synthetic_tokens,
    *,
    mode: str = "soft",
    mu: float = 2.0,
    temperature: float = 0.05,
    gamma: float = 1.0,
) -> Fit:
    """Components of real tokens, scored by how synthetic ones respond to them.

    Args:
      real_tokens, synthetic_tokens: (B, N, D) patch tokens after the final norm, without class
        token and registers; B may differ, from 1 on. Synthetic tokens are centred by the mean of
        the real ones.
      mode, mu, temperature: see `component_weights`.
      gamma: see `semantic_invariance`.
    """
    found = None
    for rows, valid, _ in _batches(real_tokens):
        found = moments.merged(found, moments.of_batch(rows, valid))
    basis = components.principal(found)
    mean, vectors = (jnp.asarray(a, jnp.float32) for a in (basis.mean, basis.eigenvectors))
    real, synthetic = None, None
    for batch in _batches(real_tokens):
        real = components.added(real, components.respond(*batch, mean, vectors))
    for batch in _batches(synthetic_tokens):
        synthetic = components.added(synthetic, components.respond(*batch, mean, vectors))
    real, synthetic = (components.without_noise(r, basis) for r in (real, synthetic))
    return fitted(basis, real, synthetic, gamma, mode, mu, temperature)


def _batches(tokens) -> Iterable[tuple]:
    for first in range(0, len(tokens), _AT_ONCE):
        rows = jnp.asarray(tokens[first : first + _AT_ONCE], jnp.float32)
        yield rows, jnp.ones(len(rows), bool), jnp.arange(first, first + len(rows)) % GROUPS


def fitted(
    basis: Basis, real: Responses, synthetic: Responses, gamma, mode, mu, temperature
) -> Fit:
    """What responses to components make of these; arguments as for `fit`."""
    P, Q = real.probabilities(), synthetic.probabilities()
    scores = component_scores(P, Q, gamma)
    weights = component_weights(scores, mode, mu, temperature)
    return Fit(*basis, P, Q, scores, weights, projector(basis.eigenvectors, weights))


def score_errors(real: Responses, synthetic: Responses, gamma: float = 1.0) -> np.ndarray:
    """(D,): the standard error of each SI over the images, by leaving out one group at a time.

    The components stay those of all images.
    """

    P, Q = real.probabilities(), synthetic.probabilities()
    return np.sqrt(
        _variance(real, lambda p: component_scores(p, Q, gamma))
        + _variance(synthetic, lambda q: component_scores(P, q, gamma))
    )


def _variance(found: Responses, statistic: Callable) -> np.ndarray:
    """The jackknife's variance of a statistic of probabilities; NaN with a single group."""
    there = np.flatnonzero(found.sizes)
    if len(there) < 2:
        return np.full(found.counts.shape[2], np.nan)
    total, size = found.counts.sum(axis=0), found.sizes.sum()
    without = [statistic((total - found.counts[g]) / (size - found.sizes[g])) for g in there]
    return np.square(jackknife(without))


def similarity(first, second) -> dict[str, float]:
    """How far two projectors agree: cosines of their entries.

    Args:
      first, second: (D, D).

    Returns:
      "projectors", which is near 1 for any two that leave most directions alone, and "removed",
      that of what they take off, I - projector: 1 for the same directions as strongly, 0 for
      orthogonal ones. If both take nothing off it is 1, if one does 0.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    identity = np.eye(len(first))
    return {
        "projectors": _cosine(first, second),
        "removed": _cosine(identity - first, identity - second),
    }


def _cosine(first, second) -> float:
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    if not all(lengths):
        return float(lengths[0] == lengths[1])
    return float(np.sum(first * second) / (lengths[0] * lengths[1]))
