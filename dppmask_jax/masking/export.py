"""Masks for other people's pipelines: a batch of images in, NumPy arrays out."""

from __future__ import annotations

import difflib
import functools
import math
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax import patches
from dppmask_jax.dpp import has_finite_patch
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.masking.base import Mask, MaskerKind, Seen, needs_in_words, num_visible
from dppmask_jax.masking.kinds import MASKERS

_WIDTH = 768  # of the untrained embedding: ViT-B
_CHUNK = 64  # images on the device at a time


def export_masks(
    images,
    *,
    patch_size: patches.PatchSize = 16,
    ratio: float = 0.75,
    strategy: str = "dpp",
    seed: int = 0,
    features=None,
    start_index: int = 0,
    **settings,
) -> Mask:
    """Masks of a batch of images, as NumPy arrays.

    Image i is masked with a key made of `seed` and `start_index` + i, so a data set done in pieces
    (each with its own `start_index`) has the same masks as one done in one call. JAX's settings (64
    bits, the default generator, promotion rules) change nothing.

    Args:
      images: (B, H, W, 3) uint8, or float in [0, 1]; both sides multiples of `patch_size`.
      patch_size: side of a patch in pixels, or (height, width).
      ratio: share of masked patches, in [0, 1); see `num_visible`.
      strategy: a name in `MASKERS` of one that needs images alone: "dpp", "exact", "random",
        "block", "grid", "uniform", "cells", "noise", "inverse", "multiblock".
      seed: of the masks and of the untrained embedding, in 0..2**32 - 1.
      features: what "dpp" compares. None: what an untrained MAE sees, a random projection of the
        normalised patches to width 768 plus 2-D sin-cos positions. "pixels": the normalised
        patches. "positions": the positions alone, whatever the image shows. Or a real array
        (B, N, D) of your own, patches numbered row by row. A patch that
        holds NaN or infinity is never picked greedily; an image without any other is masked at
        random, which is warned about.
      start_index: index of the first image in the data set.
      settings: fields of the strategies, each by its name in a config without "mask."; those that
        another strategy reads change nothing. Of "dpp": tau=0.9, the threshold of the greedy
        selection in [0, 1], where 0 never stops and 1 is random masking; kernel="gaussian",
        bandwidth=1.0, normalize="l2", threshold_on="d2", see `dpp.select`. Features with a large
        common offset want normalize="center".

    Returns:
      Mask of NumPy arrays: order (B, N) int32, mask (B, N) bool with True = masked, count (B,)
      int32, num_greedy (B,) int32. The latter says how many of the visible patches were greedy
      picks; the others are random. 1 means that to the kernel all patches looked alike, see
      `dpp.greedy_order`. It is 0 for strategies without greedy picks. A strategy that throws
      patches away adds thrown (B, N) bool.

    Raises:
      ValueError: an argument is out of range or does not fit the others.
      TypeError: no strategy has a setting of this name.
    """
    images = np.asarray(images)
    scale = _pixel_scale(images)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    num_patches = grid[0] * grid[1]
    count = num_visible(num_patches, ratio)
    kind, static, traced = _strategy(strategy, settings)
    if kind.check_counts:
        kind.check_counts(SimpleNamespace(**static), grid, num_patches - count, num_patches - count)
    _check_numbers(seed, start_index, len(images))
    source, inputs = "embedding", images
    if isinstance(features, str):
        if features not in ("pixels", "positions"):
            raise ValueError(
                f"features must be None, 'pixels', 'positions' or an array, got {features!r}"
            )
        source = features
    elif features is not None:
        source, inputs = "given", _checked_features(features, len(images), num_patches)

    draw = functools.partial(
        _draw,
        grid=grid,
        count=count,
        patch_size=patches.sides(patch_size),
        build=kind.build,
        static=tuple(static.items()),
        source=source,
    )
    # Explicit types, whatever JAX's defaults are.
    scale, traced = np.float32(scale), {name: np.float32(traced[name]) for name in traced}
    draw_piece = functools.partial(draw, np.uint32(seed), scale=scale, traced=traced)
    return _in_pieces(draw_piece, inputs, start_index)


