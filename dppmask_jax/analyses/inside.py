"""task=inside: what is inside an encoder, all analyses with one command and one page about them."""

from __future__ import annotations

from typing import Any

from dppmask_jax.analyses import base, inside_page, shift
from dppmask_jax.evals.base import Task, Together
from dppmask_jax.fields import Field, flatten, one_of, optional, several, whole

PARTS = (
    "soap",
    "saliency",
    "segmentation",
    "attentive",
    "attention",
    "frequencies",
    "spectra",
    "diversity",
    "layers",
    "shift",
    "tsne",
)
FIELDS = {
    **base.FIELDS,
    "images": Field(
        None,
        optional(whole(2)),
        "images that each part looks at, but for tsne; None is the number of each part",
    ),
    "tasks": Field(
        PARTS,
        several(one_of(*PARTS), f"a list of different ones of {', '.join(PARTS)}", different=True),
        "the parts; one that the images or the encoder cannot serve is left out and named",
    ),
    "changed": shift.FIELDS["changed"]._replace(
        note="where changed images for task shift are; '' leaves it out"
    ),
}
_OF_ITS_OWN = {"tsne": ("images",)}  # fields that mean something else there


def parts(config) -> tuple[str, ...]:
    """The chosen parts, in the order of the page."""
    return tuple(part for part in PARTS if part in config.tasks)


def passed(config, part: str) -> dict[str, Any]:
    """See `Together.passed`."""
    kept = ("task", "tasks", *_OF_ITS_OWN.get(part, ()))
    values = flatten(config)
    return {name: value for name, value in values.items() if name not in kept and value is not None}


TASK = Task(
    None,
    None,
    FIELDS,
    unswept=lambda config: "task inside runs several tasks and gives no one number",
    together=Together(parts, passed, inside_page.text, "inside.md"),
)
