"""iBOT: masked self-distillation with an online tokenizer (arXiv 2111.07832).

The masks are blocks, random, from the teacher's attention (AttMask, arXiv 2203.12719), or drawn by
DPPMask (arXiv 2303.12736) from the teacher's own patch tokens. The student is `params`; teacher,
centres and the prototypes' record of use are `extra`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dppmask_jax import losses, masking, optim, patches
from dppmask_jax.data import augment, crops, views
from dppmask_jax.methods import selection
from dppmask_jax.methods.base import Method
from dppmask_jax.models.heads import ProjectionHead
from dppmask_jax.models.ibot import Backbone
from dppmask_jax.models.vit import SIZES

GLOBAL_VIEWS = 2
SHOWN_SHARE = 0.1  # of the patches, that AttMask's hints come from
_RECENT_STEPS = 100  # in which a prototype that was some image's best counts as used
_MANY_STEPS = 100  # that a collapse lasts before it is named


def build(config, *, steps_per_epoch: int, total_steps: int) -> Method:
    """The iBOT of a checked config.

    Args:
      config: see configs/ibot.py; already through `config.check`.
      steps_per_epoch: for the schedules that are stated in epochs.
      total_steps: length of the run.
    """
    backbone, head = model_from(config)
    patch_size = config.model.patch_size
    grid = backbone.grid
    num_patches = grid[0] * grid[1]
    fewest, most = masked_range(config)
    shared_attention = config.mask.strategy == "attention"

    def init(key):
        encoder_key, head_key = jax.random.split(key)
        images = jnp.zeros((1, *config.image_size, 3), jnp.float32)
        encoder = backbone.init(encoder_key, images)["params"]
        tokens = jnp.zeros((1, backbone.size.width), jnp.float32)
        network = {"encoder": encoder, "head": head.init(head_key, tokens)["params"]}
        prototypes = config.model.prototypes
        extra = {
            "teacher": network,
            "class_center": jnp.zeros(prototypes, jnp.float32),
            "patch_center": jnp.zeros(prototypes, jnp.float32),
            # Long ago: none has been used yet.
            "last_use": jnp.full(prototypes, -_RECENT_STEPS, jnp.int32),
        }
        return {**network, "mask_embed": jnp.zeros((1, backbone.size.width))}, extra

    def encoded(encoder, images, keys=None, **masks):
        return backbone.apply({"params": encoder}, images, keys, **masks)

    def on_head(head_params, tokens, method):
        return head.apply({"params": head_params}, tokens, method=method)

    def attended(encoder, images):
        """(latent, prenorm, (B, heads, N) attention of the class token in the last block)."""
        (latent, prenorm), sown = backbone.apply(
            {"params": encoder}, images, mutable=["intermediates"]
        )
        last = sown["intermediates"]["blocks"][f"block_{backbone.size.depth - 1}"]
        (weights,) = last["attn"]["weights"]
        return latent, prenorm, weights[:, :, 0, 1:]

    def kernel_features(teacher, images, latent):
        features = latent[:, 1:]
        if config.mask.features == "pixels":
            features = patches.patchify(images, patch_size)
        elif config.mask.features == "head":
            projected = on_head(teacher["head"], features, "project")
            features = on_head(teacher["head"], projected, "patch_logits")
        return selection.prepare(features, config.mask)

    def temperature(settings, step):
        """Of the teacher's softmax: one value an epoch, both ends of the ramp included."""
        epoch = step // steps_per_epoch
        progress = jnp.minimum(epoch / max(settings.warmup_epochs - 1, 1), 1.0)
        return settings.start + (settings.end - settings.start) * progress

    def loss(params, extra, batch, key, step):
        teacher = jax.lax.stop_gradient(extra["teacher"])
        example_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])

        # View after view, each with B examples; keys (views * B, 3) for augmenting, masking and
        # dropping paths.
        num_local = config.data.local_views
        keys = jnp.concatenate(
            [
                jax.vmap(lambda k, v=v: jax.random.split(jax.random.fold_in(k, v), 3))(example_keys)
                for v in range(GLOBAL_VIEWS + num_local)
            ]
        )
        global_keys, local_keys = jnp.split(keys, [GLOBAL_VIEWS * len(example_keys)])
        global_images = _augmented_globals(config.data, batch["global_views"], global_keys[:, 0])

        latent, _, weights = attended(teacher["encoder"], global_images)
        masks, num_greedy = draw_masks(
            global_keys[:, 1],
            functools.partial(kernel_features, teacher, global_images, latent),
            weights,
            key,
            step,
        )
        # All masked patches and, where a view masks fewer than another may, some visible ones.
        chosen = masks.order[:, num_patches - most :]
        is_masked = jnp.take_along_axis(masks.mask, chosen, axis=1)

        teacher_class = on_head(
            teacher["head"], on_head(teacher["head"], latent[:, 0], "project"), "class_logits"
        )
        teacher_patches = on_head(teacher["head"], latent[:, 1:], "project")
        teacher_patch = on_head(
            teacher["head"], patches.gather(teacher_patches, chosen), "patch_logits"
        )

        student_latent, _ = encoded(
            params["encoder"],
            global_images,
            global_keys[:, 2],
            mask=masks.mask,
            mask_embed=params["mask_embed"],
        )
        class_tokens = student_latent[:, 0]
        if num_local:
            local_images = _augmented_locals(config.data, batch["local_views"], local_keys[:, 0])
            local_latent, _ = encoded(params["encoder"], local_images, local_keys[:, 2])
            class_tokens = jnp.concatenate([class_tokens, local_latent[:, 0]])
        student_class = on_head(
            params["head"], on_head(params["head"], class_tokens, "project"), "class_logits"
        )
        student_tokens = patches.gather(student_latent[:, 1:], chosen)
        student_patch = on_head(
            params["head"], on_head(params["head"], student_tokens, "project"), "patch_logits"
        )

        per_view = lambda x: x.reshape((-1, len(example_keys), x.shape[-1]))  # noqa: E731
        class_temp = temperature(config.loss.class_temp, step)
        patch_temp = temperature(config.loss.patch_temp, step)
        class_target = losses.teacher_probabilities(
            per_view(teacher_class), extra["class_center"], class_temp
        )
        patch_target = losses.teacher_probabilities(
            teacher_patch, extra["patch_center"], patch_temp
        )
        student_temp = config.loss.student_temp
        class_loss = losses.class_token_loss(class_target, per_view(student_class), student_temp)
        patch_loss = losses.patch_token_loss(patch_target, student_patch, is_masked, student_temp)
        total = config.loss.class_weight * class_loss + config.loss.patch_weight * patch_loss

        entropy = jnp.mean(losses.entropy(class_target))
        metrics = {
            "loss_class": class_loss,
            "loss_patch": patch_loss,
            "teacher_entropy": entropy,
            "kl": class_loss - entropy,
            "masked_share": jnp.mean(masks.mask),
            **({} if num_greedy is None else {"num_greedy": jnp.mean(num_greedy * 1.0)}),
        }
        aux = {
            "class_logits": jnp.mean(teacher_class, axis=0),
            # The last layer is linear: the mean of its outputs is its output for the mean.
            "patch_logits": on_head(
                teacher["head"], jnp.mean(teacher_patches, axis=(0, 1)), "patch_logits"
            ),
            "class_target": jnp.mean(class_target, axis=(0, 1)),
            "best": jnp.mean(
                jax.nn.one_hot(jnp.argmax(class_target, -1), config.model.prototypes), axis=(0, 1)
            ),
        }
        return total, (metrics, jax.lax.stop_gradient(aux))

    def draw_masks(keys, features, weights, step_key, step):
        """(Mask of every global view, greedy picks (2B,) or None); `features` is called if used."""
        split = jax.vmap(jax.random.split)(keys)
        chance_keys, mask_keys = split[:, 0], split[:, 1]
        list_of_ratios = tuple(config.mask.ratio), tuple(config.mask.ratio_var)
        draw = functools.partial(
            masking.draw_ratio, ratios=list_of_ratios[0], variations=list_of_ratios[1]
        )
        if shared_attention:  # one draw for the whole step
            # No example has this number.
            masked_key, shown_key = jax.random.split(jax.random.fold_in(step_key, 2**31))
            ratios = jnp.broadcast_to(draw(masked_key), len(keys))
        else:
            ratio_keys = jax.vmap(lambda k: jax.random.fold_in(k, 1))(chance_keys)
            ratios = jax.vmap(draw)(ratio_keys)
        chance = jax.vmap(jax.random.uniform)(chance_keys)
        is_masked = (chance <= config.mask.prob) & (
            step >= config.mask.start_epoch * steps_per_epoch
        )
        counts = jnp.where(is_masked, masking.num_masked(num_patches, ratios), 0)
        visible = num_patches - counts

        if config.mask.strategy == "random":
            draw_one = lambda k, count: masking.random(k, num_patches, count)  # noqa: E731
            return jax.vmap(draw_one)(mask_keys, visible), None
        if config.mask.strategy == "block":
            draw_one = lambda k, count: masking.block(k, grid, count)  # noqa: E731
            return jax.vmap(draw_one)(mask_keys, visible), None
        if config.mask.strategy == "attention":
            num_top = int(num_patches * SHOWN_SHARE)
            attend = functools.partial(
                masking.attention,
                variant=config.mask.attention,
                num_shown=masking.num_masked(num_top, draw(shown_key)),
                num_top=num_top,
            )
            return jax.vmap(attend)(mask_keys, jnp.mean(weights, axis=1), counts), None
        choose = functools.partial(
            masking.dpp,
            tau=selection.tau_at(config.mask, step, total_steps),
            num_keep=num_patches - fewest,
            **settings,
        )
        return jax.vmap(choose)(mask_keys, features(), visible)

    def after_step(params, extra, aux, step):
        decay = optim.cosine(config.teacher.ema_decay, 1.0, total_steps)(step)
        student = {"encoder": params["encoder"], "head": params["head"]}

        def averaged(old, new, rate):
            return rate * old + (1.0 - rate) * new

        return {
            "teacher": jax.tree.map(lambda t, s: averaged(t, s, decay), extra["teacher"], student),
            "class_center": averaged(
                extra["class_center"], aux["class_logits"], config.loss.center_decay
            ),
            "patch_center": averaged(
                extra["patch_center"], aux["patch_logits"], config.loss.center_decay
            ),
            "last_use": jnp.where(aux["best"] > 0, step, extra["last_use"]),
        }

    def report(extra, aux, step):
        return {
            "prototype_entropy": losses.entropy(aux["class_target"]),
            "prototypes_used": jnp.mean(step - extra["last_use"] < _RECENT_STEPS),
            "class_center_norm": jnp.linalg.norm(extra["class_center"]),
            "patch_center_norm": jnp.linalg.norm(extra["patch_center"]),
        }

    def encode(params, extra, images):
        latent, prenorm = encoded(extra["teacher"]["encoder"], augment.normalize(images))
        return {
            "cls": latent[:, 0],
            "patches": latent[:, 1:],
            "patches_prenorm": prenorm[:, 1:].astype(jnp.float32),
        }

    def features(params, extra, images):
        images = augment.normalize(images)
        latent, _ = encoded(extra["teacher"]["encoder"], images)
        return kernel_features(extra["teacher"], images, latent)

    def with_encoder(params, extra, encoder):
        teacher = {**extra["teacher"], "encoder": encoder}
        return {**params, "encoder": encoder}, {**extra, "teacher": teacher}

    settings = selection.settings(
        config.mask,
        {
            "tokens": backbone.size.width,
            "head": config.model.prototypes,
            "pixels": 3 * patch_size**2,
        }[config.mask.features],
    )
    return Method(
        example=functools.partial(
            crops.multi_crop,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
            local_size=tuple(config.data.local_size),
            local_scale=tuple(config.data.local_scale),
            num_local=config.data.local_views,
            flip=config.data.flip,
        ),
        init=init,
        loss=loss,
        after_step=after_step,
        encode=encode,
        features=features,
        selection=settings,
        num_masked=(fewest, most),
        encoder_of=lambda params, extra: extra["teacher"]["encoder"],
        with_encoder=with_encoder,
        report=report,
        watch=functools.partial(_watch_collapse, math.log(config.model.prototypes)),
        attention=lambda params, extra, images: attended(
            extra["teacher"]["encoder"], augment.normalize(images)
        )[2],
    )


