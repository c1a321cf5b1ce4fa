"""A run at another image size or type than it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, patches
from dppmask_jax.errors import InputError
from dppmask_jax.pixel_format import RGB, Pixels
from dppmask_jax.runs.kinds import CLASSIFIER, encoder_options, kind_of, method_of

DTYPES = ("float32", "bfloat16")


def as_used(config, image_size, dtype: str | None):
    """The config of a run with the image size and dtype that it is to be used with."""
    config = config.copy_and_resolve_references()
    if image_size is not None:
        config.image_size = checked_image_size(image_size, config.model.patch_size)
        _check_masks(config)
    if dtype is not None:
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r} is not allowed: {' | '.join(DTYPES)}")
        config.model.dtype = dtype
    return config


def _check_masks(config) -> None:
    """Raises InputError where masks of a fixed share would leave no patch visible."""
    ratio = config.get("mask", {}).get("ratio")
    if not isinstance(ratio, float):
        return
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    try:
        masking.num_visible(rows * columns, ratio)
    except ValueError as error:
        raise InputError(f"image_size={tuple(config.image_size)}: {error}") from error


def checked_image_size(image_size, patch_size: patches.PatchSize) -> tuple[int, int]:
    """An image size as two ints.

    Raises:
      InputError: it is something else, or no multiple of the patches.
    """
    sides = tuple(image_size) if isinstance(image_size, Sequence) else ()
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) for side in sides):
        raise InputError(f"image_size={image_size!r} must be (height, width) in pixels")
    of_patch = patches.sides(patch_size)
    if any(side < 1 or side % each for side, each in zip(sides, of_patch, strict=True)):
        near = tuple(
            max(1, round(side / each)) * each for side, each in zip(sides, of_patch, strict=True)
        )
        raise InputError(
            f"image_size={sides} is no multiple of the patches of {patches.size_name(patch_size)} "
            f"pixels; the nearest is {near}"
        )
    return int(sides[0]), int(sides[1])


def resized(params, extra, config, image_size: tuple[int, int]):
    """(params, extra, how in words) with positions for another image size.

    Fixed positions, which are no parameters at the run's own size, stand among them afterwards, see
    `vit_module.given_or_fixed`.
    """
    old, new = (
        patches.grid_shape(tuple(size), config.model.patch_size)
        for size in (config.image_size, image_size)
    )
    _check_no_relative(config)
    how = "learned positions resized"
    if kind_of(config) != CLASSIFIER:
        learned = params
        params, extra = method_of(config).with_positions(params, extra)
        if params is not learned:
            how = "fixed positions resized" + ", the decoder's as well" * ("decoder" in params)
    flat, _ = jax.tree_util.tree_flatten_with_path((params, extra))
    if not any(_is_positions(path) for path, _ in flat):
        how = "it has no positions to resize"

    def resize(path, leaf):
        if not _is_positions(path):
            return leaf
        return np.asarray(patches.resize_positions(jnp.asarray(leaf), old, new, 0.0))

    params, extra = jax.tree_util.tree_map_with_path(resize, (params, extra))
    return (
        params,
        extra,
        (
            f"images of {image_size[0]}x{image_size[1]}, the run's are "
            f"{config.image_size[0]}x{config.image_size[1]}: {how}"
        ),
    )


def _is_positions(path) -> bool:
    return getattr(path[-1], "key", None) == "positions"


def _check_no_relative(config) -> None:
    """Raises InputError where the encoder has biases of relative positions."""
    if encoder_options(config).get("relative"):
        height, width = config.image_size
        raise InputError(
            "the encoder has biases of relative positions, which are not resized: it takes images "
            f"of {height}x{width}, those of its training; leave the other size out"
        )


def checked_images(images, image_size: tuple[int, int], pixels: Pixels = RGB):
    """Images for a run as a JAX array.

    Whole numbers of a run whose images are no 8-bit data are as its files have them, and are scaled
    by its `data.range`: NumPy's as files are, JAX's in float32.

    Raises:
      InputError: another shape or type, or floats outside [0, 1], which would mean something
        else than pixels. Under a trace the values are not known and not looked at.
    """
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    height, width = image_size
    whole = "uint8"
    if pixels.range is not None:
        black, white = pixels.range
        whole = f"whole numbers from {black:g} (black) to {white:g} (white)"
    if images.ndim != 4 or images.shape[1:] != (height, width, pixels.channels):
        raise InputError(
            f"images have shape {tuple(images.shape)}; this run takes (B, {height}, {width}, "
            f"{pixels.channels}), {whole}, or float from 0 to 1; image_size=(H, W) loads it for "
            "another size"
        )
    if jnp.issubdtype(images.dtype, jnp.floating):
        if images.size and not isinstance(images, jax.core.Tracer):
            lowest, highest = float(images.min()), float(images.max())
            if not (lowest >= 0 and highest <= 1):
                mend = "divide by 255" if pixels.range is None else "scale them by data.range"
                raise InputError(
                    f"float images must lie in [0, 1]; these go from {lowest:.6g} to "
                    f"{highest:.6g}: undo any normalisation, {mend}, or pass {whole}"
                )
    elif pixels.range is not None and jnp.issubdtype(images.dtype, jnp.integer):
        if isinstance(images, np.ndarray):
            return jnp.asarray(pixels.scaled(images))
        return jnp.clip((images.astype(jnp.float32) - black) / (white - black), 0.0, 1.0)
    elif images.dtype != np.uint8:
        raise InputError(f"images are {images.dtype}; pass {whole}, or float from 0 to 1")
    return jnp.asarray(images)
