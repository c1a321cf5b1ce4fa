"""Paired image overlay: an image is mixed with another of its batch, and predicted as it was.

The paper trains a ResNet-50 autoencoder on alpha * other + (1 - alpha) * image, with the mean
square error to the image: model.encoder=resnet. That a ViT with MAE's decoder takes its place, and
that masks may follow the overlay, is ours. So is how the other is drawn: the paper says that it is
one of the batch.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from dppmask_jax import masking, optim, pixel_format
from dppmask_jax.data.images import crops
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, fraction_below_1, number, optional, with_defaults
from dppmask_jax.methods import corruptions, mae, single_view
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.models import encoders, resnet_decoder
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.targets import TARGETS, pixels

FIELDS = {
    **mae.FIELDS,
    **with_defaults(pixels.FIELDS, {"loss.norm_pix": False}),
    **corruptions.FIELDS,
    "mask.ratio": Field(
        0.0,
        fraction_below_1,
        "share of the patches that are masked; 0: none is, all are predicted",
    ),
    "loss.visible_weight": Field(
        None,
        optional(number(0)),
        "weight of a visible patch beside 1 of a masked one; None: 1 if it is corrupted, else 0",
    ),
}
_RESNET = "resnet"  # the encoder that `resnet_decoder` mirrors


def check(config) -> None:
    """Raises InputError where there is nobody to mix with or nothing to predict, where MAE's
    decoder or the masks cannot be made, and what a ResNet cannot do."""
    alpha, accum_steps = config.data.alpha, config.optim.accum_steps
    if corruptions.mixes(config) and config.batch_size // accum_steps < 2:
        raise InputError(
            f"config.data.alpha={alpha} mixes each image with another of its batch, and "
            f"config.batch_size={config.batch_size} with config.optim.accum_steps={accum_steps} "
            "makes batches of validation of one image: take more images, fewer steps, or "
            "--config.data.alpha=0"
        )
    if config.data.corruption == "autoaugment":
        what = "AutoAugment, config.data.corruption=autoaugment,"
        pixel_format.check_rgb(config, what, "take another corruption")
    if config.model.encoder == _RESNET:
        _check_resnet(config)
    elif encoders.build(config).blocks is None:
        raise InputError(
            f"config.model.encoder={config.model.encoder!r} has no decoder here: "
            f"{_RESNET!r} has one of its own, and 'vit' MAE's"
        )
    elif config.mask.ratio:
        mae.check(config)
    else:
        mae.check_decoder(config)
        if config.loss.visible_weight == 0:
            raise InputError(
                "config.loss.visible_weight=0 leaves nothing to predict where config.mask.ratio=0 "
                "masks no patch; raise one of them"
            )


def _check_resnet(config) -> None:
    if config.mask.ratio:
        raise InputError(
            f"config.mask.ratio={config.mask.ratio}: config.model.encoder={_RESNET!r} has no "
            "tokens that could be left out; set it to 0, or take config.model.encoder=vit"
        )
    only = {"target": "pixels", "norm_pix": False, "distance": "squared", "visible_weight": None}
    for name, value in only.items():
        if config.loss[name] != value:
            raise InputError(
                f"config.loss.{name}={config.loss[name]}: config.model.encoder={_RESNET!r} paints "
                f"all pixels from 0 to 1, by their mean square error; set it to {value}"
            )


def build(config, plan: Plan) -> Method:
    """The overlay autoencoder of a checked config.

    Args:
      config: see configs/overlay.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    corruption = corruptions.build(config)
    form = _resnet if config.model.encoder == _RESNET else _vit
    method = form(config, plan, corruption)
    counted = "all patches are predicted"
    if config.mask.ratio:
        counted = f"visible patches count {visible_weight(config):g}"
    method = method._replace(
        example=corruption.example(method.example),
        before_step=corruption.before_step,
        loss_of_views=corruption.in_example,
        corrupted=corruption.shown,
        describe=(("corrupted", f"{corruption.words}; {counted}"), *method.describe),
    )
    if config.mask.ratio:
        return method
    return method._replace(
        describe=tuple(line for line in method.describe if line[0] != "masks"),
        masker=None, masks=None, num_hidden=None, extras=(), schedules={}, reconstruct=None,
    )  # fmt: skip


