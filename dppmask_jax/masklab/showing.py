"""What masks are drawn from: an untrained embedding, or what the method of a run shows.

What is shown stands in arrays, so that all maskers are drawn from the same, and their cost is that
of the choice alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, patches
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.masklab.photographs import Photographs
from dppmask_jax.models import vit_module
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.patches import PatchSize
from dppmask_jax.pixel_format import RGB_CHANNELS

FEATURES = ("embedding", "pixels")


Show = Callable[[np.ndarray, int], dict[str, Any]]  # (numbers of images, seed) -> as of a Shower


class Shower(NamedTuple):
    """Attributes:
    show: (images (B, H, W, 3) uint8, seed) -> {a name of `masking.Seen`: (B, ...) array}.
    words: what shows it.
    """

    show: Callable[[np.ndarray, int], dict[str, Any]]
    words: str


def untrained(kind: str, image_size: tuple[int, int], patch_size: PatchSize) -> Shower:
    """Features without a run: "embedding", that of a ViT-B before its first step with positions,
    another start for each seed; or "pixels", the normalised patches."""
    if kind == "pixels":
        of_pixels = jax.jit(lambda images: patches.patchify(augment.normalize(images), patch_size))
        return Shower(lambda images, seed: {"features": of_pixels(images)}, "pixels")
    encoder = vit_module.ViT(
        SIZES["B"], image_size, patch_size, "fixed", start=vit_module.MAE_START
    )
    blank = jnp.zeros((1, *image_size, 3))
    start = jax.jit(lambda key: encoder.init(key, blank, method="embed"))
    embed = jax.jit(lambda p, x: encoder.apply(p, augment.normalize(x), method="embed"))
    params_of = functools.lru_cache(maxsize=1)(lambda seed: start(jax.random.key(seed)))

    def show(images, seed):
        return {"features": embed(params_of(seed), images)}

    return Shower(show, "the embedding of an untrained ViT-B")


def of_run(run) -> Shower:
    """What the method of a run shows maskers at the end of the run; of an encoder alone its
    embedding, and the attention of its class token."""
    if run.pixels.channels != RGB_CHANNELS or run.pixels.range is not None:
        raise InputError(
            f"--encoder: this is {run.name} of config.data.channels={run.config.data.channels}, "
            "and masks are measured on 8-bit RGB photographs; name a run of such images"
        )
    if not run.has_masks:
        return _of_encoder(run)
    rows, columns = patches.grid_shape(run.image_size, run.config.model.patch_size)

    def draw(keys, count, seen, most):
        shown = {name: value() for name, value in seen._asdict().items() if callable(value)}
        mask = jax.vmap(lambda key: masking.random(key, rows * columns, count))(keys)
        return mask, shown

    looks_on = masking.Masker(draw, frozenset(), "")
    masks = jax.jit(functools.partial(run.method.masks, masker=looks_on, count=rows * columns))

    def show(images, seed):
        keys = jax.random.split(jax.random.key(seed), len(images))
        return masks(run.params, run.extra, images, keys)[1]

    return Shower(show, run.name)


def _of_encoder(run) -> Shower:
    encoder = run.method.encoder
    if encoder is None or not (encoder.embed or run.has_attention):
        raise InputError(f"--encoder: this is {run.name}, which shows nothing that masks come from")
    embed = jax.jit(lambda params, x: encoder.embed(params, encoder.pixels.normalize(x)))

    def show(images, seed):
        shown = {}
        if encoder.embed:
            shown["features"] = embed(run.encoder, images)
        if run.has_attention:
            shown["attention"] = run.attention(images)
        return shown

    return Shower(show, run.name)


def of_photographs(shower: Shower, photographs: Photographs) -> Show:
    """What is shown of some images, by their numbers: by the shower, and by the data set."""

    def show(numbers, seed):
        shown = shower.show(photographs.images[numbers], seed)
        return shown | {"parts": photographs.parts[numbers]}

    return show
