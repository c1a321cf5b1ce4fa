"""Optimiser and learning-rate schedule from the config.

The learning rate is a function of the training step and multiplies the optax updates outside the
chain (`loop.make_step`), so a skipped step does not shift the schedule.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax


class Optimizer(NamedTuple):
    """`tx` turns gradients into updates of learning rate 1; `learning_rate` maps step to rate."""

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule


def scaled_learning_rate(base: float, batch_size: int) -> float:
    """Linear scaling rule: `base` per 256 images (MAE, arXiv 2111.06377, appendix A.1)."""
    return base * batch_size / 256


def decays(params):
    """Weight decay applies to every tensor with more than one axis (no biases, no norms)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def adamw(
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    total_steps: int,
    b1: float,
    b2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> Optimizer:
    """AdamW with linear warm-up from 0 and half a cosine down to `final`.

    Args:
      peak: learning rate at the end of the warm-up.
      final: learning rate at `total_steps`.
      warmup_steps: from 0 to below `total_steps`.
      clip_norm: global gradient norm above which gradients are scaled down; 0 turns it off.
    """
    # The chain has the same state with and without clipping, so that a run can change its mind.
    parts = [
        optax.clip_by_global_norm(clip_norm) if clip_norm > 0 else optax.identity(),
        optax.scale_by_adam(b1, b2, epsilon),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale(-1.0),
    ]
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, final)
    return Optimizer(optax.chain(*parts), schedule)
