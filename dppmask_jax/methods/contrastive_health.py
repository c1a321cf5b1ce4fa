"""How healthy the embeddings of a contrastive loss are, and warnings where they collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from dppmask_jax import parallel
from dppmask_jax.losses import contrastive

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_MANY_STEPS = 100  # of collapse before there is a warning
_LEAST_SPREAD = 0.1
_LEAST_DIMENSIONS = 1.5
_LEAST_LEAD = 0.02  # of the positives' cosine over the negatives'
_ROUNDING = 1e-6  # variance of unit vectors in float32 that says nothing


def measured(
    queries: Float[Array, "B D"], keys: Float[Array, "B D"]
) -> dict[str, Float[Array, ""]]:
    """Metrics of a batch of pairs, over the rows of all devices; only inside a function compiled
    by `parallel`. No gradient comes from them.

    Args:
      queries, keys: of any length; row i of the one belongs to row i of the other. One pair at
        the least on each device, two over all.

    Returns:
      positive_cosine: mean cosine of a query and its own key, from -1 to 1.
      negative_cosine: mean cosine of a query and another's key.
      spread: mean over dimensions of the standard deviation of the unit queries, times sqrt(D): 0
        where all are the same, up to 1 where they point everywhere alike.
      effective_rank: how many dimensions the unit queries vary in, from 1 to D: exp of the Renyi
        entropy of order 2 of the eigenvalues of their covariance over their sum, known as the
        participation ratio (Gao et al., A theory of multineuronal dimensionality, dynamics and
        measurement, bioRxiv 214262, 2017). Being the square of the trace over the squared Frobenius
        norm it takes no eigenvalues, which the entropy of order 1 (Roy and Vetterli, 2007;
        task=spectra) would ask for in each step. 0 where they do not vary.
    """
    queries, keys = (contrastive.unit(jax.lax.stop_gradient(each)) for each in (queries, keys))
    rows = parallel.rows_of_all(len(queries))
    sums = {
        "query": jnp.sum(queries, axis=0),
        "key": jnp.sum(keys, axis=0),
        "positive": jnp.sum(queries * keys),
        "moments": jnp.matmul(queries.T, queries, precision="highest"),
    }
    sums = parallel.total(sums)
    # The sum over all pairs of two rows is the product of the sums.
    negative = jnp.sum(sums["query"] * sums["key"]) - sums["positive"]
    mean = sums["query"] / rows
    covariance = sums["moments"] / rows - jnp.outer(mean, mean)
    variance = jnp.maximum(jnp.diagonal(covariance), 0.0)
    return {
        "positive_cosine": sums["positive"] / rows,
        "negative_cosine": negative / (rows * (rows - 1)),
        "spread": jnp.mean(jnp.sqrt(variance)) * queries.shape[1] ** 0.5,
        "effective_rank": _effective_rank(covariance),
    }


def _effective_rank(covariance):
    total, squares = jnp.trace(covariance), jnp.sum(jnp.square(covariance))
    varies = total > _ROUNDING
    return jnp.where(varies, jnp.square(total) / jnp.where(varies, squares, 1.0), 0.0)


def watch(for_noise: str = "") -> Callable[[int, dict[str, float]], str]:
    """Warns of a collapse once it has lasted for `_MANY_STEPS`, see `Method.watch`; the metrics
    are those of `measured`.

    Args:
      for_noise: what else helps, in words, where two views of an image are no more alike than those
        of two images.
    """
    cures = _COLLAPSES if not for_noise else {**_COLLAPSES, "noise": f"{_NOISE}, {for_noise}"}
    since = None

    def watched(step, values) -> str:
        nonlocal since
        name = _collapse(values)
        if not name:
            since = None
            return ""
        since = step if since is None else since
        return cures[name] if step - since >= _MANY_STEPS else ""

    return watched


def _collapse(values) -> str:
    """The key of `_COLLAPSES`; "" where the embeddings are healthy."""
    if values["spread"] < _LEAST_SPREAD:
        return "point"
    if values["effective_rank"] < _LEAST_DIMENSIONS:
        return "line"
    if values["positive_cosine"] - values["negative_cosine"] < _LEAST_LEAD:
        return "noise"
    return ""


_NOISE = (
    "collapse to noise: two views of an image are no more alike than views of two images "
    "(positive_cosine, negative_cosine); lower config.optim.base_lr or raise "
    "config.optim.warmup_epochs, or weaken the augmentation, such as by config.data.crop_scale"
)
_COLLAPSES = {
    "point": (
        "collapse to a point: all images have nearly the same embedding (spread); lower "
        "config.optim.base_lr or raise config.optim.warmup_epochs, and give each step more "
        "negatives by a larger config.batch_size"
    ),
    "line": (
        "collapse to a line: the embeddings differ in one direction alone (effective_rank); "
        "lower config.optim.base_lr, give each step more negatives by a larger config.batch_size, "
        "or lower config.loss.temperature"
    ),
    "noise": _NOISE,
}
