"""Where attention looks: how far, and whether it depends on the query (Park et al., What Do
Self-Supervised Vision Transformers Learn?, ICLR 2023, arXiv 2305.00729, section 2 and code).

Attention among patches alone counts: rows and columns of the class token and of registers are
dropped, and the rows that are left sum to 1 again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import patches
from dppmask_jax.analyses import base
from dppmask_jax.analyses.base import curve, per_image, prefix_of, with_error
from dppmask_jax.evals.base import BLOCKS_ALONE, Evaluation, Result, Score, Task
from dppmask_jax.fields import Field, whole
from dppmask_jax.figures import colours
from dppmask_jax.figures.attention_maps import draw_maps
from dppmask_jax.figures.depths import Panel, draw_panels
from dppmask_jax.models.base import Trace
from dppmask_jax.scores.uncertainty import errors_of_means

FIELDS = {
    **base.FIELDS,
    "shown": Field(4, whole(0, 32), "images whose maps are drawn; 0 draws none"),
}
# (Name in the metrics, heading, digits) of the columns of tables.
_COLUMNS = (("distance", "distance (px)", 2), ("nmi", "mutual information", 4))
# Added to every weight by the authors' code; a row that only sees the class token becomes even.
_DISTANCE_EPSILON = 1e-32
_INFORMATION_EPSILON = 1e-8


def distance(weights, grid: tuple[int, int], patch_size: patches.PatchSize, prefix: int = 1):
    """How many pixels lie between a query and what it attends to, mean over the queries.

    Args:
      weights: (B, H, prefix + N, prefix + N): rows are queries, and sum to 1.
      grid: (rows, columns) with rows * columns == N.
      patch_size: of a patch in pixels.
      prefix: how many of the first tokens are no patches.

    Returns:
      (B, H) float32, between the centres of patches: 0 where each patch attends to itself alone.

    Raises:
      ValueError: the weights do not fit the grid.
    """
    apart = _apart(grid, patch_size)
    among = _among_patches(weights, prefix, _DISTANCE_EPSILON)
    if among.shape[-1] != len(apart):
        raise ValueError(
            f"attention of shape {weights.shape} does not fit {grid[0]}x{grid[1]} patches and "
            f"{prefix} tokens before them"
        )
    return jnp.mean(jnp.sum(among * apart, axis=-1), axis=-1)


def mutual_information(weights, prefix: int = 1):
    """The normalised mutual information of query and key, I(q, k) / sqrt(H(q) H(k)), where all
    queries are equally likely.

    Args:
      weights: (B, H, prefix + N, prefix + N), N at least 2: rows are queries, and sum to 1.
      prefix: how many of the first tokens are no patches.

    Returns:
      (B, H) float32: 0 where all queries attend alike, about 1 where each attends to a key of its
      own.

    Raises:
      ValueError: there is no second patch.
    """
    of_key_given_query = _among_patches(weights, prefix, _INFORMATION_EPSILON)
    count = of_key_given_query.shape[-1]
    if count < 2:
        raise ValueError(f"attention of shape {weights.shape} has no two patches")
    of_key = jnp.mean(of_key_given_query, axis=-2)
    # Relative entropy as a sum of terms that are not negative: rounding cannot make it so.
    ratio = of_key_given_query / of_key[..., None, :]
    terms = of_key[..., None, :] * (ratio * jnp.log(ratio) - (ratio - 1))
    information = jnp.mean(jnp.sum(terms, axis=-1), axis=-1)
    entropy = -jnp.sum(of_key * jnp.log(of_key), axis=-1)
    return information / jnp.sqrt(np.log(count) * entropy)


def uniform_distance(grid: tuple[int, int], patch_size: patches.PatchSize) -> float:
    """The `distance` of attention that is the same to all patches; 116.492 of 14x14 of 16 px."""
    return float(_apart(grid, patch_size).mean())


def _apart(grid, patch_size) -> np.ndarray:
    """(N, N): pixels between the centres of two patches."""
    places = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)
    places = places * np.array(patches.sides(patch_size))
    return np.linalg.norm(places[:, None] - places, axis=-1)


def _among_patches(weights, prefix: int, epsilon: float):
    """(B, H, N, N): attention of patches to patches, whose rows sum to 1."""
    among = jnp.asarray(weights, jnp.float32)[..., prefix:, prefix:] + epsilon
    return among / jnp.sum(among, axis=-1, keepdims=True)


def check(evaluation: Evaluation) -> None:
    """Raises NotServed where there is no attention, no second patch or no second image."""
    base.require_trace(evaluation)
    base.require_patches(evaluation, 2)
    base.require_images(evaluation, 2)


def run(evaluation: Evaluation) -> Result:
    """Attention distance and mutual information of each head and block, and maps of some images."""
    encoder, patch_size = evaluation.run.method.encoder, evaluation.config.model.patch_size

    def statistic(trace: Trace):
        prefix = prefix_of(trace)
        of_blocks = [block.attention for block in trace.blocks]
        return {
            "distance": jnp.stack(
                [distance(a, encoder.grid, patch_size, prefix) for a in of_blocks], axis=1
            ),
            "nmi": jnp.stack([mutual_information(a, prefix) for a in of_blocks], axis=1),
        }

    found = per_image(evaluation, statistic, "images")  # (M, L, H) each
    uniform = uniform_distance(encoder.grid, patch_size)
    metrics = {
        "images": len(found["nmi"]),
        "grid": list(encoder.grid),
        "uniform_distance": uniform,
        **{name: _of_heads(values) for name, values in found.items()},
    }
    size = patches.size_name(patch_size)
    return Result(
        metrics,
        _table(metrics),
        f"attention among {encoder.grid[0]}x{encoder.grid[1]} patches of {size} px, "
        f"{metrics['images']:,} images, mean over heads",
        Score(
            "NMI of query and key, last block",
            metrics["nmi"]["mean"][-1],
            standard_error=metrics["nmi"]["error"][-1],
            in_percent=False,
            images=metrics["images"],
        ),
        note="± is the standard error over the images; heads: the least and the largest mean of a "
        f"head; attention that is the same to all patches reaches {uniform:.1f} px and has no "
        "mutual information",
        row=_row(metrics),
        figures=_maps(evaluation),
    )


def _of_heads(values: np.ndarray) -> dict:
    """(M, L, H) -> the curve of the mean over heads, and of each head its means."""
    return {
        **curve(values.mean(axis=2)),
        "heads": values.mean(axis=0, dtype=np.float64).tolist(),
        "heads_error": errors_of_means(values).tolist(),
    }


def _table(metrics) -> list[tuple[str, ...]]:
    rows = [("block", *(cell for _, words, _ in _COLUMNS for cell in (words, "heads")))]
    for i in range(len(metrics["nmi"]["mean"])):
        cells = []
        for name, _, digits in _COLUMNS:
            of_heads = metrics[name]["heads"][i]
            cells += [
                with_error(metrics[name], i, digits),
                f"{min(of_heads):.{digits}f} to {max(of_heads):.{digits}f}",
            ]
        rows.append((str(i + 1), *cells))
    return rows


def _row(metrics) -> dict[str, str]:
    depth = len(metrics["nmi"]["mean"])
    return {
        f"{words}, {which} block": with_error(metrics[name], i, digits)
        for name, words, digits in _COLUMNS
        for which, i in (("first", 0), ("middle", depth // 2), ("last", depth - 1))
    }


def _maps(evaluation: Evaluation) -> dict:
    """The picture of some images and what is attended to in them."""
    encoder = evaluation.run.method.encoder
    images = base.pictures(evaluation, evaluation.config.shown) if evaluation.config.shown else ()
    if not len(images):
        return {}
    has_class_token = encoder.attended is not None

    @jax.jit
    def of_blocks(params, images):
        trace = encoder.trace(params, encoder.pixels.normalize(images))
        prefix = prefix_of(trace)
        queries = slice(0, 1) if has_class_token else slice(prefix, None)
        maps = [block.attention[:, :, queries, prefix:].mean(axis=(1, 2)) for block in trace.blocks]
        return jnp.stack(maps, axis=1)

    maps = np.asarray(of_blocks(evaluation.run.encoder, images))
    of = "of the class token" if has_class_token else "that patches receive"
    size = evaluation.config.model.patch_size
    images = colours.shown(encoder.pixels, images)
    return {"attention_maps.png": draw_maps(images, maps, size, f"attention {of}, mean over heads")}


def compare(found) -> dict:
    """Distance and mutual information by depth, a line a run, see `base.Task.compare`."""
    curves = {
        name: {
            label: {**metrics[name], "parts": metrics[name]["heads"]}
            for label, metrics in found.items()
        }
        for name in ("distance", "nmi")
    }
    # Named by their height too: as many patches may be of other sizes.
    levels = {
        f"uniform, {'x'.join(map(str, metrics['grid']))} patches: {height:.1f} px": height
        for metrics in found.values()
        for height in (metrics["uniform_distance"],)
    }
    panels = [
        Panel(curves["distance"], "attention distance (pixels)", levels=levels, from_zero=True),
        Panel(curves["nmi"], "normalised mutual information\nof query and key", from_zero=True),
    ]
    return {
        "attention_depth.png": draw_panels(
            panels, note=f"{base.over_images(found.values())}; dots: heads"
        )
    }


TASK = Task(
    check,
    run,
    FIELDS,
    compare=compare,
    unprojected=lambda config: BLOCKS_ALONE,
)
