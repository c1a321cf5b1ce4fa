"""What a method predicts at the masked patches of an image.

A new target is a file that sets `KIND`, and a line in `TARGETS`; its name is then a value of
`loss.target`.
"""

from dppmask_jax.targets import hog, pixels
from dppmask_jax.targets.base import Target, TargetKind

TARGETS: dict[str, TargetKind] = {
    "pixels": pixels.KIND,
    "hog": hog.KIND,
}

__all__ = ["TARGETS", "Target", "TargetKind", "hog", "pixels"]
