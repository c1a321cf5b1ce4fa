"""Masked autoencoding of patches that a masker hides: DPPMask, random, blocks, or another.

MAE: arXiv 2111.06377. DPPMask: arXiv 2303.12736.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import masking, optim, patches
from dppmask_jax.data.images import augment, crops
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, is_number, one_of, whole
from dppmask_jax.masking import greedy_dpp
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.methods.describing import described_masks
from dppmask_jax.models import encoders, vit
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.decoders import MAE, Decoder
from dppmask_jax.models.sizes import Size
from dppmask_jax.targets import TARGETS
from dppmask_jax.targets.base import Target

FIELDS = {
    **vit.FIELDS,
    "model.decoder_width": Field(512, whole(4, 2**14), "width of the decoder", fixed=True),
    "model.decoder_depth": Field(8, whole(1, 128), "blocks of the decoder", fixed=True),
    "model.decoder_heads": Field(16, whole(1, 2**14), "attention heads of the decoder", fixed=True),
    **crops.FIELDS,
    **augment.FIELDS,
    "mask.ratio": Field(
        0.75,
        Rule(
            lambda value: is_number(value) and 0 < value < 1,
            "a number above 0 and below 1 (share masked)",
            float,
        ),
        "share of the patches that are masked; paper: 0.75",
    ),
    "mask.features": Field(
        "embedding",
        one_of("embedding", "pixels"),
        "what the masks are drawn from: the patch embedding with positions (paper), or pixels",
    ),
    **optim.FIELDS,
}


def check(config) -> None:
    """Raises InputError where a config's ratio masks none or all, or its decoder cannot be made."""
    vit.check(config)
    num_patches = vit.checked_patches("image_size", config.image_size, config.model.patch_size)
    try:
        num_keep = masking.num_visible(num_patches, config.mask.ratio)
    except ValueError as error:
        raise InputError(f"config.mask.ratio={config.mask.ratio}: {error}") from error
    if num_keep == num_patches:
        raise InputError(
            f"config.mask.ratio={config.mask.ratio} masks none of the {num_patches} patches; "
            "raise it"
        )
    model = config.model
    if model.decoder_width % model.decoder_heads or model.decoder_width % 4:
        raise InputError(
            f"config.model.decoder_width={model.decoder_width} is not a multiple of 4 and of "
            f"config.model.decoder_heads={model.decoder_heads}"
        )


class _Parts(NamedTuple):
    """What the functions of the method share."""

    config: Any
    plan: Plan
    model: MAE
    encoder: Encoder
    target: Target
    masker: masking.Masker
    num_keep: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.encoder.grid


