"""Warnings of a self-distillation whose teacher no longer says anything about the image."""

from __future__ import annotations

from collections.abc import Callable

_MANY_STEPS = 100  # that a collapse lasts before it is named
_LEAST_INFORMATION = 0.05  # nats that the teacher's answer says about the image


def watch(largest_entropy: float) -> Callable[[int, dict[str, float]], str]:
    """Names a collapse once it has lasted for `_MANY_STEPS`, see `Method.watch`.

    What the teacher's answer says about the image is the entropy of the mean answer less the mean
    entropy of the answers. It vanishes when all images get the same answer, whether that is every
    prototype alike or one of them.

    Args:
      largest_entropy: of an answer, in nats.
    """
    since = None

    def watched(step, values) -> str:
        nonlocal since
        if values["prototype_entropy"] - values["teacher_entropy"] > _LEAST_INFORMATION:
            since = None
            return ""
        since = step if since is None else since
        if step - since < _MANY_STEPS:
            return ""
        uniform = values["teacher_entropy"] > 0.5 * largest_entropy
        return _COLLAPSES["uniform" if uniform else "point"]

    return watched


_COLLAPSES = {
    "uniform": (
        "collapse to uniform: the teacher gives all prototypes nearly the same weight, whatever "
        "the image; lower config.loss.class_temp.start and .end or config.optim.base_lr, or "
        "weaken the augmentation"
    ),
    "point": (
        "collapse to a point: the teacher gives all images to the same prototype; raise "
        "config.loss.class_temp.start, lower config.optim.base_lr or config.loss.center_decay, "
        "or set config.model.norm_last_layer=True"
    ),
}
