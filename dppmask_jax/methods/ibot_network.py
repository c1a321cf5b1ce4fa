"""iBOT's network; student and teacher are two sets of its parameters, {"encoder", "head"}."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.methods.image_features import image_features
from dppmask_jax.models import encoders, vit_module
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.heads import ProjectionHead


class Network(NamedTuple):
    """An encoder, and a head that turns its tokens into the logits of prototypes."""

    encoder: Encoder
    head: ProjectionHead

    def init(self, key):
        """{"encoder", "head"}."""
        encoder_key, head_key = jax.random.split(key)
        tokens = jnp.zeros((1, self.encoder.width), jnp.float32)
        return {
            "encoder": self.encoder.init(encoder_key),
            "head": self.head.init(head_key, tokens)["params"],
        }

    def on_head(self, network, tokens, method: str):
        """The output of the head's `method` for tokens: project, class_logits or patch_logits."""
        return self.head.apply({"params": network["head"]}, tokens, method=method)

    def class_logits(self, network, tokens):
        """(..., D) class tokens -> (..., C)."""
        return self.on_head(network, self.on_head(network, tokens, "project"), "class_logits")

    def patch_logits(self, network, tokens):
        """(..., D) patch tokens -> (..., C)."""
        return self.on_head(network, self.on_head(network, tokens, "project"), "patch_logits")

    def best_prototype(self, network, images):
        """(B,) int32 of normalised images."""
        tokens = self.encoder.encode(network["encoder"], images)
        logits = self.class_logits(network, tokens.cls)
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def model_from(config) -> Network:
    """The network of a checked config."""
    model = config.model
    head = ProjectionHead(
        hidden=model.head_hidden,
        bottleneck=model.head_bottleneck,
        prototypes=model.prototypes,
        trainable_scale=not model.norm_last_layer,
        shared=model.shared_head,
        dtype=jnp.dtype(model.dtype),
        init_std=model.init_std,
    )
    return Network(encoders.build(config, start=vit_module.normal_start(model.init_std)), head)


def seen_by_teacher(net: Network, teacher, images):
    """(Tokens, () -> (B, H, N): the class token's attention; None where the encoder has none) of
    normalised images."""
    if net.encoder.attended is None:
        return net.encoder.encode(teacher["encoder"], images), None
    tokens, weights = net.encoder.attended(teacher["encoder"], images)
    return tokens, lambda: weights


def kernel_features(net: Network, config, teacher, images, tokens):
    """(B, N, D): what `config.mask.features` shows a masker of the teacher's patch tokens."""
    return {
        "tokens": lambda: tokens,
        "head": lambda: net.patch_logits(teacher, tokens),
        **image_features(config, images),
    }[config.mask.features]()


def teacher_logits(net: Network, teacher, tokens, chosen):
    """Logits of the class tokens (2B, C), of the chosen patches (2B, M, C), and the mean of all
    patches (C,). Of the class tokens alone where `chosen` is None."""
    if chosen is None:
        return {"class": net.class_logits(teacher, tokens.cls)}
    latent = jnp.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
    projected = net.on_head(teacher, latent, "project")
    of_patches = patches.gather(projected[:, 1:], chosen)
    return {
        "class": net.on_head(teacher, projected[:, 0], "class_logits"),
        "patch": net.on_head(teacher, of_patches, "patch_logits"),
        # The last layer is linear: the mean of its outputs is its output for the mean.
        "mean_patch": net.on_head(teacher, jnp.mean(projected[:, 1:], axis=(0, 1)), "patch_logits"),
    }


def student_logits(net: Network, params, images, hidden, chosen, drop_keys):
    """Logits of the class tokens of all views (V B, C), and of the chosen patches (2B, M, C).

    Args:
      images: the global views, and the local ones or None.
      hidden: (2B, N) bool, of the global views; None hides nothing.
      chosen: (2B, M) int32; None: patches have no logits.
      drop_keys: (V B,).
    """
    global_images, local_images = images
    num_global = len(global_images)
    tokens = net.encoder.encode(
        params["encoder"], global_images, drop_keys[:num_global], hidden, params["mask_embed"]
    )
    class_tokens = tokens.cls
    if local_images is not None:
        local = net.encoder.encode(params["encoder"], local_images, drop_keys[num_global:])
        class_tokens = jnp.concatenate([class_tokens, local.cls])
    if chosen is None:
        return {"class": net.class_logits(params, class_tokens)}
    of_chosen = patches.gather(tokens.patches, chosen)
    # In one go: a product less, and two gradients less, for each layer.
    rows = jnp.concatenate([class_tokens, of_chosen.reshape(-1, of_chosen.shape[-1])])
    projected = net.on_head(params, rows, "project")
    of_class, of_patches = jnp.split(projected, [len(class_tokens)])
    of_patches = of_patches.reshape(*chosen.shape, -1)
    return {
        "class": net.on_head(params, of_class, "class_logits"),
        "patch": net.on_head(params, of_patches, "patch_logits"),
    }