def model_from(config) -> tuple[Backbone, ProjectionHead]:
    """The network of a checked config; student and teacher are two sets of its parameters."""
    model = config.model
    dtype = jnp.dtype(model.dtype)
    backbone = Backbone(
        SIZES[model.size],
        tuple(config.image_size),
        model.patch_size,
        model.drop_path,
        model.remat,
        dtype,
    )
    head = ProjectionHead(
        hidden=model.head_hidden,
        bottleneck=model.head_bottleneck,
        prototypes=model.prototypes,
        trainable_scale=not model.norm_last_layer,
        shared=model.shared_head,
        dtype=dtype,
    )
    return backbone, head


def masked_range(config) -> tuple[int, int]:
    """The fewest and the most patches that a view with any masked patch has masked."""
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    low, high = masking.ratio_range(tuple(config.mask.ratio), tuple(config.mask.ratio_var))
    fewest = np.asarray(masking.num_masked(rows * columns, low[high > 0].min()))
    most = np.asarray(masking.num_masked(rows * columns, high.max()))
    return int(fewest), int(most)


def _augmented_globals(data, images, keys):
    """(B, 2, H, W, 3) uint8 -> (2B, H, W, 3): the two global views are not treated alike."""
    num = images.shape[0]
    first = views.augment_view(
        images[:, 0], keys[:num], blur_prob=data.blur_prob[0], solarize_prob=0.0, **_colors(data)
    )
    second = views.augment_view(
        images[:, 1],
        keys[num:],
        blur_prob=data.blur_prob[1],
        solarize_prob=data.solarize_prob,
        **_colors(data),
    )
    return jnp.concatenate([first, second])


