"""Losses of masked image modelling: pixels (MAE), class and patch tokens (iBOT); and of
classification with one label an image or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def pixel_target(
    patches: Float[Array, "B N P"], norm_pix: bool, epsilon: float = 1e-6
) -> Float[Array, "B N P"]:
    """What the decoder has to predict for each patch (MAE, arXiv 2111.06377, section 3).

    Args:
      patches: normalised pixels of the patches.
      norm_pix: standardise each patch by its own mean and unbiased (n - 1) variance.
      epsilon: added to the variance.

    Returns:
      (B, N, P) float32.
    """
    chex.assert_rank(patches, 3)
    patches = patches.astype(jnp.float32)
    if not norm_pix:
        return patches
    mean, deviation = patch_statistics(patches, epsilon)
    return (patches - mean) / deviation


def patch_statistics(patches: Float[Array, "B N P"], epsilon: float = 1e-6):
    """Mean and standard deviation (n - 1) of each patch, both (B, N, 1) float32."""
    patches = patches.astype(jnp.float32)
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + epsilon)


def masked_pixel_loss(
    pred: Float[Array, "B N P"], target: Float[Array, "B N P"], mask: Bool[Array, "B N"]
) -> Float[Array, ""]:
    """Mean squared error over the masked patches of the whole batch, in float32.

    The error of a patch is averaged over its P values, summed over the masked patches and divided
    by their number (1 where no patch is masked, so the loss is then 0).
    """
    chex.assert_equal_shape([pred, target])
    chex.assert_equal_shape_prefix([pred, mask], 2)
    error = jnp.mean(jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)), axis=-1)
    masked = mask.astype(jnp.float32)
    return jnp.sum(error * masked) / jnp.maximum(jnp.sum(masked), 1.0)


def teacher_probabilities(
    logits: Float[Array, "*S C"], center: Float[Array, " C"], temperature
) -> Float[Array, "*S C"]:
    """Centred and sharpened (DINO, arXiv 2104.14294, section 3.1); no gradient, float32."""
    logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
    return jax.nn.softmax((logits - center) / temperature, axis=-1)


def class_token_loss(
    teacher: Float[Array, "Q B C"], student_logits: Float[Array, "V B C"], student_temp: float
) -> Float[Array, ""]:
    """Cross-entropy between the class tokens of different views (DINO, arXiv 2104.14294,
    eq. 3; iBOT, arXiv 2111.07832, section 3).

    Args:
      teacher: probabilities of the Q global views.
      student_logits: of the V views, the same Q global ones first.
      student_temp: temperature of the student's softmax.

    Returns:
      The mean over the examples and over all pairs of a teacher's view and another student's view.
    """
    chex.assert_rank([teacher, student_logits], 3)
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / student_temp, axis=-1)
    num_teacher, num_examples, _ = teacher.shape
    others = jnp.sum(log_student, axis=0) - log_student[:num_teacher]
    pairs = num_teacher * (len(student_logits) - 1)
    return -jnp.sum(teacher * others) / (pairs * num_examples)


def patch_token_loss(
    teacher: Float[Array, "S M C"],
    student_logits: Float[Array, "S M C"],
    mask: Bool[Array, "S M"],
    student_temp: float,
) -> Float[Array, ""]:
    """Cross-entropy at the masked patches of each view (iBOT, arXiv 2111.07832,
    section 3).

    Args:
      teacher: probabilities at M patches of S views, all masked ones among them.
      student_logits: at the same patches.
      mask: True = masked.
      student_temp: temperature of the student's softmax.

    Returns:
      The mean over a view's masked patches (0 where none is masked), then over all views.
    """
    chex.assert_equal_shape([teacher, student_logits])
    chex.assert_equal_shape_prefix([teacher, mask], 2)
    log_student = jax.nn.log_softmax(student_logits.astype(jnp.float32) / student_temp, axis=-1)
    of_patches = -jnp.sum(teacher * log_student, axis=-1)
    of_views = jnp.sum(jnp.where(mask, of_patches, 0.0), axis=1)
    return jnp.mean(of_views / jnp.maximum(jnp.sum(mask, axis=1), 1))


def entropy(probabilities: Float[Array, "*S C"]) -> Float[Array, " *S"]:
    """In nats, of each distribution."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


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
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.mean(jnp.sum(targets.astype(jnp.float32) * log_probabilities, axis=-1))


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
    positive, negative = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.mean(targets * positive + (1.0 - targets) * negative)


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
