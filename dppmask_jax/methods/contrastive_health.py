"""How healthy the embeddings of a contrastive loss are, and warnings where they collapse."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dppmask_jax import parallel

_MANY_STEPS = 100  # of collapse before there is a warning
_LEAST_SPREAD = 0.1
_LEAST_RANK = 1.5
_LEAST_LEAD = 0.02  # of the positives' cosine over the negatives'


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
      effective_rank: exp of the entropy of the singular values of the unit queries over their sum,
        from 1 to D (Roy and Vetterli, 2007; RankMe, arXiv 2210.02885, equation 1, which takes them
        without centring, as here, so that a batch of equal vectors has 1). 0 where all are zero.
    """
    queries, keys = _unit(queries), _unit(keys)
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
    moments = sums["moments"] / rows
    variance = jnp.diagonal(moments) - jnp.square(sums["query"] / rows)
    dimensions = queries.shape[1]
    return {
        "positive_cosine": sums["positive"] / rows,
        "negative_cosine": negative / (rows * (rows - 1)),
        "spread": jnp.mean(jnp.sqrt(jnp.maximum(variance, 0.0))) * dimensions**0.5,
        "effective_rank": _effective_rank(moments),
    }


def _unit(vectors):
    vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32)
    length = jnp.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)


def _effective_rank(moments):
    """Of vectors with second moments (D, D): their eigenvalues are squared singular values."""
    squares = jnp.linalg.eigvalsh(moments)
    # What is left of a zero after rounding has a root that would count.
    rounding = jnp.finfo(jnp.float32).eps * len(squares) * squares[-1]
    singular = jnp.sqrt(jnp.where(squares > rounding, squares, 0.0))
    share = singular / jnp.maximum(jnp.sum(singular), 1e-12)
    entropy = jnp.sum(jax.scipy.special.entr(share))
    return jnp.where(jnp.sum(singular) > 0, jnp.exp(entropy), 0.0)


def watch() -> Callable[[int, dict[str, float]], str]:
    """Warns of a collapse once it has lasted for `_MANY_STEPS`, see `Method.watch`; the metrics
    are those of `measured`."""
    since = None

    def watched(step, values) -> str:
        nonlocal since
        name = _collapse(values)
        if not name:
            since = None
            return ""
        since = step if since is None else since
        return _COLLAPSES[name] if step - since >= _MANY_STEPS else ""

    return watched


def _collapse(values) -> str:
    """The key of `_COLLAPSES`; "" where the embeddings are healthy."""
    if values["spread"] < _LEAST_SPREAD:
        return "point"
    if values["effective_rank"] < _LEAST_RANK:
        return "line"
    if values["positive_cosine"] - values["negative_cosine"] < _LEAST_LEAD:
        return "noise"
    return ""


_COLLAPSES = {
    "point": (
        "collapse to a point: all images have nearly the same embedding (spread); lower "
        "config.optim.base_lr or raise config.optim.warmup_epochs, and give each step more "
        "negatives by a larger config.batch_size"
    ),
    "line": (
        "collapse to a line: the embeddings differ in one direction alone (effective_rank); lower "
        "config.optim.base_lr, give each step more negatives by a larger config.batch_size, or "
        "lower config.loss.temperature"
    ),
    "noise": (
        "collapse to noise: two views of an image are no more alike than views of two images "
        "(positive_cosine, negative_cosine); lower config.optim.base_lr or raise "
        "config.optim.warmup_epochs, or weaken the augmentation, such as by config.data.crop_scale"
    ),
}
