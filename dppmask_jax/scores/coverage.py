"""How much of objects masks leave visible, and how varied the visible patches are."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.stats import hypergeom

from dppmask_jax import patches


def object_patches(foreground: np.ndarray, patch_size: patches.PatchSize) -> np.ndarray:
    """Which patches belong to the object.

    Args:
      foreground: (B, H, W) bool.
      patch_size: of a patch in pixels.

    Returns:
      (B, N) bool: patches of which at least half the pixels are foreground; where an image has
      none, the one patch with most foreground (the first of equals); all False where there is no
      foreground at all.
    """
    pixels = np.asarray(patches.patchify(np.asarray(foreground)[..., None], patch_size))
    count = pixels.sum(axis=2, dtype=np.int64)
    chosen = 2 * count >= pixels.shape[2]
    tiny = ~chosen.any(axis=1) & (count.max(axis=1) > 0)
    chosen[tiny, count[tiny].argmax(axis=1)] = True
    return chosen


def pieces(foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The connected pieces of each image's foreground (pixels that touch at an edge or corner).

    Args:
      foreground: (B, H, W) bool.

    Returns:
      (M, H, W) bool, one piece each, and (M,) int, the image it lies in, ascending.
    """
    found, owner = [], []
    for index, image in enumerate(foreground):
        labels, count = ndimage.label(image, np.ones((3, 3)))
        found += [labels == piece for piece in range(1, count + 1)]
        owner += [index] * count
    return np.array(found, bool).reshape(-1, *foreground.shape[1:]), np.array(owner, int)


def coverage(visible: np.ndarray, objects: np.ndarray, almost: float) -> dict[str, np.ndarray]:
    """Statistics of one mask an image.

    Args:
      visible: (B, N) bool, True = kept.
      objects: (B, N) bool from `object_patches`, at least one True in each row.
      almost: part of its fair share of the visible patches below which almost none of the object
        is visible.

    Returns:
      (B,) float arrays: none, almost (0 or 1), kept and on_object (0 to 1).
    """
    seen = (visible & objects).sum(axis=1)
    size = objects.sum(axis=1)
    fair = size * visible.sum(axis=1) / visible.shape[1]
    return {
        "none": (seen == 0).astype(float),
        "almost": (seen < almost * fair).astype(float),
        "kept": seen / size,
        "on_object": seen / visible.sum(axis=1),
    }


def exact_random(objects: np.ndarray, num_keep: int, almost: float) -> dict[str, np.ndarray]:
    """What `coverage` gives on average for uniformly random masks, image by image.

    Args:
      objects: (B, N) bool.
      num_keep: number of visible patches.
      almost: as in `coverage`.

    Returns:
      (B,) float arrays: none, almost, kept, on_object.
    """
    total, size = objects.shape[1], objects.sum(axis=1)
    # the greatest whole number below the bound
    few = np.ceil(almost * (size * num_keep / total)) - 1
    return {
        "none": hypergeom.pmf(0, total, size, num_keep),
        "almost": hypergeom.cdf(few, total, size, num_keep),
        "kept": np.full(len(size), num_keep / total),
        "on_object": size / total,
    }


def kernel_of(features: np.ndarray, bandwidth: float = 1.0) -> np.ndarray:
    """The Gaussian kernel of patches, as `dpp.gaussian_kernel` defines it, in float64.

    Args:
      features: (B, N, D).
      bandwidth: of the kernel.

    Returns:
      (B, N, N) float64.
    """
    x = np.array(features, np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    square = np.sum(x * x, axis=-1)
    distance = square[:, :, None] + square[:, None, :] - 2 * x @ x.transpose(0, 2, 1)
    return np.exp(-np.maximum(distance, 0.0) / bandwidth)


def log_det(kernel: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """log det of the kernel of the kept patches: how varied they are.

    Args:
      kernel: (B, N, N) float64, see `kernel_of`.
      kept: (B, K) int.

    Returns:
      (B,) float64; -inf where kept patches are exact duplicates.
    """
    image = np.arange(len(kernel))[:, None, None]
    sign, value = np.linalg.slogdet(kernel[image, kept[:, :, None], kept[:, None, :]])
    return np.where(sign > 0, value, -np.inf)


def mean_and_error(values: np.ndarray, owner: np.ndarray) -> tuple[float, float]:
    """Mean of (M,) values and its standard error, where values of one image are not independent.

    Args:
      values: (M,) float.
      owner: (M,) int, the image of each value.
    """
    mean = values.mean()
    _, image = np.unique(owner, return_inverse=True)
    sums = np.bincount(image, values - mean)
    if len(sums) < 2:
        return float(mean), float("nan")
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values)
    return float(mean), float(error)


def terciles(size: np.ndarray) -> list[np.ndarray]:
    """Splits objects into thirds by size.

    Args:
      size: (M,) int.

    Returns:
      Three (M,) bool arrays, small to large; objects of one size stay together, so that thirds may
      differ in number.
    """
    low, high = np.quantile(size, [1 / 3, 2 / 3])
    return [size <= low, (size > low) & (size <= high), size > high]
