"""How alike heads, depths, tokens and images are, by the cosine of what the encoder makes of them.

After Park et al. (What Do Self-Supervised Vision Transformers Learn?, ICLR 2023, arXiv 2305.00729,
section 2), who show the cosine of heads, depths and tokens without their formula: here it is the
mean over pairs of different vectors. Of heads it is between the weighted means of their values, at
the same token; the class token and registers do not count.
"""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np

from dppmask_jax.analyses import base
from dppmask_jax.analyses.base import curve, patch_tokens, per_image, prefix_of, with_error
from dppmask_jax.evals.base import BLOCKS_ALONE, Evaluation, Result, Task
from dppmask_jax.figures.depths import Panel, draw_panels
from dppmask_jax.models.base import Trace

_LEAST_NORM = 1e-12
_WORDS = {
    "heads": "heads",
    "depths": "successive blocks",
    "tokens": "tokens of an image",
    "images_level": "images",
}
_FIRST = {"heads": 1, "depths": 1, "tokens": 0, "images_level": 0}  # depth of each


def mean_cosine(vectors):
    """Mean cosine of all pairs of different vectors.

    Args:
      vectors: (..., n, D), n at least 2.

    Returns:
      (...) float32, from -1 / (n - 1) to 1; a vector of zeros has a cosine of 0 to all.
    """
    count = vectors.shape[-2]
    units = _units(vectors)
    squares = jnp.sum(jnp.square(jnp.sum(units, axis=-2)), axis=-1)
    return (squares - jnp.sum(jnp.square(units), axis=(-2, -1))) / (count * (count - 1))


def _units(vectors):
    """Vectors (..., D) of length 1."""
    vectors = vectors.astype(jnp.float32)
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norms, _LEAST_NORM)


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where blocks do not show, or there is no second patch or image."""
    base.require_trace(evaluation)
    base.require_patches(evaluation, 2)
    base.require_images(evaluation, 2)


def run(evaluation: Evaluation) -> Result:
    """Cosines of heads, of successive depths, of tokens and of images, by depth."""

    def statistic(trace: Trace):
        of_depths = patch_tokens(trace)
        pairs = itertools.pairwise(of_depths)
        found = {
            "depths": [jnp.mean(jnp.sum(_units(a) * _units(b), -1), 1) for a, b in pairs],
            "tokens": [mean_cosine(tokens) for tokens in of_depths],
            "images": [_units(jnp.mean(tokens, axis=1)) for tokens in of_depths],
        }
        if trace.blocks[0].mixed.shape[1] > 1:
            mixed = [block.mixed[:, :, prefix_of(trace) :] for block in trace.blocks]
            found["heads"] = [jnp.mean(mean_cosine(jnp.swapaxes(m, 1, 2)), 1) for m in mixed]
        return {name: jnp.stack(values, axis=1) for name, values in found.items()}

    found = per_image(evaluation, statistic, "images")  # (M, L) or (M, L + 1); units (M, L + 1, D)
    units = found.pop("images")
    metrics = {
        "images": len(units),
        **{name: curve(values) for name, values in found.items()},
        "images_level": of_images(units),
    }
    return Result(
        metrics,
        _table(metrics),
        f"mean cosine of pairs, {metrics['images']:,} images; depth 0 is the embedding, l the "
        "output of block l",
        note="± is the standard error over the images; heads: their weighted means of values at "
        "the same token; successive blocks: a token and itself one block before; images: of mean "
        "patch tokens",
        row=_row(metrics),
    )


def of_images(units: np.ndarray) -> dict[str, list[float]]:
    """The curve of the mean cosine of images, from unit vectors (M, L + 1, D).

    Each image has its mean cosine to all others. A pair belongs to two images, so the error is
    twice that of a mean of as many independent numbers (Hoeffding, 1948).
    """
    total = units.sum(axis=0, dtype=np.float64)
    own = np.einsum("mld,mld->ml", units, units, dtype=np.float64)
    to_others = (np.einsum("mld,ld->ml", units, total) - own) / (len(units) - 1)
    found = curve(to_others)
    return {**found, "error": [2 * error for error in found["error"]]}


def _table(metrics) -> list[tuple[str, ...]]:
    rows = [("depth (0: embedding)", "heads", "successive blocks", "tokens of an image", "images")]
    for depth in range(len(metrics["tokens"]["mean"])):
        cells = [
            # The embedding has no heads, and no block before it.
            with_error(metrics[name], depth - first, 3)
            if name in metrics and depth >= first
            else ""
            for name, first in _FIRST.items()
        ]
        rows.append((str(depth), *cells))
    return rows


def _row(metrics) -> dict[str, str]:
    return {
        f"{words}, last block": with_error(metrics[name], -1, 3)
        for name, words in _WORDS.items()
        if name in metrics
    }


def compare(found) -> dict:
    """The four cosines by depth, a line a run, see `base.Task.compare`."""
    panels = [
        Panel(
            {label: metrics[name] for label, metrics in found.items() if name in metrics},
            f"cosine of {words}",
            "block" if first else "depth (0: embedding)",
            first,
        )
        for (name, words), first in zip(_WORDS.items(), _FIRST.values(), strict=True)
    ]
    return {
        "diversity.png": draw_panels(
            [panel for panel in panels if panel.curves],
            note=f"1: all alike, 0: at right angles; {base.over_images(found.values())}",
        )
    }


TASK = Task(
    check,
    run,
    base.FIELDS,
    compare=compare,
    unprojected=lambda config: BLOCKS_ALONE,
    unswept=base.no_score,
)