def _check_numbers(seed, start_index, num_images: int) -> None:
    """Raises ValueError where an image has no key of its own."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an int in 0..2**32 - 1, got {seed}")
    most = 2**32 - 1 - num_images
    if not isinstance(start_index, (int, np.integer)) or not 0 <= start_index <= most:
        raise ValueError(f"start_index must be an int in 0..2**32 - 1 - B, got {start_index}")


def _in_pieces(draw, inputs, start_index: int) -> Mask:
    """The masks of all inputs, `_CHUNK` of them on the device at a time.

    Args:
      draw: (numbers of images (b,) uint32, their inputs (b, ...)) -> Mask of (b, ...).
    """
    pieces = []
    for first in range(0, len(inputs), _CHUNK):
        index = np.arange(first, min(first + _CHUNK, len(inputs)))
        # The last piece is filled up with copies, so that there is one shape to compile for.
        padded = np.resize(index, min(_CHUNK, len(inputs)))
        piece = inputs[padded]
        piece = piece if piece.dtype == np.uint8 else piece.astype(np.float32)
        with jax.threefry_partitionable(True):  # the default, which a user may have changed
            pieces.append(jax.device_get(draw((start_index + padded).astype(np.uint32), piece)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(inputs)], *pieces)


def _strategy(name: str, given: dict) -> tuple[MaskerKind, dict, dict]:
    """(kind, its settings that are static, those that are traced), checked."""
    known = {
        field.removeprefix("mask."): field_of
        for kind in MASKERS.values()
        for field, field_of in kind.fields.items()
    }
    for setting, value in given.items():
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"export_masks has no argument {setting!r}{hint}")
        value = value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value
        if not known[setting].rule.holds(value):
            raise ValueError(f"{setting} must be {known[setting].rule.allowed}, got {value!r}")
        given[setting] = value
    settings = {setting: field.default for setting, field in known.items()} | given
    usable = [each for each in MASKERS if not _lacking(MASKERS[each], settings)]
    if name not in MASKERS:
        raise ValueError(f"strategy must be {' | '.join(usable)}, got {name!r}")
    kind = MASKERS[name]
    if lacking := _lacking(kind, settings):
        raise ValueError(
            f"strategy={name!r} needs {needs_in_words(lacking)}, which images alone do not show: "
            f"take {' | '.join(usable)}"
        )
    read = {field.removeprefix("mask."): settings[field.removeprefix("mask.")]
            for field in kind.fields}  # fmt: skip
    kind.check(SimpleNamespace(**read))
    traced = {setting: read.pop(setting) for setting in kind.traced}
    return kind, read, traced


def _lacking(kind: MaskerKind, settings: dict) -> frozenset[str]:
    return kind.build(SimpleNamespace(**settings)).needs - {"features"}


def _pixel_scale(images) -> float:
    """The factor that scales images to 0..1; ValueError where they are no images."""
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"images must be (B, H, W, 3) with B >= 1, got {images.shape}")
    if images.dtype == np.uint8:
        return 1 / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images must be uint8 or float, got {images.dtype}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("float images must lie in [0, 1]; undo any normalisation first")
    return 1.0


def _checked_features(features, num_images, num_patches):
    features = np.asarray(features)
    if features.ndim != 3 or features.shape[:2] != (num_images, num_patches):
        raise ValueError(f"features must be ({num_images}, {num_patches}, D), got {features.shape}")
    is_real = any(jnp.issubdtype(features.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if not is_real:
        raise ValueError(f"features must be real numbers, got {features.dtype}")
    nothing = np.flatnonzero(~has_finite_patch(features))
    if len(nothing):
        named = ", ".join(map(str, nothing[:8])) + (", ..." if len(nothing) > 8 else "")
        warnings.warn(
            f"features: no patch is finite in {len(nothing)} of {num_images} images, which are "
            f"masked at random: {named}",
            stacklevel=3,
        )
    return features


@functools.partial(
    jax.jit, static_argnames=("grid", "count", "patch_size", "build", "static", "source")
)
def _draw(seed, index, inputs, scale, traced, *, grid, count, patch_size, build, static, source):
    # The key that `jax.random.key(seed)` is under JAX's default settings.
    data = jnp.stack([jnp.zeros_like(seed), seed])
    root = jax.random.wrap_key_data(data, impl="threefry2x32")
    keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(index)
    values = 3 * math.prod(patch_size)
    kernel_key, bias_key = jax.random.split(jax.random.fold_in(root, np.uint32(2**32 - 1)))
    bound = (6 / (values + _WIDTH)) ** 0.5  # Xavier-uniform, and a convolution's usual bias
    weights = jax.random.uniform(
        kernel_key, (values, _WIDTH), jnp.float32, minval=-bound, maxval=bound
    )
    bound = values**-0.5
    bias = jax.random.uniform(bias_key, (_WIDTH,), jnp.float32, minval=-bound, maxval=bound)
    bias = bias[None] + patches.sincos_positions(grid, _WIDTH)

    def features_of(image):
        if source == "given":
            return image
        if source == "positions":
            return jnp.asarray(patches.lone_positions(grid))
        mean, deviation = np.float32([[MEAN]]), np.float32([[STD]])
        image = (image.astype(jnp.float32) * scale - mean) / deviation
        pixels = patches.patchify(image[None], patch_size)[0]
        if source == "pixels":
            return pixels
        return jnp.matmul(pixels, weights, precision=lax.Precision.HIGHEST) + bias

    masker = build(SimpleNamespace(**dict(static), **traced))
    # One image at a time: a product over a whole batch may round differently for another batch.
    seen = Seen(grid, features=lambda: lax.map(features_of, inputs))
    mask, metrics = masker.draw(keys, count, seen, count)
    return mask._replace(num_greedy=metrics.get("num_greedy", jnp.zeros(len(keys), jnp.int32)))
