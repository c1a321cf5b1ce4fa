"""Singular values of an encoder's tokens, and how many dimensions they fill.

Tokens of one image, and mean patch tokens of many images, as Park et al. look at them (What Do
Self-Supervised Vision Transformers Learn?, ICLR 2023, arXiv 2305.00729, section 2, and the author's
answer in issue 2 of its code). Effective rank: Roy and Vetterli, EUSIPCO 2007. RankMe: Garrido et
al., ICML 2023, arXiv 2210.02885.

A singular value is one of a covariance, and so a variance. The class token and registers do not
count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from dppmask_jax.analyses import base
from dppmask_jax.analyses.base import curve, patch_tokens, per_image, with_error
from dppmask_jax.evals.base import Evaluation, Result, Task
from dppmask_jax.figures.depths import Panel, draw_panels
from dppmask_jax.models.base import Trace
from dppmask_jax.scores.uncertainty import jackknife

_LEAST_IMAGES = 20
_GROUPS = 10  # of images, each left out once
_FLOOR = 1e-12  # of a singular value, before its logarithm
_RANKME_EPSILON = 1e-7
_ROUNDING = np.log(1e-10)  # a variance this far below the first is float32's rounding


def token_log_singular_values(latents, prefix: int = 1):
    """Log singular values of the covariance of the patch tokens of an image, mean over images.

    Args:
      latents: (B, prefix + N, D).
      prefix: how many of the first tokens are no patches.

    Returns:
      (min(N - 1, D),) float32, falling: of N centred tokens no more are above 0.
    """
    return jnp.mean(_of_each_image(jnp.asarray(latents)[:, prefix:]), axis=0)


def image_log_singular_values(latents, prefix: int = 1):
    """Log singular values of the covariance of mean patch tokens over images.

    Args:
      latents: (B, prefix + N, D).
      prefix: how many of the first tokens are no patches.

    Returns:
      (min(B - 1, D),) float32, falling: of B centred means no more are above 0.
    """
    return _log_singular_values(jnp.mean(jnp.asarray(latents)[:, prefix:], axis=1))


def effective_rank(singular_values) -> np.ndarray:
    """exp of the entropy of the shares that singular values have of their sum.

    Args:
      singular_values: (..., R), not negative.

    Returns:
      (...) float64, from 1 to R; R where all are equal.
    """
    values = np.asarray(singular_values, np.float64)
    shares = values / np.maximum(values.sum(axis=-1, keepdims=True), _FLOOR)
    return np.exp(-np.sum(shares * np.log(np.maximum(shares, _FLOOR)), axis=-1))


def rankme(singular_values) -> np.ndarray:
    """RankMe: as `effective_rank`, of the singular values of the features themselves (M, D), which
    are not centred; with the epsilon of the paper."""
    values = np.asarray(singular_values, np.float64)
    total = np.maximum(values.sum(axis=-1, keepdims=True), _FLOOR)
    shares = values / total + _RANKME_EPSILON
    return np.exp(-np.sum(shares * np.log(shares), axis=-1))


def _of_each_image(tokens):
    """(B, N, D) -> (B, min(N - 1, D)) log singular values of their covariances.

    One image after the other: on a CPU, jaxlib's SVD of a batch waits for threads of the pool that
    it runs in itself, for ever where several run at once.
    """
    return jax.lax.map(_log_singular_values, tokens)


def _log_singular_values(vectors):
    """(n, D) -> (min(n - 1, D),) of their covariance.

    Singular values of the centred vectors keep twice the digits of those of the covariance.
    """
    count, width = vectors.shape
    vectors = vectors.astype(jnp.float32)
    centred = vectors - jnp.mean(vectors, axis=0)
    of_vectors = jnp.linalg.svd(centred, compute_uv=False)[: min(count - 1, width)]
    return jnp.log(jnp.maximum(jnp.square(of_vectors) / (count - 1), _FLOOR))


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where blocks do not show, or there are too few patches or images, and
    InputError where config.images is too small."""
    base.require_trace(evaluation)
    base.require_patches(evaluation, 3)
    base.require_images(evaluation, _LEAST_IMAGES)


