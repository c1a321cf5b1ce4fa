"""Colours and blur of the views that iBOT and DINO compare, on the device.

The operations are those of Pillow's ImageEnhance, ImageOps and ImageFilter, in floating point
instead of whole grey levels. dm-pix does the hue and the solarising. Its other pieces mean
something else or cost more: its contrast leaves each channel its own mean, its saturation scales
that of HSV, its grey weights add up to 0.9999, and its blur darkens the edges, hardly blurs at a
sigma below 0.4, and as a convolution with a kernel for each image it takes far longer on a CPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.fields import Field, Rule, above_to, is_number, number, pair
from dppmask_jax.pixel_format import RGB, Pixels

_HUE = 3  # its place in `jitter`
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
_PASSES = 3  # of the blur's box filter, in each direction
_REACH = 2  # pixels from the box's centre to its end: enough up to a sigma of 2.4
_PRECISION = "high"  # of its products on a TPU: within a hundredth of a grey level of float32
# Solarising inverts what Pillow would round to 128 or more.
_THRESHOLD = 127.5 / 255


def _shares(count: int, meaning: str, last: float = 1.0) -> Rule:
    """So many numbers from 0 to 1, the last of them to `last`."""

    def holds(values):
        return (
            isinstance(values, (tuple, list))
            and len(values) == count
            and all(is_number(x) and 0 <= x <= 1 for x in values)
            and values[-1] <= last
        )

    return Rule(holds, meaning, tuple)


FIELDS = {
    "data.jitter": Field(
        (0.4, 0.4, 0.2, 0.1),
        _shares(
            4,
            "four numbers from 0 to 1 (brightness, contrast, saturation, hue), the last to 0.5",
            last=0.5,
        ),
        "how far the colours of a view change",
    ),
    "data.jitter_prob": Field(0.8, number(0, 1), "probability that the colours of a view change"),
    "data.grey_prob": Field(0.2, number(0, 1), "probability that a view loses its colours"),
    "data.blur_prob": Field(
        (1.0, 0.1, 0.5),
        _shares(3, "three numbers from 0 to 1 (first global view, second, local views)"),
        "probability of a blur",
    ),
    "data.blur_sigma": Field(
        (0.1, 2.0),
        pair(above_to(0, 2.4), "(smallest, largest) in pixels, above 0 to 2.4", ordered=True),
        "width of the blur",
    ),
    "data.solarize_prob": Field(
        0.2, number(0, 1), "probability that the second global view is solarised"
    ),
}

COLOURS = ("data.jitter_prob", "data.grey_prob")  # what needs three channels


class Changes(NamedTuple):
    """What is done to one image; None instead of a piece that is never used."""

    order: jax.Array | None  # (4,) the colour changes in turn
    factors: jax.Array | None  # (3,) of brightness, contrast, saturation; 1 changes nothing
    hue: jax.Array | None  # () added, in turns; 0 changes nothing
    grey: jax.Array | None  # () bool
    sigma: jax.Array | None  # () pixels, 0 for no blur
    solarize: jax.Array | None  # () bool


def augment_view(
    images: jax.Array,
    keys: jax.Array,
    *,
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1),
    jitter_prob: float = 0.8,
    grey_prob: float = 0.2,
    blur_prob: float | np.ndarray,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize_prob: float | np.ndarray,
    pixels: Pixels = RGB,
) -> jax.Array:
    """Changes colours, blurs, solarises and normalises one view of each image, at random.

    In this order, each with its own probability: brightness, contrast, saturation and hue changed
    in random order; greyscale; Gaussian blur; values from 128 on inverted. These are the views of
    BYOL (arXiv 2006.07733) with the numbers of iBOT (arXiv 2111.07832), whose first global view has
    blur_prob 1 and solarize_prob 0, the second 0.1 and 0.2, the local ones 0.5 and 0. Meant to be
    called inside a jitted step.

    Args:
      images: (B, H, W, C) uint8, or float from 0 to 1; colours and grey need three channels.
      keys: (B,) typed PRNG keys, one an image and view: what happens to an image depends on its
        own key alone.
      jitter: the factors of brightness, contrast and saturation are uniform in 1 - s to 1 + s (not
        below 0) for the first three numbers s; the hue moves by up to the fourth, in turns.
      blur_sigma: smallest and largest sigma of the Gaussian in pixels, at most 2.4.
      jitter_prob, grey_prob, blur_prob, solarize_prob: from 0 to 1, Python floats; the last two may
        be NumPy arrays (B,), with one for each image. A piece that no image can have is not
        compiled; others are computed for all images.
      pixels: of the images.

    Returns:
      (B, H, W, C) float32, normalised.
    """
    chex.assert_rank([images, keys], [4, 1])
    chex.assert_type(images, pixels.dtype)
    draw = functools.partial(
        draw_changes,
        jitter=jitter,
        jitter_prob=jitter_prob,
        grey_prob=grey_prob,
        blur_sigma=blur_sigma,
    )
    probs = {"blur_prob": blur_prob, "solarize_prob": solarize_prob}
    each = {name: np.float32(prob) for name, prob in probs.items() if np.ndim(prob) and any(prob)}
    same = {name: float(np.max(prob)) for name, prob in probs.items() if name not in each}
    changes = jax.vmap(lambda key, each: draw(key, **same, **each))(keys, each)
    # Channels first: three channels as the innermost axis would leave vector units mostly idle.
    planes = pixels.unit(jnp.moveaxis(images, -1, 1))
    planes = jax.vmap(change)(planes, changes)
    return pixels.normalize(jnp.moveaxis(planes, 1, -1))


def draw_changes(
    key: jax.Array,
    *,
    jitter: tuple[float, float, float, float],
    jitter_prob: float,
    grey_prob: float,
    blur_prob: float | jax.Array,
    blur_sigma: tuple[float, float],
    solarize_prob: float | jax.Array,
) -> Changes:
    """Draws what `augment_view`, which explains the arguments, does to the image of one key. Of
    a traced probability the piece is there, even where it is 0."""
    order_key, factor_key, hue_key, sigma_key, *which = jax.random.split(key, 8)
    jittered, grey, blurred, solarize = (
        jax.random.bernoulli(key, prob) if isinstance(prob, jax.Array) or prob > 0 else None
        for key, prob in zip(which, (jitter_prob, grey_prob, blur_prob, solarize_prob), strict=True)
    )
    order = factors = hue = sigma = None
    if jittered is not None:
        spread = jnp.asarray(jitter[:3], jnp.float32)
        factors = jax.random.uniform(
            factor_key, (3,), minval=jnp.maximum(0.0, 1 - spread), maxval=1 + spread
        )
        factors = jnp.where(jittered, factors, 1.0)
        hue = jax.random.uniform(hue_key, minval=-jitter[3], maxval=jitter[3])
        hue = jnp.where(jittered, hue, 0.0)
        order = jax.random.permutation(order_key, 4)
    if blurred is not None:
        sigma = jax.random.uniform(sigma_key, minval=blur_sigma[0], maxval=blur_sigma[1])
        sigma = jnp.where(blurred, sigma, 0.0)
    return Changes(order, factors, hue, grey, sigma, solarize)


def change(planes: jax.Array, changes: Changes) -> jax.Array:
    """Applies the changes to one image: (C, H, W) float32 from 0 to 1, as is the result."""
    if changes.order is not None:
        planes = _jitter(planes, changes.order, changes.factors, changes.hue)
    if changes.grey is not None:
        planes = jnp.where(changes.grey, _grey(planes), planes)
    if changes.sigma is not None:
        planes = _blur(planes, changes.sigma)
    if changes.solarize is not None:
        planes = jnp.where(changes.solarize, dm_pix.solarize(planes, _THRESHOLD), planes)
    return planes


def _jitter(planes, order, factors, hue):
    # Branches would all be computed under vmap, each of the four at each of four places. But all
    # changes except the hue's are one blend with different weights. So: up to three blends before
    # the hue, the hue once, and up to three after it; those on its other side change nothing.
    brightness, contrast, saturation = factors
    weights = jnp.array(  # of the image, of its grey, of its mean grey
        [
            [brightness, 0, 0],
            [contrast, 0, 1 - contrast],
            [saturation, 1 - saturation, 0],
            [1, 0, 0],
        ]
    )
    place = jnp.arange(4)
    turn = jnp.argmax(order == _HUE)
    before = weights[jnp.where(place < turn, order, _HUE)]
    after = weights[jnp.where(place > turn, order, _HUE)]
    planes, _ = lax.scan(_blend, planes, before[:3])
    planes = dm_pix.adjust_hue(planes, hue, channel_axis=0)
    planes, _ = lax.scan(_blend, planes, after[1:])
    return planes


def _blend(planes, weights):
    grey = _grey(planes)
    blended = weights[0] * planes + weights[1] * grey + weights[2] * grey.mean()
    return jnp.clip(blended, 0.0, 1.0), None


def _grey(planes):
    red, green, blue = planes
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[None]


def _blur(planes, sigma):
    # Pillow's blur: three passes, over rows and columns, with a box of a third of the variance
    # (Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering",
    # SSVM 2011). The box is 2 * whole + 1 pixels wide and has a part of one more at either end.
    variance = sigma**2 / _PASSES
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part = part / (6 * (variance - (whole + 1) ** 2))
    distance = jnp.abs(jnp.arange(-_REACH, _REACH + 1))
    box = jnp.clip(whole + part + 1 - distance, 0.0, 1.0)
    box = box / box.sum()
    return lax.platform_dependent(planes, box, tpu=_blur_by_products, default=_blur_by_slices)


def _blur_by_slices(planes, box):
    _, height, width = planes.shape

    def average(_, planes):  # with the edges repeated outwards, anew in each pass
        margin = (_REACH, _REACH)
        padded = jnp.pad(planes, ((0, 0), margin, margin), mode="edge")
        rows = sum(box[i] * padded[:, i : i + height] for i in range(len(box)))
        return sum(box[i] * rows[:, :, i : i + width] for i in range(len(box)))

    return lax.fori_loop(0, _PASSES, average, planes)


def _blur_by_products(planes, box):
    """The same by two matrix products: by the TPU compiler's estimate a fifth of the cycles for
    iBOT's views, on a CPU two to four times as slow."""
    _, height, width = planes.shape
    rows = _all_passes(box, height)
    columns = rows if height == width else _all_passes(box, width)
    return jnp.einsum("hi,ciw,vw->chv", rows, planes, columns, precision=_PRECISION)


def _all_passes(box, size: int):
    """(size, size): what the passes together do to a column of as many pixels."""
    pixels = jnp.arange(size)
    once = sum(
        box[_REACH + offset] * (jnp.clip(pixels + offset, 0, size - 1)[:, None] == pixels)
        for offset in range(-_REACH, _REACH + 1)
    )
    together = once
    for _ in range(_PASSES - 1):
        together = jnp.matmul(together, once, precision=_PRECISION)
    return together
