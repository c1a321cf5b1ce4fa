"""What is done to an image that is to be predicted as it was: paired overlay, and what its paper
compares it with.

All corrupt images that are cropped and mirrored already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from dppmask_jax import parallel, pixel_format
from dppmask_jax.data.images import autoaugment, corrupt, mixing
from dppmask_jax.fields import Field, Rule, is_number, number, one_of
from dppmask_jax.methods import single_view

FIELDS = {
    "data.corruption": Field(
        "overlay",
        one_of("overlay", "pixels", "autoaugment", "none"),
        "what is done to images: mixed with others, pixels zeroed, AutoAugment's ImageNet policy",
    ),
    "data.alpha": Field(
        0.3,
        Rule(
            lambda value: is_number(value) and value >= 0 and np.float32(value) < 0.5,
            "a number from 0 to below 0.5 (float32)",
            float,
        ),
        "overlay: share of the other image in what the encoder sees; 0: none",
    ),
    "data.zeroed": Field(1.0, number(0, corrupt.MOST), "pixels: percent of them that are zeroed"),
}
_PARTNERS = 2**31 + 1  # no example of the stream has this number
_ZEROED = 2**31 + 2  # far from the small numbers that a split of the same key stands for
_OTHERS = {"image": "other_image", "index": "other_index"}  # in the batch, by what they are of
_CHANGED = "changed"


class Corruption(NamedTuple):
    """One that is set up. Images are uint8 until `of` has normalised them."""

    words: str
    changes: bool
    """Whether it changes any image."""

    of: Callable[..., tuple[single_view.Views, Any]]
    """(batch, key) -> (the views of the batch, the images that the encoder sees): both mirrored
    alike, the latter normalised; key is the step's."""

    shown: Callable[..., Any]
    """(images (R, H, W, 3) uint8, seed) -> (R, H, W, 3) float32 from 0 to 1: the same outside of
    training, on the host. The other of an image is the next one, of the last the first: a single
    one is its own."""

    before_step: Callable[..., dict[str, Any]] = lambda batch, key: batch
    """`Method.before_step`."""

    example: Callable[[Callable], Callable] = lambda example: example
    """`Method.example` -> one that makes what `of` needs as well."""

    in_example: bool = False
    """Whether `example` corrupts, so that an evaluation crop has nothing to be told by."""


def build(config) -> Corruption:
    """That of a checked config."""
    return _KINDS[config.data.corruption](config)


def mixes(config) -> bool:
    """Whether an image is mixed with another."""
    return config.data.corruption == "overlay" and config.data.alpha > 0


def _none(config) -> Corruption:
    def of(batch, key):
        views = single_view.views_of(config, batch, key)
        return views, views.images

    return Corruption("none: a plain autoencoder", False, of, lambda images, seed: _floats(images))


def _overlay(config) -> Corruption:
    alpha = config.data.alpha
    if not alpha:
        return _none(config)

    def of(batch, key):
        own = {name: values for name, values in batch.items() if name not in _OTHERS.values()}
        views = single_view.views_of(config, own, key)
        others = {name: batch[renamed] for name, renamed in _OTHERS.items()}
        # Mirrored as they are where they are predicted.
        others = single_view.views_of(config, others, key).images
        return views, mixing.overlay(views.images, others, alpha)

    def shown(images, seed):
        return mixing.overlay(_floats(images), _floats(np.roll(images, -1, axis=0)), alpha)

    words = f"{alpha:g} of another image of the batch (in figures of the next)"
    return Corruption(words, True, of, shown, before_step=with_others)


def with_others(batch, key):
    """`Method.before_step`: for each image the one that it is mixed with, and its index.

    The images of the whole batch, over all devices, move on by a number of places from 1 to B - 1
    that the step's key draws. So none meets itself, each is mixed into exactly one, and devices do
    together what one would. Where a data set has fewer images than a batch, or at the border of two
    epochs, the other may be another crop of the same image.
    """
    number = parallel.rows_of_all(len(batch["index"]))
    places = jax.random.randint(jax.random.fold_in(key, _PARTNERS), (), 1, number)
    others = parallel.roll({name: batch[name] for name in _OTHERS}, places)
    return batch | {_OTHERS[name]: values for name, values in others.items()}


def _pixels(config) -> Corruption:
    percent = config.data.zeroed

    def of(batch, key):
        views = single_view.views_of(config, batch, key)
        # Not the keys of masks, which may follow, nor what these are split into.
        keys = jax.vmap(lambda key: jax.random.fold_in(key, _ZEROED))(views.mask_keys)
        images = corrupt.zero_pixels(views.raw, keys, percent)
        return views, pixel_format.of(config).normalize(images)

    def shown(images, seed):
        keys = jax.random.split(jax.random.key(seed), len(images))
        return corrupt.zero_pixels(_floats(images), keys, percent)

    height, width = config.image_size
    changes = corrupt.zeroed_count(height * width, percent) > 0
    return Corruption(f"{percent:g} % of the pixels are zeroed", changes, of, shown)


def _auto_augment(config) -> Corruption:
    def of(batch, key):
        views = single_view.views_of(config, batch, key)
        return views, pixel_format.of(config).normalize(views.maps[_CHANGED])

    def shown(images, seed):
        rng = np.random.default_rng(seed)
        return _floats(np.stack([_changed(image, rng) for image in images]))

    return Corruption(
        "AutoAugment's ImageNet policy",
        True,
        of,
        shown,
        example=lambda example: functools.partial(_with_changed, example),
        in_example=True,
    )


def _with_changed(
    example, data: bytes, rng: np.random.Generator, *extras: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """An example with its image as AutoAugment changes it. Its name at the top of a module makes
    the partial picklable."""
    made = example(data, rng, *extras)
    return {**made, _CHANGED: _changed(made["image"], rng)}


def _changed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(autoaugment.auto_augment(Image.fromarray(image), rng))


def _floats(images):
    return pixel_format.RGB.unit(images)


_KINDS = {
    "overlay": _overlay,
    "pixels": _pixels,
    "autoaugment": _auto_augment,
    "none": _none,
}
