"""Masks of filtered noise, which are spaced or clumped without a look at the image (ColorMAE,
arXiv 2407.13036).

They are the control for masks that look: what a strategy gains over them, it gains by features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.fields import Field, one_of
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int

COLOURS = ("green", "blue", "red", "purple")
WEAK, STRONG = 0.5, 2.0  # standard deviations of the two blurs, in patches
FIELDS = {
    "mask.colour": Field(
        "green",
        one_of(*COLOURS),
        "noise: what is left of white noise; red low, blue high, green middle frequencies, purple "
        "all but the middle",
    )
}
_REACH = int(4 * STRONG)  # of a blur, in patches
_UNIT = 512  # what the weights of a blur sum to
_GREYS = 256  # steps of the white noise in a standard deviation


def noise(
    key: Array, shape: tuple[int, int], count: int | Int[Array, ""], colour: str = "green"
) -> Mask:
    """Masks the patches where filtered white Gaussian noise is largest.

    With W the white noise and G * W its blur by a Gaussian: red is G_strong * W, blue W - G_weak *
    W, green G_weak * W - G_strong * W, purple W less green. The colours, blurring, and masking a
    share by rank are the authors'. The widths of the blurs are ours, as no number is published:
    half a patch and two. Their code cuts masks out of large patterns made beforehand and masks the
    smallest values, which is the same as the largest where noise is symmetric; here each image has
    noise of its own. It is drawn on a margin around the grid too, so that opposite edges are
    independent of one another.

    Noise and weights are whole numbers: sums round nowhere, and a mask is the same however it is
    compiled and on however many devices; of another kind, they may round a few normal draws apart.

    Args:
      key: a JAX key of this image alone.
      shape: (rows, columns) of patches; static.
      count: number of visible patches; may be traced, then 0..rows * columns is not checked.
      colour: one of COLOURS.

    Raises:
      ValueError: a static `count` outside 0..rows * columns, or an unknown `colour`.
    """
    rows, columns = shape
    check_count(count, 0, rows * columns)
    if colour not in COLOURS:
        raise ValueError(f"colour must be {' | '.join(COLOURS)}, got {colour!r}")
    around = (rows + 2 * _REACH, columns + 2 * _REACH)
    white = jnp.round(jax.random.normal(key, around, jnp.float32) * _GREYS).astype(jnp.int32)

    def blurred(deviation):
        down, across = (jnp.asarray(_blur(side, deviation)) for side in shape)
        return down @ white @ across.T

    if colour == "red":
        value = blurred(STRONG)
    elif colour == "blue":
        value = blurred(0.0) - blurred(WEAK)
    else:
        value = blurred(WEAK) - blurred(STRONG)
        value = blurred(0.0) - value if colour == "purple" else value
    index = lax.iota(jnp.int32, rows * columns)
    return mask_from(lax.sort((value.reshape(-1), index), num_keys=2)[1], count)


def _blur(side: int, deviation: float) -> np.ndarray:
    """(side, side + 2 _REACH) int32: how much of each value of a row with its margins goes into
    each of its blur; 0 blurs nothing. Rows sum to _UNIT."""
    away = np.arange(-_REACH, _REACH + 1)
    weights = np.exp(-(away**2) / (2 * max(deviation, 1e-3) ** 2))
    whole = np.round(weights / weights.sum() * _UNIT).astype(np.int32)
    whole[_REACH] += _UNIT - whole.sum()  # the middle takes what rounding left
    matrix = np.zeros((side, side + 2 * _REACH), np.int32)
    for row in range(side):
        matrix[row, row : row + len(whole)] = whole
    return matrix


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        def one(key, count):
            return noise(key, seen.grid, count, mask.colour)

        return per_image(one, keys, count), {}

    return Masker(draw, frozenset(), f"{mask.colour} noise")


KIND = MaskerKind(_build, FIELDS, variants=tuple({"colour": colour} for colour in COLOURS))
