"""Hybrid: masked modelling and contrastive learning train one encoder together.

The loss is (1 - w) L_MIM + w L_CL (Park et al., What Do Self-Supervised Vision Transformers Learn?,
arXiv 2305.00729, figure 12; w of .2 is their best). L_MIM is the loss of MAE or SimMIM with any of
their masks, L_CL that of MoCo v3. The authors' code of it is not public: which views either loss
takes, whose encoder it is, and a w that moves are ours. A view that both take is the second of the
pair: MoCo v3 blurs each first view, and a masked loss would learn to paint blurred images. So is
L_CL without MoCo v3's factor of
twice the temperature, which would mean another w.

Where w is 0 or 1 all along, the other loss is not computed and has no parameters. With the encoder
of the one that is left, its views and its factor the run is that of the single method, bit for bit.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from dppmask_jax import masking, pixel_format
from dppmask_jax.data.images import crops
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, number, one_of, optional, with_defaults
from dppmask_jax.methods import augmented_views, contrast, contrastive_health, mae, moco, simmim
from dppmask_jax.methods.base import Method, MethodKind, Plan
from dppmask_jax.models import encoders
from dppmask_jax.targets import pixels

MIM = {"mae": mae, "simmim": simmim}
_NO_EXAMPLE = 2**31 + 1  # no example of the stream has this number, and `single_view` takes 2**31
FIELDS = {
    **simmim.FIELDS,
    **with_defaults(moco.FIELDS, {"loss.moco_factor": False}),
    **mae.FIELDS,
    **pixels.FIELDS,
    "data.crop_scale": moco.FIELDS["data.crop_scale"],
    "optim.freeze_patch_embed": moco.FIELDS["optim.freeze_patch_embed"]._replace(
        note="whether a ViT's embedding of patches stays as it starts; where hybrid.encoder=moco"
    ),
    "hybrid.weight": Field(
        0.2, number(0, 1), "weight of the contrastive loss; that of the masked one is the rest"
    ),
    "hybrid.weight_end": Field(
        None,
        optional(number(0, 1)),
        "that weight at the end, reached linearly; losses of "
        "validation always have it; None: it stays",
    ),
    "hybrid.mim": Field("mae", one_of(*MIM), "whose masked loss it is", fixed=True),
    "hybrid.view": Field(
        "shared",
        one_of("shared", "separate"),
        "what is masked: the second of the two augmented views, which MoCo v3 seldom blurs, or a "
        "crop of its own, as MAE has it",
    ),
    "hybrid.crop_scale": Field(
        mae.FIELDS["data.crop_scale"].default,
        crops.SCALE,
        "area of that crop of its own, and of no other: data.crop_scale is that of the two views",
    ),
    "hybrid.encoder": Field(
        "mim",
        one_of("mim", "moco"),
        "whose encoder is trained, by whose optimiser: those of hybrid.mim or of MoCo v3",
        fixed=True,
    ),
}


def check(config) -> None:
    """Raises InputError where a loss that is computed cannot be."""
    weights = weights_of(config)
    if weights != (1.0, 1.0):
        kind = MIM[config.hybrid.mim].KIND
        encoder = encoders.build(config)
        if any(getattr(encoder, part) is None for part in kind.encoder):
            raise InputError(
                f"config.model.encoder={config.model.encoder!r} cannot hide patches as "
                f"{kind.label} does: use 'vit', or --config=moco, which hides none"
            )
        kind.check(config)
    if weights != (0.0, 0.0):
        contrast.check(config)


def weights_of(config) -> tuple[float, float]:
    """The weight of the contrastive loss at the start and at the end of a run."""
    start, end = config.hybrid.weight, config.hybrid.weight_end
    return float(start), float(start if end is None else end)


def build(config, plan: Plan) -> Method:
    """The hybrid of a checked config.

    Args:
      config: see configs/hybrid.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    weights = weights_of(config)
    if weights == (0.0, 0.0):
        method = _masked_alone(config, plan)
    elif weights == (1.0, 1.0):
        method = _contrastive(config, plan)
    else:
        method = _both(config, plan, weights)
    start, end = weights
    words = f"{start:g}" if start == end else f"{start:g} to {end:g}"
    return method._replace(describe=(("weight", f"{words} contrastive"), *method.describe))


def _contrastive(config, plan: Plan) -> Method:
    """MoCo v3, of the encoder that the config asks for."""
    if config.hybrid.encoder == "moco":
        return moco.build(config, plan)
    of_mim = MIM[config.hybrid.mim].build(config, plan)
    method = moco.build(config, plan, of_mim.encoder)
    return _with_optimizer(method, of_mim)


def _masked(config, plan: Plan) -> Method:
    """MAE or SimMIM, of the encoder and the view that the config asks for."""
    own = config.copy_and_resolve_references()
    if _is_shared(config):
        own.data.flip = False  # the views were mirrored on the host
    else:
        own.data.crop_scale = config.hybrid.crop_scale
    build_mim = MIM[config.hybrid.mim].build
    if config.hybrid.encoder == "mim":
        return build_mim(own, plan)
    of_moco = moco.build(config, plan)
    return _with_optimizer(build_mim(own, plan, of_moco.encoder), of_moco)


