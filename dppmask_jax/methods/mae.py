"""Masked autoencoding of patches that a masker hides: DPPMask, random, blocks, or another.

MAE: arXiv 2111.06377. DPPMask: arXiv 2303.12736.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from dppmask_jax import masking, optim, patches
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, whole
from dppmask_jax.methods import chunks, hardness, mask_teacher, single_view
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.models import encoders, vit_module
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.decoders import MAE, Decoder
from dppmask_jax.models.sizes import Size
from dppmask_jax.targets import TARGETS

FIELDS = {
    "model.decoder_width": Field(512, whole(4, 2**14), "width of the decoder", fixed=True),
    "model.decoder_depth": Field(8, whole(1, 128), "blocks of the decoder", fixed=True),
    "model.decoder_heads": Field(16, whole(1, 2**14), "attention heads of the decoder", fixed=True),
    **single_view.FIELDS,
    **optim.FIELDS,
}


def check(config) -> None:
    """Raises InputError where a config's ratio masks none or all, or its decoder cannot be made."""
    single_view.check(config)
    check_decoder(config)


def check_decoder(config) -> None:
    """Raises InputError where a config's decoder cannot be made."""
    model = config.model
    if model.decoder_width % model.decoder_heads or model.decoder_width % 4:
        raise InputError(
            f"config.model.decoder_width={model.decoder_width} is not a multiple of 4 and of "
            f"config.model.decoder_heads={model.decoder_heads}"
        )


def build(config, plan: Plan, encoder: Encoder | None = None) -> Method:
    """The MAE of a checked config.

    Args:
      config: see configs/mae.py; already through `config.check`.
      plan: the length of the run, for the schedules.
      encoder: what is trained, with `embed` and `blocks`; None: the encoder of MAE.
    """
    encoder = encoder or encoder_from(config)
    model = model_from(config, encoder)
    target = TARGETS[config.loss.target].build(config)
    patch_size = config.model.patch_size
    grid = patches.grid_shape(tuple(config.image_size), patch_size)
    shares, masker = single_view.shares_of(config), masking.masker_of(config.mask)
    num_keep = shares.visible
    progress_at = functools.partial(masking.progress_at, total_steps=plan.total_steps)
    teacher = mask_teacher.build(config, plan, masker, _looks(model, encoder))
    ranks = hardness.is_needed(masker)

    def init(key):
        images = jnp.zeros((1, *config.image_size, encoder.pixels.channels), jnp.float32)
        order = jnp.arange(grid[0] * grid[1])[None]
        params = model.init(key, images, order, num_keep, ranks)["params"]
        return params, teacher.init(params)

    def loss(params, extra, batch, key, step):
        views = single_view.views_of(config, batch, key)
        tokens = model.apply({"params": params}, views.images, method="embed")
        seen = masking.Seen(
            grid,
            progress_at(step),
            step,
            features=lambda: single_view.kernel_features(config, views.images, lambda: tokens),
            **teacher.shown(extra, views.images),
        )
        mask, metrics = single_view.drawn(masker, num_keep, views, seen, batch, key)
        kept = mask.order[:, : shares.kept]
        latent = model.apply(
            {"params": params}, tokens, kept, num_keep, views.drop_keys, method="latent"
        )
        wanted, is_masked = single_view.wanted_of(target, views.raw, mask, kept)
        if not ranks:
            decoder = {"decoder": params["decoder"]}
            size = chunks.size_for(len(latent), _attention_bytes(config, shares.kept))
            total = chunks.mean(decoded, size, decoder, latent, (kept, wanted, is_masked))
            return total, (metrics, {})
        found = model.apply({"params": params}, latent, kept, ranks, method="decode")
        total, losses = single_view.ranked_loss(config, target, found, wanted, is_masked)
        return total, (metrics | losses, {})

    def decoded(params, latent, others):
        """The loss of some images, from the decoder's parameters alone."""
        kept, wanted, is_masked = others
        pred = model.apply({"params": params}, latent, kept, method="decode")
        return target.loss(pred, wanted, is_masked)

    def features(params, extra, images):
        images = encoder.pixels.normalize(images)
        embed = functools.partial(model.apply, {"params": params}, images, method="embed")
        return single_view.kernel_features(config, images, embed)

    def reconstruct(params, extra, images, order, borrow_statistics=False):
        pred = model.apply({"params": params}, encoder.pixels.normalize(images), order, num_keep)
        return single_view.painted(
            encoder.pixels, target, pred, images, order, num_keep, patch_size, borrow_statistics
        )

    return Method(
        **single_view.method_parts(config, plan, features, teacher, encoder),
        init=init,
        turns=(Turn(loss, optim.from_settings(config.optim, plan, optim.warmup_cosine)),),
        encoder=encoder,
        encoder_of=lambda params, extra: params["encoder"],
        with_encoder=mask_teacher.with_encoder,
        with_positions=functools.partial(with_positions, encoder, config.model.decoder_width),
        reconstruct=reconstruct if target.pixels else None,
    )


def _attention_bytes(config, kept: int) -> int:
    """What the attention logits of an image take in a block of the decoder."""
    model = config.model
    return model.decoder_heads * (1 + kept) ** 2 * jnp.dtype(model.dtype).itemsize


def with_positions(encoder: Encoder, decoder_width: int, params, extra):
    """As `Method.with_positions`, of an encoder and a decoder of such a width."""
    table = patches.fixed_positions(encoder.grid, decoder_width)

    def placed(params):
        """Those of the encoder, and of the decoder if it is there."""
        params = {**params, "encoder": encoder.trainable(params["encoder"])}
        if "decoder" in params:
            params["decoder"] = {**params["decoder"], "positions": table}
        return params

    return placed(params), mask_teacher.mapped(extra, placed)


def _looks(model: MAE, encoder: Encoder) -> dict[str, mask_teacher.Look]:
    """What a copy of the parameters shows a masker."""

    def hardness_of(params, images):
        return model.apply({"params": params}, images, method="hardness")

    look = mask_teacher.Look(("encoder", "decoder"), hardness_of)
    return {**mask_teacher.of_encoder(encoder), "hardness": look}


def encoder_from(config) -> Encoder:
    """The encoder of a checked config."""
    return encoders.build(config, position="fixed", start=vit_module.MAE_START)


def model_from(config, encoder: Encoder) -> MAE:
    """An encoder and the decoder of a checked config, for its target."""
    return with_decoder(config, encoder, TARGETS[config.loss.target].build(config).width)


def with_decoder(config, encoder: Encoder, patch_values: int) -> MAE:
    """An encoder and the decoder of a checked config, which predicts so many values a patch."""
    model = config.model
    decoder = Decoder(
        Size(model.decoder_width, model.decoder_depth, model.decoder_heads),
        encoder.grid,
        patch_values,
        model.remat,
        jnp.dtype(model.dtype),
    )
    return MAE(encoder.module, decoder)


KIND = MethodKind(
    build,
    "MAE",
    FIELDS,
    check,
    gives=frozenset({"features", "attention", "hardness", *masking.WITH_IMAGES}),
    shown_by={"attention": "attended"},
    recipes=("mae",),
    encoder=("blocks",),
    targets=True,
    mask_recipes=single_view.MASK_RECIPES,
)
