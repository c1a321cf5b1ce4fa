"""ADIOS: soft masks are learned by an adversary of the encoder (arXiv 2201.13100, and its code,
github.com/YugeTen/adios).

A step has two turns, one optimiser each, on the same two views of the same images. First the
encoder lowers its error on the second view, occluded by each of N masks; then the mask network,
which sees that second view, raises the error of the encoder as it has become, less a penalty of
masks that cover nothing or everything. The order, and that each step has both, are the authors'.

The authors' batch norms also follow the turn of the masks; here the running statistics follow that
of the encoder alone, half of them the first view's and half the occluded views', as many passes as
the authors make of each.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import optim
from dppmask_jax.data.images import augment, crops, views
from dppmask_jax.errors import InputError
from dppmask_jax.fields import FLAG, Field, above, grouped, number, one_of, whole, with_defaults
from dppmask_jax.losses import occlusion
from dppmask_jax.methods import augmented_views, contrast, contrastive_health, mae, moco
from dppmask_jax.methods.adios_objectives import OBJECTIVES, Objective, separated
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.models import encoders, unet
from dppmask_jax.models.base import Encoder
from dppmask_jax.targets import pixels

_OF_MASKS = frozenset({"masks"})  # the parameters of the mask network
_watch = functools.partial(
    contrastive_health.watch,
    "or have masks hide less: lower config.masks.optim.base_lr, or raise config.masks.sparsity",
)
_SGD = {
    "optim.kind": "sgd",
    "optim.warmup_epochs": 10.0,
    "optim.weight_decay": 1e-4,
}
FIELDS = {
    "model.projector_hidden": Field(
        2048, whole(1, 2**16), "hidden width of SimCLR's projector", fixed=True
    ),
    "model.projector_out": Field(128, whole(1, 2**16), "width of its projections", fixed=True),
    **{name: mae.FIELDS[name] for name in mae.FIELDS if name.startswith("model.decoder_")},
    **with_defaults(crops.FIELDS, {"data.crop_scale": (0.08, 1.0)}),
    **augment.FIELDS,
    **with_defaults(
        views.FIELDS,
        {
            "data.jitter": (0.8, 0.8, 0.8, 0.2),
            "data.blur_prob": (0.5, 0.5, 0.0),
            "data.solarize_prob": 0.0,
        },
    ),
    "loss.objective": Field(
        "simclr",
        one_of(*OBJECTIVES),
        "what the encoder is to do: recognise the other view; or, with MAE's decoder, paint what "
        "is covered",
        fixed=True,
    ),
    "loss.temperature": Field(0.2, above(0), "of SimCLR's loss"),
    "optim.accum_steps": contrast.FIELDS["optim.accum_steps"],
    "loss.norm_pix": pixels.FIELDS["loss.norm_pix"],
    **unet.FIELDS,
    "masks.sampled": Field(
        False, FLAG, "ADIOS-s: each image is occluded by one of its masks, drawn anew in both turns"
    ),
    "masks.sparsity": Field(
        0.9, number(0), "weight of the penalty of masks that cover nothing or everything"
    ),
    "masks.entropy": Field(
        0.0, number(0), "weight of the term that masks of different sizes raise; summed over a step"
    ),
    **with_defaults(optim.FIELDS, _SGD | {"optim.base_lr": 0.23}),
    **grouped("masks", with_defaults(optim.FIELDS, _SGD | {"optim.base_lr": 0.067})),
}


def check(config) -> None:
    """Raises InputError where masks cannot be made, or the encoder cannot do what it is to do."""
    unet.check(config)
    if config.loss.objective == "simclr":
        contrast.check(config, ", or --config.loss.objective=reconstruct")
        return
    if encoders.build(config).blocks is None:
        raise InputError(
            f"config.loss.objective='reconstruct' takes MAE's decoder, which "
            f"config.model.encoder={config.model.encoder!r} has no tokens for: use 'vit', or "
            "--config.loss.objective=simclr"
        )
    mae.check_decoder(config)


class _Game(NamedTuple):
    """What the functions of the method share."""

    config: Any
    objective: Objective
    network: unet.MaskNetwork

    def masks(self, params, images):
        """(B, N, H, W) soft masks of normalised images."""
        return self.network.apply({"params": params["masks"]}, images)


def build(config, plan: Plan) -> Method:
    """The ADIOS of a checked config.

    Args:
      config: see configs/adios.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    objective = OBJECTIVES[config.loss.objective](config)
    game = _Game(config, objective, unet.build(config))
    of_masks = config.masks.optim
    masks_plan = plan._replace(
        peak_lr=optim.scaled_learning_rate(of_masks.base_lr, config.batch_size),
        warmup_steps=min(
            round(of_masks.warmup_epochs * plan.steps_per_epoch), max(plan.total_steps - 1, 0)
        ),
    )
    return Method(
        example=moco.example_of(config),
        init=functools.partial(_init, game),
        turns=(
            Turn(
                functools.partial(_encoder_loss, game),
                optim.from_settings(config.optim, plan, optim.warmup_cosine),
                objective.trains,
            ),
            Turn(
                functools.partial(_masks_loss, game),
                optim.from_settings(of_masks, masks_plan, optim.warmup_cosine),
                _OF_MASKS,
                "masks",
            ),
        ),
        after_step=lambda params, extra, aux, step: {**extra, **aux},
        describe=_described(config),
        loss_of_views=True,
        **({"watch": _watch} if objective.projects else {}),
        encoder=objective.encoder,
        encoder_of=lambda params, extra: {**params["encoder"], **extra},
        with_encoder=_with_encoder,
        with_positions=objective.with_positions,
        attention=objective.encoder.attended and functools.partial(_attention, objective.encoder),
        soft_masks=lambda params, extra, images: game.masks(
            params, objective.encoder.pixels.normalize(images)
        ),
    )