def run(evaluation: Evaluation) -> Result:
    """Singular values and ranks at every depth, and behind the final norm."""

    def statistic(trace: Trace):
        of_depths = [*patch_tokens(trace), trace.tokens.patches]
        return {
            "logs": jnp.stack([_of_each_image(tokens) for tokens in of_depths], axis=1),
            "pooled": jnp.stack([jnp.mean(tokens, axis=1) for tokens in of_depths], axis=1),
        }

    # Threads of BLAS wait for each other longer than such small matrices take.
    with threadpool_limits(1, user_api="blas"):
        found = per_image(evaluation, statistic, "images", least=_LEAST_IMAGES)  # (M, L + 2, ...)
        metrics = {
            "images": len(found["logs"]),
            "tokens_level": _of_tokens(found["logs"]),
            "images_level": _of_images(found["pooled"]),
        }
    rows, columns = evaluation.run.method.encoder.grid
    return Result(
        metrics,
        _table(metrics),
        f"{rows}x{columns} patch tokens of width {evaluation.run.method.encoder.width}, "
        f"{metrics['images']:,} images; depth 0 is the embedding, l the output of block l, norm "
        "that of the final norm",
        note=_note(metrics),
        row=_row(metrics),
    )


def _of_tokens(logs: np.ndarray) -> dict:
    """Of the log singular values (M, L + 2, R) of each image."""
    of_depths = [logs[:, depth] for depth in range(logs.shape[1])]
    ranks = [effective_rank(_from_logs(of_depth)) for of_depth in of_depths]
    return {
        "log_singular_values": [curve(of_depth) for of_depth in of_depths],
        "drop": [curve(of_depth - of_depth[:, :1]) for of_depth in of_depths],
        "effective_rank": curve(np.stack(ranks, axis=1)),
    }


def _from_logs(logs: np.ndarray) -> np.ndarray:
    """Singular values; at the floor there are none, or the rank of equal tokens would be full."""
    return np.where(logs > np.log(2 * _FLOOR), np.exp(logs.astype(np.float64)), 0.0)


def _of_images(pooled: np.ndarray) -> dict:
    """Of the mean patch tokens (M, L + 2, D)."""
    found = [of_vectors(pooled[:, depth]) for depth in range(pooled.shape[1])]
    ranks = {
        name: {part: [of_depth[name][part] for of_depth in found] for part in ("mean", "error")}
        for name in ("effective_rank", "rankme")
    }
    return {name: [one[name] for one in found] for name in ("log_singular_values", "drop")} | ranks


def of_vectors(vectors: np.ndarray) -> dict[str, dict]:
    """Singular values and ranks of a vector an image.

    Args:
      vectors: (M, D), M at least 20, may be a memory map.

    Returns:
      {"log_singular_values", "drop", which is those less the first, "effective_rank", "rankme":
      {"mean": the value, "error": its standard error}}. The error is the jackknife's over ten
      groups of images, of which each is left out once; singular values are as many as are above 0
      without a group.
    """
    mean = vectors.mean(axis=0, dtype=np.float64)
    sums = [_sums(vectors[first::_GROUPS] - mean) for first in range(_GROUPS)]
    everything = [sum(parts) for parts in zip(*sums, strict=True)]
    left = [[total - part for total, part in zip(everything, group, strict=True)] for group in sums]
    rank = min(int(min(count for count, *_ in left)) - 1, len(mean))
    of_all = _statistics(*everything, mean, rank)
    without = [_statistics(*of_rest, mean, rank) for of_rest in left]
    return {
        name: {"mean": value.tolist(), "error": jackknife([one[name] for one in without]).tolist()}
        for name, value in of_all.items()
    }


