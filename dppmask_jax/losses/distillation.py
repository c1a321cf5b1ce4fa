"""Self-distillation of class and patch tokens (DINO, arXiv 2104.14294; iBOT, arXiv 2111.07832)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


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
