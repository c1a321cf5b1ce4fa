"""The contrastive branch of MoCo v3 (arXiv 2104.02057, section 4 and algorithm 1), which methods of
several losses share.

Of each image there are two views. Encoder, projector and predictor make a query of a view; the
momentum encoder and its projector make a key of the other. A query is to find its key among those
of all images of the micro-batch, over all devices: accumulated micro-batches do not see each other.

    parts = contrast.build(config, plan, encoder)
    heads, extra = parts.init(key, params_of_encoder)    # in `Method.init`
    loss, (metrics, aux) = parts.loss(params, extra, views, drop_keys)    # in a turn's loss
    extra = parts.after_step(params, extra, aux, step)

`params` has "encoder", "projector" and "predictor". `extra` has "momentum", {"encoder",
"projector"}, and where the encoder has batch norms their running statistics, {"encoder"}; what else
stands in either is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import optim, parallel
from dppmask_jax.errors import InputError
from dppmask_jax.fields import FLAG, Field, above, number, whole
from dppmask_jax.losses import contrastive
from dppmask_jax.methods import contrastive_health
from dppmask_jax.methods.base import Plan
from dppmask_jax.methods.momentum import followed
from dppmask_jax.models import projectors
from dppmask_jax.models.base import STATISTICS, Encoder, class_feature
from dppmask_jax.models.projectors import Projector

FIELDS = {
    "model.projector_layers": Field(
        3, whole(1, 8), "linear layers of the projector; paper: 3, of a ResNet 2", fixed=True
    ),
    "model.projector_hidden": Field(
        4096, whole(1, 2**16), "width of the projector's hidden layers", fixed=True
    ),
    "model.projector_out": Field(
        256, whole(1, 2**16), "width of the embeddings that are compared", fixed=True
    ),
    "model.predictor_hidden": Field(
        4096, whole(1, 2**16), "width of the predictor's hidden layer", fixed=True
    ),
    "model.predictor_norm": Field(
        True,
        FLAG,
        "whether a batch norm ends the predictor; the authors' does, that of a ResNet does not",
        fixed=True,
    ),
    "loss.temperature": Field(0.2, above(0), "temperature T of the contrastive softmax"),
    "loss.moco_factor": Field(
        True, FLAG, "whether the contrastive loss is multiplied by 2 T, as in the code of MoCo v3"
    ),
    # It is not free to change, as in other methods: it decides how many negatives there are.
    "optim.accum_steps": Field(
        1, whole(1), "micro-batches that a step is made of; each has its own negatives"
    ),
    "teacher.ema_decay": Field(
        0.99,
        number(0, 1),
        "decay of the momentum encoder at the start; a cosine to 1 at the end",
    ),
}


class Contrast(NamedTuple):
    """The branch of a config, see the top of the file. B images of this device."""

    init: Callable[..., tuple[Any, Any]]
    """(key, parameters of the encoder with its statistics) -> ({"projector", "predictor"},
    extra)."""

    loss: Callable[..., tuple[Any, tuple[dict[str, Any], Any]]]
    """(params, extra, (first views, second views), drop_keys) -> (loss, (metrics, aux)); only
    inside a function compiled by `parallel`. Views are (B, H, W, 3), normalised; drop_keys (2B,)
    are for drop-path."""

    after_step: Callable[..., Any]
    """(params, extra, aux, step) -> extra, with the momentum encoder of the next step: it follows
    the parameters before each step's forward pass, as the authors' does."""

    encoder_of: Callable[..., Any]
    """As `Method.encoder_of`: the encoder that is trained."""

    with_encoder: Callable[..., tuple[Any, Any]]
    """As `Method.with_encoder`; the momentum encoder is the same one."""

    with_positions: Callable[..., tuple[Any, Any]]
    """As `Method.with_positions`."""

    schedules: Mapping[str, Callable[[Any], Any]]
    describe: tuple[tuple[str, str], ...]


def check(config, otherwise: str = "") -> None:
    """Raises InputError where an image has no negatives; `otherwise` is what else helps, in
    words."""
    rows = config.batch_size // config.optim.accum_steps
    if rows < 2:
        raise InputError(
            f"config.batch_size={config.batch_size} with config.optim.accum_steps="
            f"{config.optim.accum_steps} leaves an image without negatives, which are those of its "
            f"micro-batch; take more images or fewer steps{otherwise}"
        )


class _Network(NamedTuple):
    encoder: Encoder
    projector: Projector
    predictor: Projector
    has_statistics: bool

    def features(self, params, statistics, views, drop_keys=None):
        """([(B, D), (B, D)] class features of two views, running statistics after both)."""
        num = len(views[0])
        if not self.has_statistics:
            tokens = self.encoder.encode(params, jnp.concatenate(views), drop_keys)
            return [tokens.cls[:num], tokens.cls[num:]], statistics
        found = []
        for i, images in enumerate(views):  # each view has the statistics of its own batch
            keys = None if drop_keys is None else drop_keys[i * num : (i + 1) * num]
            variables = {"params": params} | ({STATISTICS: statistics} if statistics else {})
            (latent, _), changed = self.encoder.module.apply(
                variables, images, keys, mutable=[STATISTICS]
            )
            found.append(class_feature(latent, self.encoder.module.prefix))
            statistics = changed[STATISTICS]
        return found, statistics

    def queries(self, params, extra, views, drop_keys):
        """([(B, E), (B, E)], aux)."""
        of_encoder = extra[STATISTICS]["encoder"] if self.has_statistics else None
        found, after = self.features(params["encoder"], of_encoder, views, drop_keys)
        projected = [projectors.project(self.projector, params["projector"], x) for x in found]
        predicted = [projectors.project(self.predictor, params["predictor"], x) for x in projected]
        return predicted, {STATISTICS: {"encoder": after}} if self.has_statistics else {}

    def keys(self, momentum, views):
        """[(B, E), (B, E)] without gradient. Its batch norms, too, go by the batch."""
        momentum = jax.lax.stop_gradient(momentum)
        found, _ = self.features(momentum["encoder"], None, views)
        return [projectors.project(self.projector, momentum["projector"], x) for x in found]

    def split(self, of_encoder):
        """(parameters, running statistics or None) of what `Encoder.init` gives."""
        if not self.has_statistics:
            return of_encoder, None
        of_encoder = dict(of_encoder)
        statistics = of_encoder.pop(STATISTICS)
        return of_encoder, statistics


def build(config, plan: Plan, encoder: Encoder) -> Contrast:
    """The branch of a checked config.

    Args:
      config: with the fields above.
      plan: the length of the run, for the momentum.
      encoder: whose class features are compared.
    """
    net = _network(config, encoder)
    decay_at = optim.cosine(config.teacher.ema_decay, 1.0, plan.total_steps)
    return Contrast(
        init=functools.partial(_init, net),
        loss=functools.partial(_loss, config.loss, net),
        after_step=functools.partial(_after_step, decay_at),
        encoder_of=functools.partial(_encoder_of, net),
        with_encoder=functools.partial(_with_encoder, net),
        with_positions=functools.partial(_with_positions, encoder),
        schedules={"decay of the momentum encoder": decay_at},
        describe=(_described(config),),
    )


def _network(config, encoder: Encoder) -> _Network:
    model = config.model
    out, dtype = model.projector_out, jnp.dtype(model.dtype)
    hidden = (model.projector_hidden,) * (model.projector_layers - 1)
    return _Network(
        encoder,
        Projector((*hidden, out), dtype=dtype),
        Projector((model.predictor_hidden, out), model.predictor_norm, dtype),
        STATISTICS in jax.eval_shape(encoder.init, jax.random.key(0)),
    )


def _described(config) -> tuple[str, str]:
    accum_steps = config.optim.accum_steps
    rows = config.batch_size // accum_steps
    alone = "" if accum_steps == 1 else f", of its micro-batch alone ({accum_steps} a step)"
    return "negatives", f"{rows - 1} of each query{alone}"


def _init(net: _Network, key, of_encoder):
    projector_key, predictor_key = jax.random.split(key)
    of_encoder, statistics = net.split(of_encoder)
    heads = {
        "projector": projectors.init(net.projector, projector_key, net.encoder.width),
        "predictor": projectors.init(net.predictor, predictor_key, net.projector.widths[-1]),
    }
    extra = {"momentum": {"encoder": of_encoder, "projector": heads["projector"]}}
    if net.has_statistics:
        extra[STATISTICS] = {"encoder": statistics}
    return heads, extra


def _loss(settings, net: _Network, params, extra, views, drop_keys):
    queries, aux = net.queries(params, extra, views, drop_keys)
    first, second = net.keys(extra["momentum"], views)
    crossed = list(zip(queries, (second, first), strict=True))
    losses = [
        contrastive.info_nce(q, k, settings.temperature, axis_name=parallel.AXIS)
        for q, k in crossed
    ]
    shares = [contrastive.accuracy(q, k, axis_name=parallel.AXIS) for q, k in crossed]
    total = sum(losses) * (2 * settings.temperature if settings.moco_factor else 1.0)
    metrics = {
        "contrast_accuracy": sum(shares) / 2,
        **contrastive_health.measured(*crossed[0]),
    }
    return total, (metrics, jax.lax.stop_gradient(aux))


def _after_step(decay_at, params, extra, aux, step):
    trained = {name: params[name] for name in ("encoder", "projector")}
    momentum = followed(extra["momentum"], trained, decay_at(step + 1))
    return {**extra, **aux, "momentum": momentum}


def _encoder_of(net: _Network, params, extra):
    if not net.has_statistics:
        return params["encoder"]
    return {**params["encoder"], STATISTICS: extra[STATISTICS]["encoder"]}


def _with_encoder(net: _Network, params, extra, of_encoder):
    of_encoder, statistics = net.split(of_encoder)
    extra = {**extra, "momentum": {**extra["momentum"], "encoder": of_encoder}}
    if net.has_statistics:
        extra[STATISTICS] = {"encoder": statistics}
    return {**params, "encoder": of_encoder}, extra


def _with_positions(encoder: Encoder, params, extra):
    momentum = extra["momentum"]
    momentum = {**momentum, "encoder": encoder.trainable(momentum["encoder"])}
    params = {**params, "encoder": encoder.trainable(params["encoder"])}
    return params, {**extra, "momentum": momentum}
