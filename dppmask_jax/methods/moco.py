"""MoCo v3 (arXiv 2104.02057): two augmented views of an image are to find each other among those of
other images. No patch is masked.

The fields' defaults are the paper's for vision transformers; its loss and its momentum encoder
stand in `contrast`.
"""

from __future__ import annotations

import functools

import jax

from dppmask_jax import optim
from dppmask_jax.data.images import augment, crops, views
from dppmask_jax.fields import FLAG, Field, with_defaults
from dppmask_jax.methods import augmented_views, contrast, contrastive_health
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.models import encoders, vit_module
from dppmask_jax.models.base import Encoder

VIEW_FIELDS = {
    **with_defaults(crops.FIELDS, {"data.crop_scale": (0.08, 1.0)}),
    **augment.FIELDS,
    **views.FIELDS,
}
"""The fields of two augmented views. The third of `data.blur_prob`, of local views, says nothing
here."""

LOSS_FIELDS = (*VIEW_FIELDS, "batch_size", "optim.accum_steps")
"""What a contrastive loss depends on: how unlike two views are, and how many negatives a query has.
"""

FIELDS = {
    **VIEW_FIELDS,
    **contrast.FIELDS,
    **with_defaults(
        optim.FIELDS,
        {
            "optim.base_lr": 1.5e-4,
            "optim.warmup_epochs": 40.0,
            "optim.weight_decay": 0.1,
            "optim.b2": 0.999,
        },
    ),
    "optim.freeze_patch_embed": Field(
        True, FLAG, "whether a ViT's embedding of patches stays as it starts; a ResNet has none"
    ),
}


def encoder_from(config) -> Encoder:
    """The encoder of a checked config: a ViT has the fixed positions and the start of MoCo v3."""
    return encoders.build(config, position="fixed", first_axis="row", start=vit_module.MOCO_START)


def frozen(config) -> optim.Which:
    """What never moves."""
    freezes = config.optim.freeze_patch_embed
    return optim.below("encoder", "patch_embed") if freezes else optim.nothing


def every(path, parameter) -> bool:
    """True of all parameters: AdamW of the authors' code decays biases and norms as well."""
    return True


def build(config, plan: Plan, encoder: Encoder | None = None) -> Method:
    """The MoCo v3 of a checked config.

    Args:
      config: see configs/moco.py; already through `config.check`.
      plan: the length of the run, for the schedules.
      encoder: what is trained; None: the encoder of MoCo v3.
    """
    encoder = encoder or encoder_from(config)
    parts = contrast.build(config, plan, encoder)

    def init(key):
        encoder_key, heads_key = jax.random.split(key)
        of_encoder = encoder.init(encoder_key)
        heads, extra = parts.init(heads_key, of_encoder)
        params, extra = parts.with_encoder(heads, extra, of_encoder)
        return params, extra

    def loss(params, extra, batch, key, step):
        keys = augmented_views.keys_of_views(config.data, key, batch["index"])
        with jax.named_scope("augment"):
            images = augmented_views.augmented_globals(config.data, batch, keys[:, 0])
        return parts.loss(params, extra, images, keys[:, 2])

    def attention(params, extra, images):
        return encoder.attended(parts.encoder_of(params, extra), encoder.pixels.normalize(images))[
            1
        ]

    optimizer = optim.from_settings(
        config.optim, plan, optim.warmup_cosine, frozen=frozen(config), decays=every
    )
    return Method(
        example=example_of(config),
        init=init,
        turns=(Turn(loss, optimizer),),
        after_step=parts.after_step,
        schedules=parts.schedules,
        describe=parts.describe,
        loss_of_views=True,
        watch=contrastive_health.watch,
        encoder=encoder,
        encoder_of=parts.encoder_of,
        with_encoder=parts.with_encoder,
        with_positions=parts.with_positions,
        attention=attention if encoder.attended else None,
    )


def example_of(config):
    """As `Method.example`: two crops of an image."""
    return functools.partial(
        crops.multi_crop,
        image_size=tuple(config.image_size),
        scale=tuple(config.data.crop_scale),
        flip=config.data.flip,
    )


KIND = MethodKind(
    build,
    "MoCo v3",
    FIELDS,
    contrast.check,
    recipes=("moco",),
    masks=False,
    loss_fields=LOSS_FIELDS,
)