def _vit(config, plan: Plan, corruption: corruptions.Corruption) -> Method:
    """MAE with another input and another loss; its parameters are MAE's."""
    base = mae.build(config, plan)
    model = mae.model_from(config, base.encoder)
    kind = base.encoder.pixels
    weight, shares = visible_weight(config), shares_of(config)
    target = TARGETS[config.loss.target].build(config)
    target = target._replace(loss=functools.partial(weighted, target.loss, weight))

    def mask_of(params, extra, views, batch, key, step):
        """Masks look at the image as it was."""
        if not config.mask.ratio:
            return masking.nothing_hidden(base.encoder.grid, len(views.raw)), {}
        seen = masking.Seen(
            base.encoder.grid,
            masking.progress_at(step, plan.total_steps),
            step,
            features=lambda: base.features(params, extra, views.raw),
            attention=base.attention and (lambda: base.attention(params, extra, views.raw)),
        )
        return single_view.drawn(base.masker, shares.visible, views, seen, batch, key)

    def predict(params, images, kept, keys=None):
        tokens = model.apply({"params": params}, images, method="embed")
        return model.apply({"params": params}, tokens, kept, shares.visible, keys, method="predict")

    def loss(params, extra, batch, key, step):
        views, images = corruption.of(batch, key)
        mask, metrics = mask_of(params, extra, views, batch, key, step)
        kept = mask.order[:, : shares.kept]
        pred = predict(params, images, kept, views.drop_keys)
        wanted, is_masked = single_view.wanted_of(target, views.raw, mask, kept)
        return target.loss(pred, wanted, is_masked), (metrics, {})

    def restore(params, extra, images, order):
        pred = predict(params, kind.normalize(images), order)
        patch_size = config.model.patch_size
        return single_view.painted(
            kind, target, pred, images, order, shares.visible, patch_size, False, weight > 0
        )

    return base._replace(
        turns=(base.turns[0]._replace(loss=loss),), restore=restore if target.pixels else None
    )


def _resnet(config, plan: Plan, corruption: corruptions.Corruption) -> Method:
    """The paper's autoencoder. Running statistics of its batch norms are `extra`; the validation
    loss, too, is by the statistics of the batch."""
    net = resnet_decoder.autoencoder(config)
    kind = net.encoder.pixels

    def init(key):
        params, statistics = net.init(key)
        return params, {STATISTICS: statistics}

    def loss(params, extra, batch, key, step):
        views, images = corruption.of(batch, key)
        found, statistics = net.train(params, extra[STATISTICS], images, views.drop_keys)
        wanted = kind.denormalize(kind.normalize(views.raw))
        return jnp.mean(jnp.square(found - wanted)), ({}, {STATISTICS: statistics})

    def with_encoder(params, extra, encoder):
        params, statistics = net.with_encoder(params, extra[STATISTICS], encoder)
        return params, {**extra, STATISTICS: statistics}

    return Method(
        example=functools.partial(
            crops.single_view,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
        ),
        init=init,
        turns=(Turn(loss, optim.from_settings(config.optim, plan, optim.warmup_cosine)),),
        after_step=lambda params, extra, aux, step: {**extra, **aux},
        describe=(("target", "pixels"),),
        encoder=net.encoder,
        encoder_of=lambda params, extra: net.encoder_of(params, extra[STATISTICS]),
        with_encoder=with_encoder,
        restore=lambda params, extra, images, order: net.reconstruct(
            params, extra[STATISTICS], kind.normalize(images)
        ),
    )


def shares_of(config) -> single_view.Shares:
    """How many patches are visible, and how many not thrown away: all where none is masked."""
    shares = single_view.shares_of(config)
    return shares if config.mask.ratio else shares._replace(kept=shares.visible)


def visible_weight(config) -> float:
    """What a visible patch counts beside 1 of a masked one; 1 where none is masked."""
    if not config.mask.ratio:
        return 1.0
    if config.loss.visible_weight is None:
        return float(corruptions.build(config).changes)
    return config.loss.visible_weight


def weighted(loss, weight: float, pred, target, masked):
    """() float32: (M * masked + v * V * visible) / (M + v * V), of the mean losses of the M masked
    and the V visible patches.

    The weighting is ours.

    Args:
      loss: (pred, target, chosen (B, N) bool) -> the mean over chosen patches, `Target.loss`.
      weight: v, from 0 up.
      pred, target: (B, N, P), of patches that are not thrown away.
      masked: (B, N) bool, True = masked; with v of 0 some are.
    """
    if not weight:
        return loss(pred, target, masked)
    numbers = jnp.sum(masked), weight * jnp.sum(~masked)
    losses = loss(pred, target, masked), loss(pred, target, ~masked)
    return (numbers[0] * losses[0] + numbers[1] * losses[1]) / (numbers[0] + numbers[1])


KIND = MethodKind(
    build,
    "Overlay",
    FIELDS,
    check,
    gives=mae.KIND.gives - {"hardness"},
    shown_by=mae.KIND.shown_by,
    recipes=("overlay",),
    targets=True,
)
