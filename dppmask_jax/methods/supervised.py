"""Supervised training on top of a pre-trained encoder: fine-tuning and the linear probe.

Both follow MAE (arXiv 2111.06377, appendix A.1 and A.2, and its code) and take the encoder of any
run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import optim, parallel
from dppmask_jax.data.images import augment, classify, crops, mixing
from dppmask_jax.fields import (
    Field,
    Rule,
    fraction_below_1,
    is_number,
    number,
    one_of,
    with_defaults,
)
from dppmask_jax.losses import classification
from dppmask_jax.methods.base import Method, Plan, Turn
from dppmask_jax.methods.momentum import averaged
from dppmask_jax.models import encoders, vit
from dppmask_jax.models.base import STATISTICS, Encoder
from dppmask_jax.models.classifier import Classifier
from dppmask_jax.models.layers import layer_norm, normal

_NORM_EPSILON = 1e-6  # of the linear probe's batch norm
_NORM_DECAY = 0.9  # of its running statistics
_HEAD_STD = 0.01
# Fields of every supervised training ...
_COMMON_FIELDS = {
    **with_defaults(crops.FIELDS, {"data.crop_scale": (0.08, 1.0)}),
    **augment.FIELDS,
    "model.pool": Field(
        "mean",
        one_of("mean", "cls"),
        "what the head sees: mean patch token (paper), or class token",
    ),
    "loss.kind": Field("softmax", one_of("softmax", "bce", "asl"), "asl: arXiv 2009.14119"),
    "loss.smoothing": Field(0.0, fraction_below_1, "of one label an image"),
    "loss.gamma_neg": Field(4.0, number(0), "ASL: focusing of negative labels"),
    "loss.gamma_pos": Field(0.0, number(0), "ASL: focusing of positive labels"),
    "loss.clip": Field(0.05, fraction_below_1, "margin of ASL's probabilities"),
}
# ... of the linear probe (MAE, table 10) ...
LINEAR_FIELDS = _COMMON_FIELDS | with_defaults(
    optim.LARS_FIELDS,
    {"optim.base_lr": 0.1, "optim.warmup_epochs": 10.0, "optim.weight_decay": 0.0},
)
_ALPHA = Rule(
    lambda value: is_number(value) and (value == 0 or 1e-3 <= value <= 1e3),
    "0, or a number from 0.001 to 1000",
    float,
)
# ... and of fine-tuning (table 9), of ViT-B. MAE gives ViT-L and ViT-H 50 epochs, base_lr 1e-3,
# layer_decay 0.75 and drop_path 0.2 and 0.3.
FINETUNE_FIELDS = {
    **with_defaults(_COMMON_FIELDS, {"loss.smoothing": 0.1}),
    "data.randaugment": Field(9.0, number(0, 10), "magnitude of RandAugment; 0 is off"),
    "data.erase_prob": Field(0.25, number(0, 1), "probability that a rectangle is erased"),
    "data.mixup": Field(0.8, _ALPHA, "alpha of mixup's Beta distribution; 0 is off"),
    "data.cutmix": Field(1.0, _ALPHA, "alpha of CutMix's Beta distribution; 0 is off"),
    "model.drop_path": vit.FIELDS["model.drop_path"]._replace(default=0.1),
    "model.remat": vit.FIELDS["model.remat"],
    **with_defaults(
        optim.FINETUNE_FIELDS,
        {
            "optim.base_lr": 5e-4,
            "optim.final_lr": 1e-6,
            "optim.warmup_epochs": 5.0,
            "optim.b2": 0.999,
        },
    ),
}


def finetune(config, plan: Plan, *, num_outputs: int, several: bool, head=None) -> Method:
    """Trains encoder, positions and head together.

    Args:
      config: a checked config of an evaluation, see configs/eval.py, with the `image_size` and the
        encoder of the run that it evaluates, see `encoders.copy_shape`.
      plan: the length of the training, for the schedules.
      num_outputs: classes C, or labels C.
      several: whether an image has any number of labels; "label" is then (B, C) of 0 and 1.
      head: `head_of` the classifier that training goes on from; None starts a fresh one.

    `Method.extra` holds the running statistics of an encoder's batch norms, where it has some: they
    follow the whole batch, over all devices.
    """
    model, data = config.model, config.data
    encoder = encoder_from(config)
    classifier = Classifier(encoder.module, num_outputs, model.pool)

    def init(key):
        images = jnp.zeros((1, *config.image_size, encoder.pixels.channels), jnp.float32)
        variables = classifier.init(key, images)
        return variables["params"], _only(variables, {STATISTICS} & set(variables))

    def encoder_of(params, extra):
        if STATISTICS in extra:  # batch norms are within the blocks, and no norm ends them
            return {**params["encoder"], STATISTICS: extra[STATISTICS]["encoder"]}
        return {"norm": _untrained_norm(encoder.width), **params["encoder"]}

    def with_encoder(params, extra, given):
        kept = _only(encoder.trainable(given), params["encoder"])
        of_encoder = {name: {"encoder": given[name]} for name in extra}
        return {**params, **(head or {}), "encoder": kept}, of_encoder

    def loss(params, extra, batch, key, step):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        erase_keys, drop_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        images = encoder.pixels.normalize(batch["image"])
        if data.erase_prob:
            images = augment.random_erasing(images, erase_keys, prob=data.erase_prob)
        targets = _targets(batch["label"], num_outputs, several, config.loss.smoothing)
        if data.mixup or data.cutmix:
            # No example of the stream has this number: all devices mix alike.
            mix_key = jax.random.fold_in(key, 2**31)
            images, targets = mixing.mix(
                images, targets, mix_key, mixup=data.mixup, cutmix=data.cutmix
            )
        variables = {"params": params, **extra}
        logits, followed = classifier.apply(variables, images, drop_keys, mutable=list(extra))
        return _loss_of(config.loss)(logits, targets), ({}, dict(followed))

    return Method(
        example=_example(config, randaugment=data.randaugment),
        init=init,
        turns=(Turn(loss, finetune_optimizer(config, plan, encoder)),),
        after_step=lambda params, extra, aux, step: {**extra, **aux},
        logits=lambda params, extra, images: classifier.apply(
            {"params": params, **extra}, encoder.pixels.normalize(images)
        ),
        encoder=encoder,
        encoder_of=encoder_of,
        with_encoder=with_encoder,
    )


def finetune_optimizer(config, plan: Plan, encoder: Encoder) -> optim.Optimizer:
    """AdamW with layer-wise decay of the learning rate (MAE, arXiv 2111.06377, table 9)."""
    decay = config.optim.layer_decay
    return optim.from_settings(
        config.optim,
        plan,
        optim.warmup_cosine,
        decays=optim.decay_weights,
        scales=lambda params: optim.layer_scales(params, encoder.layer_of, encoder.depth, decay),
    )


def head_of(params) -> dict:
    """{"head"} of a classifier's parameters, with "fc_norm" where it pools patch tokens."""
    return {name: params[name] for name in ("fc_norm", "head") if name in params}


