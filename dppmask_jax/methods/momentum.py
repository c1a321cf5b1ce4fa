"""A teacher that follows its student: the moving average of its parameters (MoCo, arXiv 1911.05722;
DINO, arXiv 2104.14294)."""

from __future__ import annotations

import jax


def averaged(old, new, decay):
    """decay * old + (1 - decay) * new."""
    return decay * old + (1.0 - decay) * new


def followed(teacher, student, decay):
    """The teacher's parameters, a tree like the student's, after a step of the student."""
    return jax.tree.map(lambda old, new: averaged(old, new, decay), teacher, student)
