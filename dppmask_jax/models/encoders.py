"""The encoders that there are."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dppmask_jax.models import vit
from dppmask_jax.models.base import Encoder, EncoderKind, Tokens

ENCODERS: dict[str, EncoderKind] = {"vit": vit.KIND}


def kind_of(config) -> EncoderKind:
    """The kind that a config asks for; there is one so far."""
    del config
    return ENCODERS["vit"]


def build(config, **options) -> Encoder:
    """The encoder of a checked config; `options` are the kind's, see `vit.build`."""
    return kind_of(config).build(config, **options)


def as_dict(tokens: Tokens) -> dict[str, Any]:
    """{"cls": (B, D), "patches": (B, N, D), "patches_prenorm": (B, N, D)}, float32."""
    num_patches = tokens.patches.shape[1]
    prenorm = tokens.prenorm[:, -num_patches:].astype(jnp.float32)
    return {"cls": tokens.cls, "patches": tokens.patches, "patches_prenorm": prenorm}
