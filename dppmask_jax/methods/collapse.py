"""Warnings of a collapse: the teacher of a self-distillation answers the same to all images."""

from __future__ import annotations

from collections.abc import Callable

_MANY_STEPS = 100  # of collapse before there is a warning
_LEAST_INFORMATION = 0.05  # nats of information about the image in the teacher's answer


def watch(largest_entropy: float) -> Callable[[int, dict[str, float]], str]:
    """Warns of a collapse once it has lasted for `_MANY_STEPS`, see `Method.watch`.

    The information about the image in the teacher's answer is the entropy of the mean answer less
    the mean entropy of the answers. It is 0 where all images get the same answer, be that the same
    weight for every prototype or all weight for one.

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
