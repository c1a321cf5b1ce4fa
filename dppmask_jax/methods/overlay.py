"""Paired image overlay: an image is mixed with another of its batch, and predicted as it was.

The paper trains a ResNet-50 autoencoder on alpha * other + (1 - alpha) * image, with the mean
square error to the image. That a ViT with MAE's decoder takes its place, and that masks may follow
the overlay, is ours. So is how the other is drawn: the paper says that it is one of the batch.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import masking, parallel
from dppmask_jax.data.images import mixing
from dppmask_jax.errors import InputError
from dppmask_jax.fields import (
    Field,
    Rule,
    fraction_below_1,
    is_number,
    number,
    optional,
    with_defaults,
)
from dppmask_jax.methods import mae, single_view
from dppmask_jax.methods.base import Method, MethodKind, Plan
from dppmask_jax.targets import TARGETS, pixels

FIELDS = {
    **mae.FIELDS,
    **with_defaults(pixels.FIELDS, {"loss.norm_pix": False}),
    "data.alpha": Field(
        0.3,
        Rule(
            lambda value: is_number(value) and value >= 0 and np.float32(value) < 0.5,
            "a number from 0 to below 0.5 (float32)",
            float,
        ),
        "share of the other image in what the encoder sees; 0: a plain autoencoder",
    ),
    "mask.ratio": Field(
        0.0,
        fraction_below_1,
        "share of the patches that are masked; 0: none is, all are predicted",
    ),
    "loss.visible_weight": Field(
        None,
        optional(number(0)),
        "weight of a visible patch beside 1 of a masked one; None: 1 if alpha is above 0, else 0",
    ),
}
_PARTNERS = 2**31 + 1  # no example of the stream has this number
_OTHERS = {"image": "other_image", "index": "other_index"}  # in the batch, by what they are of


def check(config) -> None:
    """Raises InputError where there is nobody to mix with or nothing to predict, and where MAE's
    decoder or the masks cannot be made."""
    alpha, accum_steps = config.data.alpha, config.optim.accum_steps
    if alpha and config.batch_size // accum_steps < 2:
        raise InputError(
            f"config.data.alpha={alpha} mixes each image with another of its batch, and of "
            f"config.batch_size={config.batch_size} with config.optim.accum_steps={accum_steps} "
            "there is none beside it: take more images, or --config.data.alpha=0"
        )
    if config.mask.ratio:
        mae.check(config)
    else:
        mae.check_decoder(config)
        if config.loss.visible_weight == 0:
            raise InputError(
                "config.loss.visible_weight=0 leaves nothing to predict where config.mask.ratio=0 "
                "masks no patch; raise one of them"
            )


def build(config, plan: Plan) -> Method:
    """The overlay autoencoder of a checked config: MAE with another input and another loss.

    Args:
      config: see configs/overlay.py; already through `config.check`.
      plan: the length of the run, for the schedules.
    """
    base, model = mae.build(config, plan), mae.model_from(config)
    target, alpha = TARGETS[config.loss.target].build(config), config.data.alpha
    weight, shares = visible_weight(config), shares_of(config)
    target = target._replace(loss=functools.partial(weighted, target.loss, weight))

    def mask_of(params, extra, views, batch, key, step):
        """Masks look at the image alone, whatever it is mixed with."""
        if not config.mask.ratio:
            return _no_mask(base.encoder.grid, len(views.raw)), {}
        seen = masking.Seen(
            base.encoder.grid,
            masking.progress_at(step, plan.total_steps),
            step,
            features=lambda: base.features(params, extra, views.raw),
        )
        return single_view.drawn(base.masker, shares.visible, views, seen, batch, key)

    def loss(params, extra, batch, key, step):
        views, others = _views_of(config, batch, key)
        mask, metrics = mask_of(params, extra, views, batch, key, step)
        mixed, kept = mixing.overlay(views.images, others, alpha), mask.order[:, : shares.kept]
        tokens = model.apply({"params": params}, mixed, method="embed")
        pred = model.apply(
            {"params": params}, tokens, kept, shares.visible, views.drop_keys, method="predict"
        )
        return single_view.loss_of(target, pred, views.raw, mask, kept), (metrics, {})

    method = base._replace(
        before_step=with_others if alpha else base.before_step,
        turns=(base.turns[0]._replace(loss=loss),),
        describe=(("overlay", _described(alpha, weight, config.mask.ratio)), *base.describe),
    )
    if config.mask.ratio:
        return method
    of_target = tuple(line for line in method.describe if line[0] != "masks")
    return method._replace(
        describe=of_target, masker=None, masks=None, num_hidden=None, extras=(), schedules={},
        reconstruct=None,
    )  # fmt: skip


def with_others(batch, key):
    """`Method.before_step`: for each image the one that it is mixed with, and its index.

    The images of the whole batch, over all devices, move on by a number of places from 1 to B - 1
    that the step's key draws. So none meets itself, each is mixed into exactly one, and devices do
    together what one would. Where a data set has fewer images than a batch, or at the border of two
    epochs, the other may be another crop of the same image.
    """
    number = parallel.rows_of_all(len(batch["index"]))
    places = jax.random.randint(jax.random.fold_in(key, _PARTNERS), (), 1, number)
    others = parallel.roll({name: batch[name] for name in _OTHERS}, places)
    return batch | {_OTHERS[name]: values for name, values in others.items()}


def _views_of(config, batch, key):
    """(the views of a batch, the normalised images that they are mixed with, flipped as they are
    where they are mixed into)."""
    own = {name: values for name, values in batch.items() if name not in _OTHERS.values()}
    views = single_view.views_of(config, own, key)
    if not config.data.alpha:
        return views, views.images
    others = {name: batch[renamed] for name, renamed in _OTHERS.items()}
    return views, single_view.views_of(config, others, key).images


def shares_of(config) -> single_view.Shares:
    """How many patches are visible, and how many not thrown away: all where none is masked."""
    shares = single_view.shares_of(config)
    return shares if config.mask.ratio else shares._replace(kept=shares.visible)


def _no_mask(grid: tuple[int, int], batch: int) -> masking.Mask:
    """(B, ...): all patches are visible."""
    number = grid[0] * grid[1]
    order = jnp.broadcast_to(jnp.arange(number, dtype=jnp.int32), (batch, number))
    return masking.Mask(order, jnp.zeros(order.shape, bool), jnp.full(batch, number, jnp.int32))


def visible_weight(config) -> float:
    """What a visible patch counts beside 1 of a masked one; 1 where none is masked."""
    if not config.mask.ratio:
        return 1.0
    if config.loss.visible_weight is None:
        return 1.0 if config.data.alpha else 0.0
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


def _described(alpha: float, weight: float, ratio: float) -> str:
    mixed = f"{alpha:g} of another image of the batch" if alpha else "none: a plain autoencoder"
    counted = f"visible patches count {weight:g}" if ratio else "all patches are predicted"
    return f"{mixed}; {counted}"


KIND = MethodKind(
    build,
    "Overlay",
    FIELDS,
    check,
    gives=mae.KIND.gives,
    recipes=("configs/overlay.py",),
    encoder=("blocks",),
    targets=True,
)