def _augmented_locals(data, images, keys):
    """(B, n, h, w, 3) uint8 -> (n B, h, w, 3)."""
    images = jnp.moveaxis(images, 1, 0).reshape((-1, *images.shape[2:]))
    return views.augment_view(
        images, keys, blur_prob=data.blur_prob[2], solarize_prob=0.0, **_colors(data)
    )


def _colors(data) -> dict:
    return {
        "jitter": tuple(data.jitter),
        "jitter_prob": data.jitter_prob,
        "grey_prob": data.grey_prob,
    }


def _watch_collapse(largest_entropy: float):
    """Names a collapse once it has lasted for `_MANY_STEPS`."""
    since = {}

    def watch(step, values) -> str:
        lasting = {
            "uniform": values["teacher_entropy"] > 0.99 * largest_entropy,
            "point": values["prototype_entropy"] < 0.01 * largest_entropy,
        }
        for name, holds in lasting.items():
            if not holds:
                since.pop(name, None)
            elif step - since.setdefault(name, step) >= _MANY_STEPS:
                return _COLLAPSES[name]
        return ""

    return watch


_COLLAPSES = {
    "uniform": (
        "collapse to uniform: the teacher gives all prototypes the same weight, whatever the "
        "image; lower config.loss.class_temp.start and .end or config.optim.base_lr, or lengthen "
        "config.optim.warmup_epochs"
    ),
    "point": (
        "collapse to a point: the teacher gives all images to the same prototype; raise "
        "config.loss.class_temp.start, lower config.optim.base_lr or config.loss.center_decay, "
        "or set config.model.norm_last_layer=True"
    ),
}
