"""What ADIOS's encoder is trained to do with an image that a soft mask occludes: to recognise it
(SimCLR), or to paint what the mask covers (ours, where the paper leaves it open)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppmask_jax import parallel, patches
from dppmask_jax.losses import contrastive
from dppmask_jax.methods import mae
from dppmask_jax.models import encoders, vit_module
from dppmask_jax.models.base import STATISTICS, Encoder, class_feature
from dppmask_jax.models.layers import dense
from dppmask_jax.targets.pixels import pixel_target

_LEAST_COVERED = 1e-12  # pixels; its square, which a gradient divides by, is not 0 in float32


class Objective(NamedTuple):
    """A record of functions. `params` and `statistics`, running ones of batch norms or {}, are
    those of the encoder and of what stands behind it."""

    encoder: Encoder

    trains: frozenset[str]
    """The names of `params`."""

    init: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    """key -> (params, statistics)."""

    errors: Callable[..., tuple[Callable, dict[str, Any]]]
    """(params, statistics, first, second, keys) -> (error, what it found in the first view).
    `first` is the view that no mask covers and `second` the one that masks do, both (B, H, W, 3)
    normalised; keys (2, B) are for drop-path. `error`: see `occlusion.summed_error`; what it finds
    in occluded views, too, are "statistics", as they follow, and "projected" (B, P) where the
    objective projects."""

    projects: bool = False
    """Whether the error compares projections of the two views."""

    with_positions: Callable[..., tuple[Any, Any]] = lambda params, extra: (params, extra)
    """As `Method.with_positions`."""


def simclr(config) -> Objective:
    """SimCLR's loss between one view and the other, occluded; negatives are all other images of the
    micro-batch, over all devices."""
    # The authors' ViT starts from a spread of 0.02, which leaves a narrow one almost linear.
    encoder = encoders.build(config, start=vit_module.MAE_START)
    projector = _projector(config)

    def init(key):
        encoder_key, head_key = jax.random.split(key)
        of_encoder, statistics = separated(encoder.init(encoder_key))
        feature = jnp.zeros((1, encoder.width), jnp.float32)
        params = {"encoder": of_encoder, "projector": projector.init(head_key, feature)["params"]}
        return params, statistics

    def projected(params, statistics, images, keys):
        feature, statistics = trained_feature(encoder, params["encoder"], statistics, images, keys)
        found = projector.apply({"params": params["projector"]}, feature)
        return found.astype(jnp.float32), statistics

    def errors(params, statistics, first, second, keys):
        del second
        whole, of_first = projected(params, statistics, first, keys[0])

        def error(images, mask):
            del mask
            occluded, followed = projected(params, statistics, images, keys[1])
            value = contrastive.simclr(
                whole, occluded, config.loss.temperature, axis_name=parallel.AXIS
            )
            return value, {"statistics": followed, "projected": occluded}

        return error, {"statistics": of_first, "projected": whole}

    return Objective(encoder, frozenset({"encoder", "projector"}), init, errors, projects=True)


def reconstruct(config) -> Objective:
    """MAE's encoder and decoder over all patches of the occluded view. The error of a pixel counts
    as much as the mask covers it: what is visible is no task, and a larger mask is not by itself a
    harder one."""
    encoder, patch_size = mae.encoder_from(config), config.model.patch_size
    channels = encoder.pixels.channels
    model = mae.with_decoder(config, encoder, channels * math.prod(patches.sides(patch_size)))
    num_patches = encoder.grid[0] * encoder.grid[1]

    def init(key):
        images = jnp.zeros((1, *config.image_size, channels), jnp.float32)
        order = jnp.arange(num_patches)[None]
        return model.init(key, images, order, num_patches)["params"], {}

    def errors(params, statistics, first, second, keys):
        del first
        target = pixel_target(patches.patchify(second, patch_size), config.loss.norm_pix)
        order = jnp.broadcast_to(jnp.arange(num_patches), (len(second), num_patches))

        def error(images, mask):
            apply = functools.partial(model.apply, {"params": params})
            tokens = apply(images, method="embed")
            pred = apply(tokens, order, num_patches, keys[1], method="predict")
            value = covered_error(pred, target, patches.patchify(mask[..., None], patch_size))
            return value, {"statistics": statistics}

        return error, {"statistics": statistics}

    return Objective(
        encoder,
        frozenset({"encoder", "decoder"}),
        init,
        errors,
        with_positions=functools.partial(mae.with_positions, encoder, config.model.decoder_width),
    )


def _projector(config) -> nn.Module:
    """Two layers, without norm, as in the authors' code."""
    model = config.model
    dtype = jnp.dtype(model.dtype)
    hidden, last = (dense(w, dtype, None) for w in (model.projector_hidden, model.projector_out))
    return nn.Sequential([hidden, nn.relu, last])


def covered_error(pred, target, mask):
    """() float32: the mean over images of the square error of their pixels, weighted by `mask`.

    Args:
      pred, target: (B, N, P * C), the channels of a pixel side by side.
      mask: (B, N, P), how much of each pixel is covered, from 0 to 1. An image of which nothing is
        covered has an error of 0.
    """
    square = jnp.square(pred - target)
    of_pixel = jnp.mean(square.reshape(*mask.shape, -1), axis=-1)
    covered = jnp.maximum(jnp.sum(mask, axis=(1, 2)), _LEAST_COVERED)
    return jnp.mean(jnp.sum(mask * of_pixel, axis=(1, 2)) / covered)


def separated(of_encoder):
    """(parameters that are trained, {STATISTICS: running statistics} or {}) of an encoder."""
    of_encoder = dict(of_encoder)
    names = {STATISTICS} & set(of_encoder)
    return of_encoder, {name: of_encoder.pop(name) for name in names}


def trained_feature(encoder: Encoder, of_encoder, statistics, images, keys):
    """((B, D) class token or mean patch, followed statistics) of a training step: batch norms are
    over all devices' images."""
    (latent, _), followed = encoder.module.apply(
        {"params": of_encoder, **statistics}, images, keys, mutable=list(statistics)
    )
    return class_feature(latent, encoder.module.prefix), dict(followed)


OBJECTIVES = {"simclr": simclr, "reconstruct": reconstruct}
