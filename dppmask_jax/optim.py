"""Optimisers and schedules.

Every schedule is a function of the training step, which `step.make_step` hands to the optax chain
as `train_step`, so a skipped step does not shift it. The learning rate multiplies the updates
outside the chain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dppmask_jax.fields import (
    FLAG,
    Field,
    above,
    above_to,
    fraction_below_1,
    number,
    one_of,
    optional,
)

TOKENS = ("cls_token", "positions", "registers")
LARS_FIELDS = {
    "optim.base_lr": Field(1.5e-4, above(0), "peak of the learning rate, for 256 images a step"),
    "optim.final_lr": Field(0.0, number(0), "learning rate at the end"),
    "optim.warmup_epochs": Field(
        40.0, number(0), "epochs in which the learning rate rises to its peak", in_epochs=True
    ),
    "optim.weight_decay": Field(0.05, number(0), "decay of the weights"),
    "optim.b1": Field(0.9, fraction_below_1, "decay of the mean of gradients (momentum)"),
}
ADAMW_FIELDS = LARS_FIELDS | {
    "optim.kind": Field(
        "adamw", one_of("adamw", "sgd"), "sgd: with momentum b1 and weight decay of all parameters"
    ),
    "optim.b2": Field(0.95, fraction_below_1, "decay of the mean of squared gradients"),
    "optim.epsilon": Field(1e-8, above(0), "added to the root of the mean of squared gradients"),
    "optim.clip_norm": Field(0.0, number(0), "largest norm of the gradient; 0 is off"),
}
# The fields of pre-training.
FIELDS = ADAMW_FIELDS | {
    "optim.kind": Field(
        "adamw",
        one_of("adamw", "sgd", "lars"),
        "sgd: with momentum b1 and weight decay of all parameters; lars: with momentum b1, MoCo's "
        "for ResNets",
    ),
    "optim.weight_decay_end": Field(
        None, optional(number(0)), "weight decay at the end of a cosine; None keeps it"
    ),
    "optim.clip_per_tensor": Field(
        False, FLAG, "clip each tensor by itself, instead of all by their global norm"
    ),
}
# The fields of fine-tuning.
FINETUNE_FIELDS = ADAMW_FIELDS | {
    "optim.layer_decay": Field(
        0.65, above_to(0, 1), "factor of the learning rate from a layer to the one below"
    ),
}


Which = Callable[[Any, Any], bool]  # of the path and the tensor of a parameter


def nothing(path, parameter) -> bool:
    """False of every parameter."""
    return False


class Optimizer(NamedTuple):
    """`tx` turns gradients into updates of learning rate 1; `learning_rate` maps step to rate, and
    `weight_decay` to what `tx` decays by. Parameters that are `frozen` never move: `tx` has no
    moments of them, and the step takes no gradient of them."""

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    weight_decay: optax.Schedule = lambda step: 0.0
    frozen: Which = nothing


def below(*names: str) -> Which:
    """Of parameters that stand below these names, one within the other."""

    def holds(path, parameter):
        return tuple(str(key.key) for key in path[: len(names)]) == names

    return holds


def stopped(params, frozen: Which):
    """The parameters, without a gradient where they are frozen."""

    def stop(path, parameter):
        return jax.lax.stop_gradient(parameter) if frozen(path, parameter) else parameter

    return jax.tree_util.tree_map_with_path(stop, params)


def from_settings(settings, plan, schedule, *, frozen: Which = nothing, **shape) -> Optimizer:
    """AdamW, SGD or LARS, as `config.optim` and the plan of a run describe it.

    Args:
      settings: `config.optim`. A training without kind, clip_per_tensor, weight_decay_end or
        freeze_last_layer_epochs lacks those fields.
      plan: has `peak_lr`, `warmup_steps`, `total_steps` and `steps_per_epoch`.
      schedule: `warmup_cosine` or another with its arguments.
      frozen: what never moves, such as `below("encoder", "patch_embed")`.
      shape: `decays` and `scales` of `adamw`; SGD decays all, and LARS as MAE's probes.
    """
    last_layer, limit = settings.get("freeze_last_layer_epochs"), settings.clip_norm
    clip = clip_by_tensor_norm if settings.get("clip_per_tensor") else optax.clip_by_global_norm
    of_both = {
        **_schedules(settings, plan, schedule),
        # The state is the same with and without clipping, so that a run can go on with either.
        "clip": clip(limit) if limit > 0 else optax.identity(),
        "frozen_steps": None if last_layer is None else round(last_layer * plan.steps_per_epoch),
        "frozen": frozen,
    }
    if (kind := settings.get("kind")) in ("sgd", "lars"):
        make = {"sgd": sgd, "lars": lars}[kind]
        return make(**of_both, momentum=settings.b1, scales=shape.get("scales"))
    return adamw(**of_both, b1=settings.b1, b2=settings.b2, epsilon=settings.epsilon, **shape)


def linear_from_settings(solver: str, settings, plan, schedule) -> Optimizer:
    """The `solver` "lars" or "sgd" of a linear layer, the other arguments as those of
    `from_settings`; `settings.b1` is the momentum."""
    make = {"lars": lars, "sgd": sgd}[solver]
    return make(**_schedules(settings, plan, schedule), momentum=settings.b1)


def _schedules(settings, plan, schedule) -> dict[str, optax.Schedule]:
    start, end = settings.weight_decay, settings.get("weight_decay_end")
    return {
        "learning_rate": schedule(
            plan.peak_lr, settings.final_lr, plan.warmup_steps, plan.total_steps
        ),
        "weight_decay": cosine(start, start if end is None else end, plan.total_steps),
    }


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
    """Scales each tensor by limit / (norm + 1e-6) where that is below 1 (iBOT's code)."""

    def clip(gradient):
        norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
        return gradient * jnp.minimum(1.0, limit / (norm + 1e-6))

    return optax.stateless(lambda updates, params: jax.tree.map(clip, updates))


def decay_weights_and_tokens(path, parameter) -> bool:
    """Whether a parameter decays: where it has more than one axis (no biases, no norms)."""
    return parameter.ndim > 1


def decay_weights(path, parameter) -> bool:
    """As `decay_weights_and_tokens`, without the class token and the positions (MAE's
    fine-tuning)."""
    return parameter.ndim > 1 and str(path[-1].key) not in TOKENS


def layer_scales(params, layer_of: Callable, depth: int, decay: float):
    """Layer-wise learning-rate decay (ELECTRA, arXiv 2003.10555) as in MAE's fine-tuning
    (arXiv 2111.06377, appendix A.1).

    Args:
      params: of a classifier whose encoder is "encoder"; all else is layer depth + 1.
      layer_of: the names on the way to a parameter of the encoder -> its layer.
      depth: number of the encoder's blocks.
      decay: above 0, up to 1.

    Returns:
      A tree of floats like `params`: decay^(depth + 1 - layer).
    """

    def scale(path, _):
        part, *names = (str(key.key) for key in path)
        return decay ** (depth + 1 - layer_of(tuple(names))) if part == "encoder" else 1.0

    return jax.tree_util.tree_map_with_path(scale, params)


def adamw(
    *,
    learning_rate: optax.Schedule,
    weight_decay: optax.Schedule,
    b1: float,
    b2: float,
    epsilon: float,
    clip: optax.GradientTransformation,
    frozen_steps: int | None = None,
    frozen: Which = nothing,
    decays: Which = decay_weights_and_tokens,
    scales: Callable[[Any], Any] | None = None,
) -> Optimizer:
    """AdamW (arXiv 1711.05101) with decay of chosen tensors.

    Args:
      learning_rate, weight_decay: of the training step.
      clip: what is done to the gradients first.
      frozen_steps: None, or for so many training steps, the tensors of layers whose name ends in
        "last_layer" are neither updated nor decayed, and their moments and their count of updates
        stay as they were (iBOT's code, `freeze_last_layer`).
      frozen: which tensors never move.
      decays: which tensors weight decay applies to.
      scales: None, or a function from the parameters to a tree of floats like them, which multiply
        the learning rate of each tensor, and its weight decay with it.
    """
    update = optax.chain(
        optax.scale_by_adam(b1, b2, epsilon), _decay(weight_decay, decays), optax.scale(-1.0)
    )
    tx = _assembled(clip, update, frozen_steps, frozen, scales)
    return Optimizer(tx, learning_rate, weight_decay, frozen)


def sgd(
    *,
    learning_rate: optax.Schedule,
    weight_decay: optax.Schedule,
    momentum: float = 0.9,
    clip: optax.GradientTransformation | None = None,
    frozen_steps: int | None = None,
    frozen: Which = nothing,
    scales: Callable[[Any], Any] | None = None,
) -> Optimizer:
    """Gradient descent with momentum, as `torch.optim.SGD` has it.

    Weight decay of every tensor, biases and norms among them, is added to the gradient; the
    momentum adds up what results, so a change of the learning rate acts on all of it at once.

    Args:
      learning_rate, weight_decay: of the training step.
      clip, frozen_steps, frozen, scales: as for `adamw`; clip None leaves gradients as they are.
    """
    decay = _decay(weight_decay, lambda path, parameter: True)
    update = optax.chain(decay, optax.trace(momentum), optax.scale(-1.0))
    tx = _assembled(clip or optax.identity(), update, frozen_steps, frozen, scales)
    return Optimizer(tx, learning_rate, weight_decay, frozen)


def _assembled(clip, update, frozen_steps, frozen, scales) -> optax.GradientTransformation:
    """`update` of clipped gradients, frozen and scaled as `adamw` says."""
    last = () if scales is None else (_scale_by(scales),)
    if frozen_steps is None and frozen is nothing:
        return optax.chain(clip, update, *last)

    def thawed(_, *, train_step, **_extra):
        return train_step >= frozen_steps

    def when(path, parameter):
        if frozen(path, parameter):
            return "never"
        in_last_layer = any(str(key.key).endswith("last_layer") for key in path)
        return "later" if in_last_layer and frozen_steps is not None else "now"

    updates = {"now": update}
    if frozen_steps is not None:
        updates["later"] = optax.conditionally_mask(update, thawed, forward_extra_args=True)
    if frozen is not nothing:
        updates["never"] = optax.set_to_zero()
    labels = functools.partial(jax.tree_util.tree_map_with_path, when)
    return optax.chain(clip, optax.partition(updates, labels), *last)


def lars(
    *,
    learning_rate: optax.Schedule,
    weight_decay: optax.Schedule,
    momentum: float = 0.9,
    trust: float = 0.001,
    clip: optax.GradientTransformation | None = None,
    frozen_steps: int | None = None,
    frozen: Which = nothing,
    scales: Callable[[Any], Any] | None = None,
) -> Optimizer:
    """LARS (arXiv 1708.03888) as MAE's linear probing (arXiv 2111.06377, appendix A.1) and the
    ResNets of MoCo v3 (arXiv 2104.02057) have it.

    Of tensors with more than one axis, weight decay is added to the gradient, which is then
    multiplied by trust * (norm of the tensor) / (norm of the gradient), or by 1 where either norm
    is 0. Other tensors take the gradient as it is. The momentum adds up what results, so a change
    of the learning rate acts on all of it at once (`optax.lars` adds up steps that the learning
    rate of their time was multiplied with).

    Args:
      learning_rate, weight_decay: of the training step.
      clip, frozen_steps, frozen, scales: as for `sgd`.
    """

    def has_axes(updates):
        return jax.tree.map(lambda update: update.ndim > 1, updates)

    ratio = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust), has_axes)
    decay = _decay(weight_decay, decay_weights_and_tokens)
    update = optax.chain(decay, ratio, optax.trace(momentum), optax.scale(-1.0))
    tx = _assembled(clip or optax.identity(), update, frozen_steps, frozen, scales)
    return Optimizer(tx, learning_rate, weight_decay, frozen)


def _scale_by(scales) -> optax.GradientTransformation:
    def scale(updates, params):
        return jax.tree.map(lambda update, by: by * update, updates, scales(params))

    return optax.stateless(scale)


def _decay(schedule: optax.Schedule, decays) -> optax.GradientTransformationExtraArgs:
    def update(updates, state, params, *, train_step, **_extra):
        rate = schedule(train_step)

        def decay(path, update, parameter):
            return update + rate * parameter if decays(path, parameter) else update

        return jax.tree_util.tree_map_with_path(decay, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
