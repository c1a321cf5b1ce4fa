"""The encoder that masks are drawn by, in methods without a teacher of their own: it follows the
trained one. Only a masker that needs it has it kept, in `extra`.

By default it is the moving average of the encoder, as HPM's teacher (arXiv 2304.05919). With
`mask.refresh_epochs` it is the encoder as it was at the last multiple of so many epochs. AMT's
authors run the encoder over all training images at these epochs and keep the maps; the kept encoder
gives them in the step, of the crop that is masked, without a file of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import masking
from dppmask_jax.fields import Field, above, number, optional
from dppmask_jax.methods.base import Plan
from dppmask_jax.methods.momentum import followed
from dppmask_jax.models.base import Encoder

NAME = "mask_teacher"  # in `extra`
COPIED = "mask_teacher_copied"  # in `extra`: how many steps there were before the last copy
FIELDS = {
    "mask.ema_decay": Field(
        0.999,
        number(0, 1),
        "decay of the averaged encoder that attention and hardness come from; paper (HPM): 0.999",
    ),
    "mask.ema_decay_end": Field(
        None,
        optional(number(0, 1)),
        "that decay at the end of the run, reached linearly; None: it stays; HPM: 0.9999, reached "
        "after 100 epochs",
    ),
    "mask.refresh_epochs": Field(
        None,
        optional(above(0)),
        "epochs between copies of the encoder that stand for the average; None: none do; AMT: 40",
    ),
}


class Look(NamedTuple):
    """How a field of `masking.Seen` comes from parameters: the top-level names of those it takes,
    and (parameters, normalised images) -> the field."""

    parts: tuple[str, ...]
    of: Callable[[Any, Any], Any]


class MaskTeacher(NamedTuple):
    """What a method does for its masker. Where no masker needs it, `extra` is empty."""

    init: Callable[[Any], dict[str, Any]]
    """params -> extra."""

    looks: Mapping[str, Callable[[Any, Any], Any]]
    """{field of `masking.Seen`: (extra, normalised images) -> its value}."""

    after_step: Callable[..., dict[str, Any]]
    """As `Method.after_step`."""

    schedules: Mapping[str, Callable[[Any], Any]]
    """As `Method.schedules`."""

    def shown(self, extra, images) -> dict[str, Callable[[], Any]]:
        """The fields of `masking.Seen` that it fills, of normalised images."""
        return {name: functools.partial(look, extra, images) for name, look in self.looks.items()}


def build(config, plan: Plan, masker: masking.Masker, looks: Mapping[str, Look]) -> MaskTeacher:
    """The teacher of a masker.

    Args:
      config: checked; its FIELDS are read.
      looks: what the method can show by one.
    """
    needed = {name: look for name, look in looks.items() if name in masker.needs}
    parts = sorted({part for look in needed.values() for part in look.parts})
    if not parts:
        return MaskTeacher(lambda params: {}, {}, lambda params, extra, aux, step: extra, {})
    follow, counts, schedules = _following(config.mask, plan)

    def of(params):
        return {part: params[part] for part in parts}

    def after_step(params, extra, aux, step):
        return follow(extra, of(params), step)

    def look_with(look: Look):
        return lambda extra, images: look.of(jax.lax.stop_gradient(extra[NAME]), images)

    return MaskTeacher(
        init=lambda params: {NAME: of(params), **counts()},
        looks={name: look_with(look) for name, look in needed.items()},
        after_step=after_step,
        schedules=schedules,
    )


def _following(mask, plan: Plan):
    """((extra, student, step) -> extra after that step, () -> what of `extra` is not the teacher,
    schedules)."""
    if mask.refresh_epochs is not None:
        period = max(1, round(mask.refresh_epochs * plan.steps_per_epoch))

        # A step that is not finite is skipped with its copy, which the next good step makes up for.
        def refreshed(extra, student, step):
            steps = jnp.asarray(step + 1, jnp.int32)
            is_due = steps // period > extra[COPIED] // period
            copy = functools.partial(jnp.where, is_due)
            return {
                NAME: jax.tree.map(copy, student, extra[NAME]),
                COPIED: copy(steps, extra[COPIED]),
            }

        return refreshed, lambda: {COPIED: jnp.zeros((), jnp.int32)}, {}

    def decay_at(step):
        end = mask.ema_decay if mask.ema_decay_end is None else mask.ema_decay_end
        progress = masking.progress_at(step, plan.total_steps)
        return mask.ema_decay + (end - mask.ema_decay) * progress

    def averaged(extra, student, step):
        return {NAME: followed(extra[NAME], student, decay_at(step))}

    return averaged, dict, {"mask.ema_decay": decay_at}


def mapped(extra, change: Callable[[Any], Any]) -> dict[str, Any]:
    """`extra` with another form of the teacher's parameters, where there is one."""
    return {name: change(value) if name == NAME else value for name, value in extra.items()}


def with_encoder(params, extra, encoder):
    """As `Method.with_encoder`: what follows starts where the encoder does."""

    def changed(given):
        return {**given, "encoder": encoder}

    return changed(params), mapped(extra, changed)


def of_encoder(encoder: Encoder) -> dict[str, Look]:
    """What the parameters "encoder" alone show."""
    if encoder.attended is None:
        return {}
    return {
        "attention": Look(
            ("encoder",), lambda params, images: encoder.attended(params["encoder"], images)[1]
        )
    }
