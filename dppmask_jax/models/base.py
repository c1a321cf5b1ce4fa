"""What an encoder is, whatever its architecture: a record of functions. Evaluations, weights and
methods see nothing else of it.

Shapes: B images, N patches, D width, H heads, L layers, T = P + N tokens of which the first P, the
class token and any registers, are no patches. P is 0 where there is no class token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp

from dppmask_jax.pixel_format import RGB, Pixels

STATISTICS = "batch_stats"
"""The name of running statistics: of flax's collection, among the parameters of an encoder that
has some, and in `Method.extra` while they follow a training."""


class Tokens(NamedTuple):
    """What an encoder makes of images.

    Attributes:
      cls: (B, D) float32, after the final norm: the class token, see `class_feature`.
      patches: (B, N, D) float32, after the final norm; row by row.
      prenorm: (B, P + N, D) before the final norm, patches last.
    """

    cls: Any
    patches: Any
    prenorm: Any


def class_feature(latent, prefix: int):
    """(B, P + N, D) -> (B, D): the class token, which comes first; the mean patch token where an
    encoder has none, `prefix` P being 0."""
    return latent[:, 0] if prefix else jnp.mean(latent, axis=1)


class BlockTrace(NamedTuple):
    """What happens within a block.

    Attributes:
      after_attention, after_mlp: (B, T, D), the residual stream behind either branch.
      attention: (B, H, query, key) float32 weights.
      keys: (B, H, T, D / H).
      mixed: (B, H, T, D / H), the weighted means of the values, before they are projected.
    """

    after_attention: Any
    after_mlp: Any
    attention: Any
    keys: Any
    mixed: Any


class Trace(NamedTuple):
    """What an encoder computes on the way: `embedding` (B, T, D) enters the first of `blocks`;
    `tokens` come out."""

    embedding: Any
    blocks: tuple[BlockTrace, ...]
    tokens: Tokens


class Encoder(NamedTuple):
    """An encoder that is set up. `params` are those of the encoder alone; images (B, H, W, C) are
    normalised, by `pixels.normalize`."""

    module: Any
    """The flax module, to be a part of others: `__call__`, `prenorm` and `prefix` as
    `vit_module.ViT` has them, and its `embed` and `encode` where there are `embed` and `blocks`."""

    init: Callable[[Any], Any]
    """key -> params. Running statistics of batch norms stand among them, under `STATISTICS`."""

    encode: Callable[..., Tokens]
    """(params, images, keys=None, mask=None, mask_token=None) -> Tokens.

    keys (B,) are for drop-path, None drops nothing; the embeddings of patches where mask (B, N) is
    True give way to mask_token (1, D).
    """

    width: int
    depth: int
    grid: tuple[int, int]

    layer_of: Callable[[tuple[str, ...]], int]
    """The path of a parameter -> its layer, 0 to depth + 1, for layer-wise decay."""

    options: Mapping[str, Any] = MappingProxyType({})
    """Settings beside the config, plain values: `build(config, **options)` makes it again."""

    tuned: Callable[[], Encoder] | None = None
    """() -> the encoder as a supervised training has it: positions that were fixed are learned.
    None: it stays as it is."""

    trainable: Callable[[Any], Any] = lambda params: params
    """params -> the parameters that `tuned` has: positions that were fixed are among them."""

    hides: bool | None = True
    """Whether `encode` takes `mask` and `mask_token`; None: it cannot."""

    embed: Callable[..., Any] | None = None
    """(params, images) -> (B, N, D): the patch tokens with their positions, before any block. Where
    there are `blocks`, also (params, images, mask, mask_token), as `encode` takes them."""

    blocks: Callable[..., Tokens] | None = None
    """(params, (B, K, D), keys=None) -> Tokens of so many patches: of any that `embed` gave."""

    attended: Callable[..., tuple[Tokens, Any]] | None = None
    """(params, images) -> (Tokens, (B, H, N) float32: how much the class token attends to each
    patch in the last block). None where there is no class token, or no attention."""

    trace: Callable[..., Trace] | None = None
    """(params, images) -> Trace."""

    pixels: Pixels = RGB
    """The pixels of the images that it is for."""

    projection: Any = None
    """(D, D), what the patch tokens are multiplied with after the final norm, see
    `encoders.projected`; None: they are not."""


class EncoderKind(NamedTuple):
    """A kind of encoder.

    Attributes:
      build: (config, **options) -> Encoder of `pixel_format.of(config)`; options are what a method
        settles, not its user, such as `vit_module.ViT.position`: a kind takes those that it has. An
        evaluation's config has the fields under `model` that are `fixed`, and may lack others.
      fields: {name: Field} that it reads; image_size, model.patch_size and model.dtype are there.
      check: (config) -> None; raises InputError where fields do not fit.
      size: config.model -> its size in a word or two; "": it has one size alone.
    """

    build: Callable[..., Encoder]
    fields: Mapping[str, Any] = MappingProxyType({})
    check: Callable[[Any], None] = lambda config: None
    size: Callable[[Any], str] = lambda model: ""