class _Scaling(NamedTuple):
    """How features are scaled in front of a linear layer, by statistics {name: (D,)}."""

    start: dict[str, Any]
    """The running ones of an untrained layer."""

    of_batch: Callable[[Any], dict[str, Any]]
    """(b, D) features of a device -> statistics of the whole batch, over all devices."""

    scaled: Callable[[Any, Mapping[str, Any]], Any]
    """(features, statistics, which may stand among others) -> features."""

    followed: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    """(running statistics, which may stand among others; those of a batch) -> running ones."""


_AS_THEY_ARE = _Scaling({}, lambda x: {}, lambda x, statistics: x, lambda running, batch: {})


def _batch_norm(width: int, batch_size: int) -> _Scaling:
    """Without trained scale and shift, as in MAE's probe; the running variance is the unbiased one,
    as in PyTorch."""
    unbiased = batch_size / max(batch_size - 1, 1)

    def of_batch(features):
        mean = parallel.mean(jnp.mean(features, axis=0))
        variance = parallel.mean(jnp.mean(jnp.square(features - mean), axis=0))
        return {"mean": mean, "variance": variance}

    def scaled(features, statistics):
        spread = jnp.sqrt(statistics["variance"] + _NORM_EPSILON)
        return (features - statistics["mean"]) / spread

    def followed(running, batch):
        new = batch | {"variance": unbiased * batch["variance"]}
        return {name: averaged(running[name], new[name], _NORM_DECAY) for name in new}

    start = {"mean": jnp.zeros(width), "variance": jnp.ones(width)}
    return _Scaling(start, of_batch, scaled, followed)


