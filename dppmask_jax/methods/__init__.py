"""Training methods. A new one is a file beside these and a line here."""

from collections.abc import Mapping
from typing import Any

from dppmask_jax.fields import Field, one_of
from dppmask_jax.masking import MASKERS
from dppmask_jax.methods import adios, hybrid, ibot, mae, moco, overlay, simmim
from dppmask_jax.models import encoders
from dppmask_jax.targets import TARGETS

METHODS = {
    "mae": mae.KIND,
    "simmim": simmim.KIND,
    "overlay": overlay.KIND,
    "ibot": ibot.KIND,
    "moco": moco.KIND,
    "hybrid": hybrid.KIND,
    "adios": adios.KIND,
}


def fields_of(method: str) -> dict[str, Field]:
    """The fields of a method, of its encoder, masks and targets, by their full names."""
    kind = METHODS[method]
    return {
        **(encoders.fields() if kind.encoder is not None else {}),
        **(_named("mask.strategy", MASKERS, "how the masks are drawn") if kind.masks else {}),
        **(_named("loss.target", TARGETS, "what is predicted") if kind.targets else {}),
        **kind.fields,
    }


def _named(name: str, kinds: Mapping[str, Any], note: str) -> dict[str, Field]:
    """The field that chooses one of some kinds, the first by default, and the fields of all."""
    choice = Field(next(iter(kinds)), one_of(*kinds), note)
    return {name: choice} | {n: f for kind in kinds.values() for n, f in kind.fields.items()}
