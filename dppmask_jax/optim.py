"""Optimisers and schedules.

Every schedule is a function of the training step, which `loop.make_step` hands to the optax chain
as `train_step`, so a skipped step does not shift it. The learning rate multiplies the updates
outside the chain.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Optimizer(NamedTuple):
    """`tx` turns gradients into updates of learning rate 1; `learning_rate` maps step to rate."""

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """Linear scaling rule: `base` per 256 images (MAE, arXiv 2111.06377, appendix A.1)."""
    return base * batch_size / 256


def warmup_cosine(peak: float, final: float, warmup_steps: int, total_steps: int):
    """Linear from 0 at step 0 to `peak` at `warmup_steps`, then half a cosine to `final` at
    `total_steps` (MAE, arXiv 2111.06377, appendix A.1)."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, final)


def linspace_cosine(peak: float, final: float, warmup_steps: int, total_steps: int):
    """As `warmup_cosine`, but at `peak` both on the last step of the warm-up and on the next one
    (DINO's and iBOT's code)."""
    after = cosine(peak, final, total_steps - warmup_steps)

    def schedule(step):
        warming = peak * step / max(warmup_steps - 1, 1)
        return jnp.where(step < warmup_steps, warming, after(step - warmup_steps))

    return schedule


def cosine(start: float, end: float, total_steps: int):
    """Half a cosine from `start` at step 0 to `end` at `total_steps`, `end` from there on."""

    def schedule(step):
        progress = jnp.clip(step / max(total_steps, 1), 0.0, 1.0)
        return end + 0.5 * (start - end) * (1.0 + jnp.cos(jnp.pi * progress))

    return schedule


def clip_by_tensor_norm(limit: float) -> optax.GradientTransformation:
    """Scales each tensor by limit / (norm + 1e-6) where that is below 1"""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * jnp.minimum(1.0, limit / (norm + 1e-6))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def adamw(
    *,
    learning_rate: optax.Schedule,
    weight_decay: optax.Schedule,
    b1: float,
    b2: float,
    epsilon: float,
    clip: optax.GradientTransformation,
    frozen_steps: int | None = None,
) -> Optimizer:
    """AdamW whose decay applies to every tensor with more than one axis (no biases, no norms).

    Args:
      learning_rate, weight_decay: of the training step.
      clip: what is done to the gradients first.
      frozen_steps: None, or for so many training steps, the tensors of layers whose name ends in
        "last_layer" are neither updated nor decayed, and their moments and their count of updates
        stay as they were (iBOT's code, `freeze_last_layer`).
    """
    update = optax.chain(
        optax.scale_by_adam(b1, b2, epsilon), _decay(weight_decay), optax.scale(-1.0)
    )
    if frozen_steps is None:
        return Optimizer(optax.chain(clip, update), learning_rate)

    def thawed(_, *, train_step, **_extra):
        return train_step >= frozen_steps

    later = optax.conditionally_mask(update, thawed, forward_extra_args=True)
    updates = optax.partition({"now": update, "later": later}, _when)
    return Optimizer(optax.chain(clip, updates), learning_rate)


def _when(params):
    def label(path, _):
        return "later" if any(str(key.key).endswith("last_layer") for key in path) else "now"

    return jax.tree_util.tree_map_with_path(label, params)


def _decay(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params, *, train_step, **_extra):
        rate = schedule(train_step)
        decayed = jax.tree.map(lambda u, p: u + rate * p if p.ndim > 1 else u, updates, params)
        return decayed, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