def _with_optimizer(method: Method, other: Method) -> Method:
    """A method of one turn, with the optimiser of another."""
    turn = method.turns[0]._replace(optimizer=other.turns[0].optimizer)
    return method._replace(turns=(turn,))


def _masked_alone(config, plan: Plan) -> Method:
    method = _masked(config, plan)
    if not _is_shared(config):
        return method
    (turn,), kind = method.turns, method.encoder.pixels

    def loss(params, extra, batch, key, step):
        keys = augmented_views.keys_of_views(config.data, key, batch["index"])
        image = augmented_views.augmented_second(config.data, batch, keys[:, 0])
        return turn.loss(params, extra, _as_single(kind, batch, image), _of_masked(key), step)

    return method._replace(
        example=moco.example_of(config), turns=(turn._replace(loss=loss),), loss_of_views=True
    )


def _is_shared(config) -> bool:
    return config.hybrid.view == "shared"


def _of_masked(key):
    """The key of the masked loss, from the step's: of one key, what `fold_in` gives the two views
    is what `split` gives a masked image."""
    return jax.random.fold_in(key, _NO_EXAMPLE)


def _as_single(kind: pixel_format.Pixels, batch, view) -> dict[str, Any]:
    """The batch of a method of one view: the second augmented one (B, H, W, C), which is
    normalised, from 0 to 1 under "image", and the maps that came with it under their names."""
    maps = {
        name.removeprefix("global_"): value[:, 1]
        for name, value in batch.items()
        if name.startswith("global_") and name != "global_views"
    }
    others = {name: value for name, value in batch.items() if not name.startswith("global_")}
    return {**others, **maps, "image": kind.denormalize(view)}


def mixed(weight, masked_loss, pair_loss):
    """The loss of both."""
    return (1 - weight) * masked_loss + weight * pair_loss


def _both(config, plan: Plan, weights: tuple[float, float]) -> Method:
    """The two losses of one encoder. Parameters and `extra` of the single methods stand side by
    side: no two have a name in common but the encoder."""
    masked = _masked(config, plan)
    contrastive = contrast.build(config, plan, masked.encoder)
    (turn,), kind = masked.turns, masked.encoder.pixels
    start, end = weights

    def weight_at(step):
        return start + (end - start) * masking.progress_at(step, plan.total_steps)

    def init(key):
        masked_key, heads_key = jax.random.split(key)
        params, extra = masked.init(masked_key)
        heads, momentum = contrastive.init(heads_key, params["encoder"])
        return {**params, **heads}, {**extra, **momentum}

    def loss(params, extra, batch, key, step):
        keys = augmented_views.keys_of_views(config.data, key, batch["index"])
        with jax.named_scope("augment"):
            views = augmented_views.augmented_globals(config.data, batch, keys[:, 0])
        seen = _as_single(kind, batch, views[1]) if _is_shared(config) else batch
        masked_loss, (of_masks, _) = turn.loss(params, extra, seen, _of_masked(key), step)
        pair_loss, (of_pairs, aux) = contrastive.loss(params, extra, views, keys[:, 2])
        weight = start if start == end else weight_at(step)
        metrics = {"loss_mim": masked_loss, "loss_contrast": pair_loss}
        if start != end:
            metrics["hybrid_weight"] = weight
        return mixed(weight, masked_loss, pair_loss), ({**metrics, **of_masks, **of_pairs}, aux)

    def after_step(params, extra, aux, step):
        extra = {**extra, **masked.after_step(params, extra, {}, step)}
        return contrastive.after_step(params, extra, aux, step)

    def with_encoder(params, extra, encoder):
        for method in (masked, contrastive):
            params, extra = method.with_encoder(params, extra, encoder)
        return params, extra

    def with_positions(params, extra):
        for method in (masked, contrastive):
            params, extra = method.with_positions(params, extra)
        return params, extra

    moving = {} if start == end else {"weight of the contrastive loss": weight_at}
    return masked._replace(
        example=_example_of(config, masked.example),
        init=init,
        turns=(turn._replace(loss=loss),),
        after_step=after_step,
        schedules={**masked.schedules, **contrastive.schedules, **moving},
        describe=(*contrastive.describe, *masked.describe),
        watch=contrastive_health.watch,
        loss_of_views=True,
        with_encoder=with_encoder,
        with_positions=with_positions,
    )


def _example_of(config, single):
    """As `Method.example`, of both losses; a crop of its own is drawn first."""
    views = moco.example_of(config)
    return views if _is_shared(config) else functools.partial(_joined, single, views)


def _joined(single, views, data, rng, extras=crops.NO_EXTRAS):
    return {**single(data, rng, extras), **views(data, rng)}


KIND = MethodKind(
    build,
    "Hybrid",
    FIELDS,
    check,
    gives=mae.KIND.gives,
    shown_by=simmim.KIND.shown_by,
    recipes=("hybrid",),
    targets=True,
    loss_fields=("hybrid.", *moco.LOSS_FIELDS),
    mask_recipes=mae.KIND.mask_recipes,
)
