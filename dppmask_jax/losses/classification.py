"""Losses of classification: one label an image, hard, smoothed or mixed, or several labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def soft_cross_entropy(
    logits: Float[Array, "B C"], targets: Float[Array, "B C"]
) -> Float[Array, ""]:
    """Cross-entropy with soft targets, in nats, mean over the images, in float32.

    Args:
      logits: any finite values.
      targets: a distribution over the classes for each image (smoothed or mixed labels).
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, targets])
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def binary_cross_entropy(
    logits: Float[Array, "B C"], targets: Float[Array, "B C"]
) -> Float[Array, ""]:
    """Cross-entropy of C independent yes-or-no decisions, in nats, mean over all B x C elements,
    in float32.

    Args:
      logits: any finite values; a sigmoid makes them probabilities.
      targets: 0 to 1.
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, targets])
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))


def asymmetric_loss(
    logits: Float[Array, "B C"],
    targets: Float[Array, "B C"],
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> Float[Array, ""]:
    """Asymmetric loss of multi-label classification (ASL, arXiv 2009.14119, section 2).

    With p the probability of a label, a positive costs -(1 - p)^gamma_pos log p, and a negative
    -q^gamma_neg log(1 - q) where q = max(p - clip, 0). As in the paper the gradient goes through
    the focusing factors too; the authors' code takes them for constants unless told otherwise.

    Args:
      logits: any finite values.
      targets: 0 to 1.
      gamma_neg, gamma_pos: focusing, 0 or more; both 0 and clip 0 is the binary cross-entropy.
      clip: how far the probability of a negative is shifted down, 0 to below 1.

    Returns:
      The sum over the classes, mean over the images (so C times as large as a mean over all
      elements), in nats, float32.
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, targets])
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
    log_yes, log_no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    positive = jnp.exp(gamma_pos * log_no) * log_yes
    shifted = jax.nn.sigmoid(logits) - clip
    # A fractional power has no gradient at 0; the inner `where` keeps it away from there.
    focus = jnp.where(shifted > 0.0, shifted, 1.0) ** gamma_neg
    log_no_shifted = jnp.logaddexp(log_no, jnp.log(clip))
    negative = jnp.where(shifted > 0.0, focus * log_no_shifted, 0.0)
    return -jnp.mean(jnp.sum(targets * positive + (1.0 - targets) * negative, axis=-1))
