"""What a target is, and the losses that most have."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax.numpy as jnp

from dppmask_jax.fields import Field

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Target(NamedTuple):
    """What is predicted for each patch: a record of pure functions, of images as they are loaded.

    Images are (B, H, W, C), uint8 or floating point from 0 to 1, flipped already and not
    normalised: a target that wants them normalised does that itself.

    Attributes:
      width: P, the number of values predicted for a patch.
      of: images -> (B, N, P) float32.
      loss: (pred (B, N, P), target (B, N, P), mask (B, N) bool) -> scalar float32; True is masked.
        A mean over the images, where as many patches are masked in each: it is taken of a few
        images at a time.
      pixels: (pred (B, N, P), images, known=None) -> (B, N, p * p * C) float32, the pixels from 0
        to 1, not clipped, that a prediction stands for. Only patches `known` (B, K) int32 of the
        images may enter, all of them where it is None. None: a prediction shows no pixels.
    """

    width: int
    of: Callable[[Any], Any]
    loss: Callable[[Any, Any, Any], Any]
    pixels: Callable[..., Any] | None = None


class TargetKind(NamedTuple):
    """A target that a config can name.

    Attributes:
      build: a checked config -> Target.
      fields: what it reads under `loss`, by full name.
      check: a config whose fields are each allowed -> raises InputError where they do not fit.
    """

    build: Callable[[Any], Target]
    fields: dict[str, Field]
    check: Callable[[Any], None] = lambda config: None


def masked_square_error(
    pred: Float[Array, "B N P"], target: Float[Array, "B N P"], mask: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """Mean squared error over the masked patches of the whole batch, in float32.

    The error of a patch is averaged over its P values, summed over the masked patches and divided
    by their number (1 where no patch is masked, so the loss is then 0).
    """
    return _masked_mean(jnp.square(_error(pred, target, mask)), mask)


def masked_absolute_error(
    pred: Float[Array, "B N P"], target: Float[Array, "B N P"], mask: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """As `masked_square_error`, of the absolute error (SimMIM, arXiv 2111.09886, equation 1)."""
    return _masked_mean(jnp.abs(_error(pred, target, mask)), mask)


def _error(pred, target, mask):
    chex.assert_equal_shape([pred, target])
    chex.assert_equal_shape_prefix([pred, mask], 2)
    return pred.astype(jnp.float32) - target.astype(jnp.float32)


def _masked_mean(values, mask):
    masked = mask.astype(jnp.float32)
    return jnp.sum(jnp.mean(values, axis=-1) * masked) / jnp.maximum(jnp.sum(masked), 1.0)