def _sums(rows: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """(number of rows (n, D), their sum, the sum of their outer products)."""
    return len(rows), rows.sum(axis=0), rows.T @ rows


def _statistics(count: int, total, squares, mean, rank: int) -> dict[str, np.ndarray]:
    """Of `count` vectors, of whose differences to `mean` total (D,) is the sum and squares (D, D)
    the sum of outer products; the `rank` largest singular values are listed, ranks are of all."""
    around_mean = squares - np.outer(total, total) / count
    shifted = np.outer(total, mean)
    around_zero = squares + shifted + shifted.T + count * np.outer(mean, mean)
    variances = np.linalg.eigvalsh(around_mean)[::-1][: count - 1] / (count - 1)
    of_features = np.sqrt(np.maximum(np.linalg.eigvalsh(around_zero)[::-1][:count], 0))
    logs = np.log(np.maximum(variances, _FLOOR))
    return {
        "log_singular_values": logs[:rank],
        "drop": logs[:rank] - logs[0],
        "effective_rank": effective_rank(_from_logs(logs)),
        "rankme": rankme(of_features),
    }


def _table(metrics) -> list[tuple[str, ...]]:
    tokens, images = metrics["tokens_level"], metrics["images_level"]
    depth = len(images["rankme"]["mean"])
    heading = (
        "depth (0: embedding)",
        "effective rank, tokens of an image",
        "effective rank, images",
        "RankMe, images",
    )
    ranks = (tokens["effective_rank"], images["effective_rank"], images["rankme"])
    return [heading] + [
        (name, *(with_error(values, i, 1) for values in ranks))
        for i, name in enumerate([*map(str, range(depth - 1)), "norm"])
    ]


def _note(metrics) -> str:
    tokens, images = (
        len(metrics[level]["drop"][0]["mean"]) for level in ("tokens_level", "images_level")
    )
    return (
        "± is the standard error over images, of their level by leaving out each of "
        f"{_GROUPS} groups; ranks of tokens reach {tokens}, of images {images}"
    )


def _row(metrics) -> dict[str, str]:
    """Behind the final norm: what users of the encoder get."""
    tokens, images = metrics["tokens_level"], metrics["images_level"]
    return {
        "effective rank, tokens": with_error(tokens["effective_rank"], -1, 1),
        "effective rank, images": with_error(images["effective_rank"], -1, 1),
        "RankMe": with_error(images["rankme"], -1, 1),
    }


def above_rounding(drop: dict[str, list[float]]) -> dict[str, list[float]]:
    """The first values of a curve, without the last ones that are float32's rounding alone.

    A layer norm takes one direction away, for example; what is left of it would stretch an axis.

    Args:
      drop: {"mean", "error"}: R log singular values less the first of them, so 0 and then falling,
        and their errors.

    Returns:
      The same of those above log(1e-10), at most R.
    """
    number = sum(value > _ROUNDING for value in drop["mean"])
    return {part: values[:number] for part, values in drop.items()}


def compare(found) -> dict:
    """Singular values behind the final norm, where a projection acts, and ranks by depth, a line a
    run, see `base.Task.compare`."""

    def behind_norm(level: str) -> dict:
        return {
            label: above_rounding(metrics[level]["drop"][-1]) for label, metrics in found.items()
        }

    def by_depth(level: str, rank: str) -> dict:
        return {
            label: {part: values[:-1] for part, values in metrics[level][rank].items()}
            for label, metrics in found.items()
        }

    fall = "log singular value less the first\n"
    nth, depth = "singular value, from the largest", "depth (0: embedding)"
    tokens, images = "tokens_level", "images_level"
    panels = [
        Panel(behind_norm(tokens), f"{fall}(tokens of an image)", nth),
        Panel(behind_norm(images), f"{fall}(images)", nth),
        Panel(
            by_depth(tokens, "effective_rank"),
            "effective rank (tokens of an image)",
            depth,
            0,
            from_zero=True,
        ),
        Panel(by_depth(images, "rankme"), "RankMe (images)", depth, 0, from_zero=True),
    ]
    note = (
        "singular values of covariances behind the final norm, natural logarithms; "
        f"{base.over_images(found.values())}"
    )
    return {"spectra.png": draw_panels(panels, note=note)}


TASK = Task(check, run, base.FIELDS, compare=compare, unswept=base.no_score)
