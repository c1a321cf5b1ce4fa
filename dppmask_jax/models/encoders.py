"""The encoders by name.

A new encoder is a file that sets `KIND`, and a line in `ENCODERS`; its name is then a value of
`model.encoder`. A config file may add to them before it builds its config.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, one_of
from dppmask_jax.models import resnet, vit
from dppmask_jax.models.base import Encoder, EncoderKind, Tokens
from dppmask_jax.patches import size_name

ENCODERS: dict[str, EncoderKind] = {"vit": vit.KIND, "resnet": resnet.KIND}


def fields() -> dict[str, Field]:
    """The field that chooses an encoder, and those of all kinds."""
    choice = Field(
        next(iter(ENCODERS)), one_of(*ENCODERS), "architecture of the encoder", fixed=True
    )
    of_kinds = {name: f for kind in ENCODERS.values() for name, f in kind.fields.items()}
    return {"model.encoder": choice, **of_kinds}


def kind_of(model) -> EncoderKind:
    """The kind that `config.model` asks for.

    Raises:
      InputError: it is not known here, as one of a user's own may be.
    """
    if model.encoder not in ENCODERS:
        raise InputError(
            f"config.model.encoder={model.encoder!r} is not known here: {' | '.join(ENCODERS)}; "
            "import the file that adds it to dppmask_jax.models.encoders.ENCODERS first"
        )
    return ENCODERS[model.encoder]


def build(config, **options) -> Encoder:
    """The encoder of a checked config; `options` are what a method settles of it, see
    `EncoderKind`."""
    return kind_of(config.model).build(config, **options)


def check(config) -> None:
    """Raises InputError where fields of a config make no encoder."""
    kind_of(config.model).check(config)


def copy_shape(model, of) -> None:
    """Copies the shape of an encoder from one `config.model`, `of`, to another."""
    for name, field in fields().items():
        leaf = name.removeprefix("model.")
        if field.fixed and leaf != name and leaf in of:
            with model.ignore_type():  # a size of patches is one number or two
                model[leaf] = of[leaf]


def name_of(model) -> str:
    """What `config.model` asks for, in a word or two: "B/16", "mixer 64/16"; of a kind that is not
    known here, its name."""
    name = model["encoder"]
    size = ENCODERS[name].size(model) if name in ENCODERS else ""
    words = size if name == "vit" else f"{name} {size}".strip()
    return f"{words}/{size_name(model['patch_size'])}"


def projected(encoder: Encoder, matrix) -> Encoder:
    """An encoder whose patch tokens go through a linear map after the final norm.

    `Tokens.patches` alone change, also those of a trace; class tokens, what is before the norm and
    the blocks stay as they are.

    Args:
      matrix: (D, D); tokens @ matrix are the projected ones.
    """

    def of(tokens: Tokens) -> Tokens:
        mapped = jnp.matmul(tokens.patches, matrix, precision=jax.lax.Precision.HIGHEST)
        return tokens._replace(patches=mapped)

    def attended(*inputs):
        tokens, attention = encoder.attended(*inputs)
        return of(tokens), attention

    def trace(*inputs):
        found = encoder.trace(*inputs)
        return found._replace(tokens=of(found.tokens))

    return encoder._replace(
        encode=lambda *inputs, **options: of(encoder.encode(*inputs, **options)),
        blocks=encoder.blocks and (lambda *inputs, **more: of(encoder.blocks(*inputs, **more))),
        attended=encoder.attended and attended,
        trace=encoder.trace and trace,
        projection=matrix,
    )


def as_dict(tokens: Tokens) -> dict[str, Any]:
    """{"cls": (B, D), "patches": (B, N, D), "patches_prenorm": (B, N, D)}, float32."""
    num_patches = tokens.patches.shape[1]
    prenorm = tokens.prenorm[:, -num_patches:].astype(jnp.float32)
    return {"cls": tokens.cls, "patches": tokens.patches, "patches_prenorm": prenorm}