def linear(config, plan: Plan, *, num_outputs: int, several: bool, projection=None) -> Method:
    """Trains a linear layer on the frozen encoder's features: as they are with `solver` "sgd", else
    batch-normalised, as MAE's probe has them.

    Args are those of `finetune`, but for its `head`; `projection` is `Encoder.projection`.
    """
    model, encoder = config.model, encoder_from(config)
    if projection is not None:
        encoder = encoders.projected(encoder, projection)
    encode, width = encoder_features(encoder), encoder.width
    solver = config.get("solver", "lars")  # a task without that choice has LARS
    count = config.batch_size // config.optim.accum_steps
    scaling = _AS_THEY_ARE if solver == "sgd" else _batch_norm(width, count)

    def init(key):
        head = {
            "kernel": normal(_HEAD_STD)(key, (width, num_outputs), jnp.float32),
            "bias": jnp.zeros(num_outputs),
        }
        return {"head": head}, {"encoder": encoder.init(key), **scaling.start}

    def scores(params, features, statistics):
        scaled = scaling.scaled(features, statistics)
        return scaled @ params["head"]["kernel"] + params["head"]["bias"]

    def loss(params, extra, batch, key, step):
        features = jax.lax.stop_gradient(encode(extra["encoder"], batch["image"]))[model.pool]
        statistics = scaling.of_batch(features)
        targets = _targets(batch["label"], num_outputs, several, config.loss.smoothing)
        value = _loss_of(config.loss)(scores(params, features, statistics), targets)
        return value, ({}, statistics)

    optimizer = optim.linear_from_settings(solver, config.optim, plan, optim.warmup_cosine)
    return Method(
        example=_example(config, randaugment=0.0, single_draw=True),
        init=init,
        turns=(Turn(loss, optimizer),),
        after_step=lambda params, extra, aux, step: {**extra, **scaling.followed(extra, aux)},
        logits=lambda params, extra, images: scores(
            params, encode(extra["encoder"], images)[model.pool], extra
        ),
        with_encoder=lambda params, extra, given: (
            params,
            {**extra, "encoder": encoder.trainable(given)},
        ),
    )


def _example(config, **augmentation):
    """`Method.example`: one crop of an image; more in `classify.classification_view`."""
    return functools.partial(
        classify.classification_view,
        image_size=tuple(config.image_size),
        scale=tuple(config.data.crop_scale),
        flip=config.data.flip,
        **augmentation,
    )


def encoder_from(config) -> Encoder:
    """The encoder of a checked config as a training has it, with positions of its own.

    `model.options` are those of the encoder that it starts from, see `evaluating.subjects`.
    """
    encoder = encoders.build(config, **config.model.get("options", {}))
    return encoder.tuned() if encoder.tuned else encoder


def encoder_features(encoder: Encoder):
    """`encode(params, images) -> {"cls", "patches", "mean"}`, each (B, D) float32; images uint8.

    "cls" is the class token and "patches" the mean patch token, both after the encoder's final
    layer norm; "mean" is the mean of the patch tokens before it, normalised without trained scale
    and shift, as fine-tuning pools before its first step. A projection belongs to tokens behind
    that scale and shift: where there is one, "mean" is given both, then projected.
    """
    norm = layer_norm(None)
    untrained = _untrained_norm(encoder.width)

    def encode(params, images):
        tokens = encoders.as_dict(encoder.encode(params, encoder.pixels.normalize(images)))
        pooled = norm.apply({"params": untrained}, jnp.mean(tokens["patches_prenorm"], axis=1))
        if encoder.projection is not None:
            if "norm" in params:
                pooled = pooled * params["norm"]["scale"] + params["norm"]["bias"]
            pooled = jnp.matmul(pooled, encoder.projection, precision=jax.lax.Precision.HIGHEST)
        return {
            "cls": tokens["cls"],
            "patches": jnp.mean(tokens["patches"], axis=1),
            "mean": pooled,
        }

    return encode


def _untrained_norm(width: int):
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}


def _only(tree, wanted):
    """The parts of a tree that another has: pooling patch tokens needs no final layer norm."""
    return {name: tree[name] for name in wanted}


def _targets(labels, num_outputs: int, several: bool, smoothing: float):
    if several:
        return labels.astype(jnp.float32)
    return mixing.smooth_one_hot(labels, num_outputs, smoothing)


def _loss_of(settings):
    return {
        "softmax": classification.soft_cross_entropy,
        "bce": classification.binary_cross_entropy,
        "asl": functools.partial(
            classification.asymmetric_loss,
            gamma_neg=settings.gamma_neg,
            gamma_pos=settings.gamma_pos,
            clip=settings.clip,
        ),
    }[settings.kind]
