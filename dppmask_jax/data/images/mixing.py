"""Training images blended with others: mixup and CutMix with their targets, overlay without."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def smooth_one_hot(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Targets with label smoothing (arXiv 1512.00567).

    Args:
      labels: (B,) int, 0 to C - 1.
      num_classes: C.
      smoothing: s from 0 to below 1, the share spread over all classes.

    Returns:
      (B, C) float32: 1 - s + s / C at the label and s / C elsewhere.
    """
    chex.assert_rank(labels, 1)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return (1 - smoothing) * one_hot + smoothing / num_classes


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch_prob: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image, and its target, with its neighbour's.

    Either all images are mixed by mixup (arXiv 1710.09412: lam * own + (1 - lam) * other) or all by
    CutMix (arXiv 1905.04899: a box of about 1 - lam of the area comes from the other, and lam
    becomes the true share of the own). The choice, lam, drawn from Beta(alpha, alpha), and the box
    depend on the key alone. The other of image i is image i XOR 1, where timm takes the reversed
    batch: then devices that hold an even number of images each, and share the key, together do what
    one alone would.

    Args:
      images: (B, H, W, 3) float, normalised; B even.
      targets: (B, C) float.
      key: a typed PRNG key, the same for the whole batch.
      mixup, cutmix: alpha of each, Python floats; 0 never does it.
      switch_prob: of CutMix, where both are above 0.

    Returns:
      images and targets, of the same shapes and types.

    Raises:
      ValueError: B is odd.
    """
    chex.assert_rank([images, targets], [4, 2])
    chex.assert_equal_shape_prefix([images, targets], 1)
    if len(images) % 2:
        raise ValueError(f"{len(images)} images cannot be mixed in pairs; use an even batch")
    which_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 4)
    share = jnp.ones(())  # of the own image
    own = jnp.ones(images.shape[1:3])  # the same, by pixels
    if mixup > 0:
        share = jax.random.beta(mixup_key, mixup, mixup)
        own = own * share
    if cutmix > 0:
        lam = jax.random.beta(cutmix_key, cutmix, cutmix)
        kept = 1.0 - _box(box_key, lam, *images.shape[1:3])
        chosen = jax.random.bernoulli(which_key, switch_prob) if mixup > 0 else True
        share, own = jnp.where(chosen, kept.mean(), share), jnp.where(chosen, kept, own)
    share, own = share.astype(targets.dtype), own[..., None].astype(images.dtype)
    mixed = own * images + (1 - own) * _neighbours(images)
    return mixed, share * targets + (1 - share) * _neighbours(targets)


def overlay(images: jax.Array, others: jax.Array, alpha: float) -> jax.Array:
    """Paired image overlay: alpha * other + (1 - alpha) * image.

    As the weights add up to 1, images that are normalised alike before are so after it.

    Args:
      images, others: (..., H, W, 3) float of one shape.
      alpha: from 0, which returns `images` themselves, to below 0.5, where the image still has the
        larger share.

    Raises:
      ValueError: alpha is not in [0, 0.5).
    """
    chex.assert_equal_shape([images, others])
    if not 0 <= alpha < 0.5:
        raise ValueError(f"alpha must be in [0, 0.5), got {alpha}")
    return alpha * others + (1 - alpha) * images if alpha else images


def _neighbours(values):
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)


def _box(key, lam, height: int, width: int):
    """(H, W) bool: a box of sqrt(1 - lam) of each side, cut off where it leaves the image."""
    side = jnp.sqrt(1 - lam)
    row_key, column_key = jax.random.split(key)
    inside = []
    for key, length in ((row_key, height), (column_key, width)):
        size = (side * length).astype(jnp.int32)
        start = jax.random.randint(key, (), 0, length) - size // 2
        place = jnp.arange(length)
        inside.append((place >= start) & (place < start + size))
    rows, columns = inside
    return rows[:, None] & columns
