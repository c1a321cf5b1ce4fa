"""Masked autoencoding of patches that a masker hides: DPPMask, random, blocks, or another.

MAE: arXiv 2111.06377. DPPMask: arXiv 2303.12736.
"""

from __future__ import annotations

import functools

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


def build(config, plan: Plan) -> Method:
    """The MAE of a checked config.

    Args:
      config: see configs/mae.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    model, encoder = model_from(config), encoder_from(config)
    target = TARGETS[config.loss.target].build(config)
    patch_size = config.model.patch_size
    grid = patches.grid_shape(tuple(config.image_size), patch_size)
    num_keep = visible_count(config)
    masker = masking.masker_of(config.mask)
    progress_at = functools.partial(masking.progress_at, total_steps=plan.total_steps)

    def init(key):
        images = jnp.zeros((1, *config.image_size, 3), jnp.float32)
        order = jnp.arange(grid[0] * grid[1])[None]
        return model.init(key, images, order, num_keep)["params"], {}

    def kernel_features(images, tokens):
        return {
            "embedding": lambda: tokens,
            "pixels": lambda: patches.patchify(images, patch_size),
        }[config.mask.features]()

    def loss(params, extra, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        split = jax.vmap(lambda example_key: jax.random.split(example_key, 3))(keys)
        flip_keys, mask_keys, drop_keys = split[:, 0], split[:, 1], split[:, 2]
        raw = augment.flip(batch["image"], flip_keys) if config.data.flip else batch["image"]
        images = augment.normalize(raw)
        tokens = model.apply({"params": params}, images, method="embed")
        seen = masking.Seen(
            grid,
            progress_at(step),
            step,
            jax.random.fold_in(key, 2**31),  # no example of the stream has this number
            features=lambda: kernel_features(images, tokens),
            proposed=(lambda: batch["proposed"]) if "proposed" in batch else None,
        )
        with jax.named_scope("selection"):
            mask, found = masker.draw(mask_keys, num_keep, seen, num_keep)
        metrics = {name: jnp.mean(value.astype(jnp.float32)) for name, value in found.items()}
        pred = model.apply(
            {"params": params}, tokens, mask.order, num_keep, drop_keys, method="predict"
        )
        return target.loss(pred, target.of(raw), mask.mask), (metrics, {})

    def features(params, extra, images):
        images = augment.normalize(images)
        tokens = model.apply({"params": params}, images, method="embed")
        return kernel_features(images, tokens)

    def masks(params, extra, images, keys, masker=masker, count=num_keep):
        seen = masking.Seen(grid, features=lambda: features(params, extra, images))
        return masker.draw(keys, count, seen, count)

    def reconstruct(params, extra, images, order, borrow_statistics=False):
        normalized = augment.normalize(images)
        pred = model.apply({"params": params}, normalized, order, num_keep)
        known = None if borrow_statistics else order[:, :num_keep]
        hidden = target.pixels(pred, images, known)
        original = patches.patchify(augment.denormalize(normalized), patch_size)
        rank = jnp.argsort(order, axis=1)
        shown = jnp.where((rank < num_keep)[..., None], original, hidden)
        return jnp.clip(patches.unpatchify(shown, grid, patch_size), 0.0, 1.0)

    def with_positions(params):
        table = patches.fixed_positions(grid, config.model.decoder_width)
        return {
            **params,
            "encoder": encoder.trainable(params["encoder"]),
            "decoder": {**params["decoder"], "positions": table},
        }

    num_patches = grid[0] * grid[1]
    return Method(
        example=functools.partial(
            crops.single_view,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
        ),
        init=init,
        turns=(Turn(loss, optim.from_settings(config.optim, plan, optim.warmup_cosine)),),
        after_step=lambda params, extra, aux, step: extra,
        encoder=encoder,
        with_positions=with_positions,
        features=features,
        extras=tuple(masker.needs & {"proposed"}),
        masker=masker,
        masks=masks,
        selection=greedy_dpp.settings(config.mask),
        num_masked=(num_patches - num_keep, num_patches - num_keep),
        encoder_of=lambda params, extra: params["encoder"],
        with_encoder=lambda params, extra, encoder: ({**params, "encoder": encoder}, extra),
        describe=(described_masks(masker, (num_patches - num_keep,) * 2, num_patches),),
        schedules=masking.over_steps(masker, plan.total_steps),
        reconstruct=reconstruct if target.pixels else None,
    )


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