def build(config, plan: Plan) -> Method:
    """The MAE of a checked config.

    Args:
      config: see configs/mae.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    encoder, masker = encoder_from(config), masking.masker_of(config.mask)
    target, num_keep = TARGETS[config.loss.target].build(config), visible_count(config)
    parts = _Parts(config, plan, model_from(config), encoder, target, masker, num_keep)
    num_patches = encoder.grid[0] * encoder.grid[1]
    num_masked = (num_patches - num_keep, num_patches - num_keep)
    optimizer = optim.from_settings(config.optim, plan, optim.warmup_cosine)
    return Method(
        example=functools.partial(
            crops.single_view,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
        ),
        init=functools.partial(_init, parts),
        turns=(Turn(functools.partial(_loss, parts), optimizer),),
        after_step=lambda params, extra, aux, step: extra,
        encoder=encoder,
        with_positions=functools.partial(_with_positions, parts),
        features=functools.partial(_features, parts),
        extras=tuple(masker.needs & {"proposed"}),
        masker=masker,
        masks=functools.partial(_masks, parts),
        selection=greedy_dpp.settings(config.mask),
        num_masked=num_masked,
        encoder_of=lambda params, extra: params["encoder"],
        with_encoder=lambda params, extra, encoder: ({**params, "encoder": encoder}, extra),
        describe=(described_masks(masker, num_masked, num_patches),),
        schedules=masking.over_steps(masker, plan.total_steps),
        reconstruct=functools.partial(_reconstruct, parts) if target.pixels else None,
    )


def _init(parts: _Parts, key):
    images = jnp.zeros((1, *parts.config.image_size, 3), jnp.float32)
    order = jnp.arange(parts.grid[0] * parts.grid[1])[None]
    return parts.model.init(key, images, order, parts.num_keep)["params"], {}


def _kernel_features(config, images, tokens):
    return {
        "embedding": lambda: tokens,
        "pixels": lambda: patches.patchify(images, config.model.patch_size),
    }[config.mask.features]()


def _loss(parts: _Parts, params, extra, batch, key, step):
    config, num_keep = parts.config, parts.num_keep
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    split = jax.vmap(lambda example_key: jax.random.split(example_key, 3))(keys)
    flip_keys, mask_keys, drop_keys = split[:, 0], split[:, 1], split[:, 2]
    raw = augment.flip(batch["image"], flip_keys) if config.data.flip else batch["image"]
    images = augment.normalize(raw)
    tokens = parts.model.apply({"params": params}, images, method="embed")
    seen = masking.Seen(
        parts.grid,
        masking.progress_at(step, parts.plan.total_steps),
        step,
        jax.random.fold_in(key, 2**31),  # no example of the stream has this number
        features=lambda: _kernel_features(config, images, tokens),
        proposed=(lambda: batch["proposed"]) if "proposed" in batch else None,
    )
    with jax.named_scope("selection"):
        mask, found = parts.masker.draw(mask_keys, num_keep, seen, num_keep)
    metrics = {name: jnp.mean(value.astype(jnp.float32)) for name, value in found.items()}
    pred = parts.model.apply(
        {"params": params}, tokens, mask.order, num_keep, drop_keys, method="predict"
    )
    return parts.target.loss(pred, parts.target.of(raw), mask.mask), (metrics, {})


def _features(parts: _Parts, params, extra, images):
    images = augment.normalize(images)
    tokens = parts.model.apply({"params": params}, images, method="embed")
    return _kernel_features(parts.config, images, tokens)


def _masks(parts: _Parts, params, extra, images, keys, masker=None, count: int | None = None):
    count = parts.num_keep if count is None else count
    seen = masking.Seen(parts.grid, features=lambda: _features(parts, params, extra, images))
    return (masker or parts.masker).draw(keys, count, seen, count)


def _reconstruct(parts: _Parts, params, extra, images, order, borrow_statistics=False):
    num_keep, patch_size = parts.num_keep, parts.config.model.patch_size
    normalized = augment.normalize(images)
    pred = parts.model.apply({"params": params}, normalized, order, num_keep)
    known = None if borrow_statistics else order[:, :num_keep]
    hidden = parts.target.pixels(pred, images, known)
    original = patches.patchify(augment.denormalize(normalized), patch_size)
    rank = jnp.argsort(order, axis=1)
    shown = jnp.where((rank < num_keep)[..., None], original, hidden)
    return jnp.clip(patches.unpatchify(shown, parts.grid, patch_size), 0.0, 1.0)


def _with_positions(parts: _Parts, params):
    table = patches.fixed_positions(parts.grid, parts.config.model.decoder_width)
    return {
        **params,
        "encoder": parts.encoder.trainable(params["encoder"]),
        "decoder": {**params["decoder"], "positions": table},
    }


def encoder_from(config) -> Encoder:
    """The encoder of a checked config."""
    return encoders.build(config, position="fixed", start=vit.MAE_START)


def model_from(config) -> MAE:
    """Encoder and decoder of a checked config."""
    model = config.model
    encoder = encoder_from(config)
    decoder = Decoder(
        Size(model.decoder_width, model.decoder_depth, model.decoder_heads),
        encoder.grid,
        TARGETS[config.loss.target].build(config).width,
        model.remat,
        jnp.dtype(model.dtype),
    )
    return MAE(encoder.module, decoder)


def visible_count(config) -> int:
    """Number of visible patches of every image."""
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    return masking.num_visible(rows * columns, config.mask.ratio)


KIND = MethodKind(
    build,
    "MAE",
    FIELDS,
    check,
    gives=frozenset({"features", "proposed"}),
    recipes=("configs/mae.py",),
    targets=True,
)