def _described(config) -> tuple[tuple[str, str], ...]:
    masks = config.masks
    how = "one of them, drawn, covers an image" if masks.sampled else "each covers an image"
    return (
        ("masks", f"{masks.count} soft ones, learned; {how}"),
        ("objective", config.loss.objective),
    )


def _init(game: _Game, key):
    encoder_key, masks_key = jax.random.split(key)
    params, statistics = game.objective.init(encoder_key)
    channels = game.objective.encoder.pixels.channels
    images = jnp.zeros((1, *game.config.image_size, channels), jnp.float32)
    return {**params, "masks": game.network.init(masks_key, images)["params"]}, statistics


def _encoder_loss(game: _Game, params, extra, batch, key, step):
    del step
    images, mask_keys, drop_keys = _views(game.config, batch, key)
    masks = jax.lax.stop_gradient(game.masks(params, images[1]))
    error, of_first = game.objective.errors(params, extra, *images, drop_keys)
    chosen = covering(game.config, masks, mask_keys, 0)
    loss, found = occlusion.summed_error(error, images[1], chosen)
    followed = jax.tree.map(
        lambda whole, occluded: (whole + jnp.mean(occluded, axis=0)) / 2,
        of_first["statistics"],
        found["statistics"],
    )
    metrics = {}
    if "projected" in found:
        metrics = contrastive_health.measured(of_first["projected"], found["projected"][0])
    return loss, (metrics, jax.lax.stop_gradient(followed))


def _masks_loss(game: _Game, params, extra, batch, key, step):
    """What the mask network maximises, with its sign turned."""
    del step
    images, mask_keys, drop_keys = _views(game.config, batch, key)
    masks = game.masks(params, images[1])
    error, _ = game.objective.errors(params, extra, *images, drop_keys)
    chosen = covering(game.config, masks, mask_keys, 1)
    errors, _ = occlusion.summed_error(error, images[1], chosen)
    shares = occlusion.shares(masks)
    objective = occlusion.mask_objective(
        errors,
        shares,
        sparsity_weight=game.config.masks.sparsity,
        entropy_weight=game.config.masks.entropy,
        batch_size=game.config.batch_size,
    )
    return -objective, (_metrics(errors, masks, shares), {})


def _metrics(errors, masks, shares):
    each = jnp.mean(shares, axis=0)
    return {
        "masked_error": errors,
        "mask_penalty": jnp.sum(occlusion.sparsity(shares)),
        # Of a pixel, over its masks: 0 where one covers it alone, log N where all do alike.
        "mask_entropy": -jnp.mean(jnp.sum(masks * jnp.log(masks + 1e-12), axis=1)),
        "smallest_mask": jnp.mean(jnp.min(shares, axis=1)),
        "largest_mask": jnp.mean(jnp.max(shares, axis=1)),
        **{f"mask_{n}_share": share for n, share in enumerate(each)},
    }


def _views(config, batch, key):
    """(both views (B, H, W, 3), keys (B,) of masks, keys (2, B) of drop-path), the same in both
    turns of a step."""
    num = len(batch["index"])
    keys = augmented_views.keys_of_views(config.data, key, batch["index"])
    with jax.named_scope("augment"):
        images = augmented_views.augmented_globals(config.data, batch, keys[:, 0])
    return images, keys[num:, 1], keys[:, 2].reshape(2, num)


def covering(config, masks, keys, turn: int):
    """(B, M, H, W): the masks that occlude: all, or one of each image, drawn for this turn."""
    if not config.masks.sampled:
        return masks
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, turn)
    chosen = jax.vmap(lambda k: jax.random.randint(k, (), 0, masks.shape[1]))(keys)
    return jnp.take_along_axis(masks, chosen[:, None, None, None], axis=1)


def _attention(encoder: Encoder, params, extra, images):
    images = encoder.pixels.normalize(images)
    return encoder.attended({**params["encoder"], **extra}, images)[1]


def _with_encoder(params, extra, encoder):
    encoder, statistics = separated(encoder)
    return {**params, "encoder": encoder}, {**extra, **statistics}


KIND = MethodKind(
    build,
    "ADIOS",
    FIELDS,
    check,
    recipes=("adios",),
    masks=False,
    # Its masks are learned, so that all that teaches them counts.
    loss_fields=("masks.", *moco.LOSS_FIELDS),
)
