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

from dppmask_jax import masking, optim, patches
from dppmask_jax.data.images import augment, crops, views
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.fields import (
    FLAG,
    Field,
    above,
    above_to,
    check_lengths,
    fraction_below_1,
    number,
    one_of,
    pair,
    several,
    whole,
    with_defaults,
)
from dppmask_jax.losses import distillation
from dppmask_jax.masking import greedy_dpp, num_masked, ratio_range
from dppmask_jax.methods import ibot_masks
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.methods.describing import described_masks
from dppmask_jax.models import encoders, vit
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.heads import ProjectionHead

GLOBAL_VIEWS = 2
_RECENT_STEPS = 100  # in which a prototype that was some image's best counts as used
_MANY_STEPS = 100  # that a collapse lasts before it is named
_LEAST_INFORMATION = 0.05  # nats that the teacher's answer says about the image


def _temperature(which: str) -> dict[str, Field]:
    return {
        f"loss.{which}_temp.start": Field(
            0.04, above(0), f"temperature of the teacher's {which} targets at the start"
        ),
        f"loss.{which}_temp.end": Field(0.07, above(0), "that at the end of its warm-up"),
        f"loss.{which}_temp.warmup_epochs": Field(
            30, whole(0), "epochs in which it goes from one to the other"
        ),
    }


FIELDS = {
    **with_defaults(vit.FIELDS, {"model.drop_path": 0.1}),
    "model.init_std": Field(
        0.02, above(0), "spread that every linear layer, token and position starts with"
    ),
    "model.head_hidden": Field(
        2048, whole(1, 2**16), "width of the head's hidden layers", fixed=True
    ),
    "model.head_bottleneck": Field(
        256, whole(1, 2**16), "width of the head before its last layer", fixed=True
    ),
    "model.prototypes": Field(8192, whole(2, 2**20), "outputs of the head", fixed=True),
    "model.shared_head": Field(True, FLAG, "one last layer for class and patch tokens", fixed=True),
    "model.norm_last_layer": Field(
        False, FLAG, "whether the length of each prototype is fixed", fixed=True
    ),
    **crops.FIELDS,
    "data.crop_scale": Field((0.25, 1.0), crops.SCALE, "area of the crops of the global views"),
    **augment.FIELDS,
    "data.local_views": Field(10, whole(0, 64), "small views of each image"),
    "data.local_size": Field(
        (96, 96),
        pair(whole(1, 16384), "(height, width) in pixels, such as (96, 96)"),
        "size of the small views",
    ),
    "data.local_scale": Field((0.05, 0.25), crops.SCALE, "area of their crop"),
    **views.FIELDS,
    "mask.ratio": Field(
        (0.0, 0.7),
        several(fraction_below_1, "a list such as (0.0, 0.7), each from 0 to below 1"),
        "shares of the patches that are masked; one is drawn a view, and (0.7,) masks every view",
    ),
    "mask.ratio_var": Field(
        (0.0, 0.05),
        several(fraction_below_1, "a list such as (0.0, 0.05), one a ratio"),
        "each share is uniform within plus or minus this",
    ),
    "mask.prob": Field(1.0, above_to(0, 1), "probability that a view is masked at all"),
    "mask.start_epoch": Field(0.0, number(0), "epochs before the first masks"),
    "mask.features": Field(
        "tokens",
        one_of("tokens", "head", "pixels"),
        "what the masks are drawn from: the teacher's patch tokens, its head's output, or pixels",
    ),
    "loss.class_weight": Field(1.0, number(0), "weight of the class token's loss"),
    "loss.patch_weight": Field(1.0, number(0), "weight of the masked patches' loss"),
    "loss.student_temp": Field(0.1, above(0), "temperature of the student"),
    "loss.center_decay": Field(0.9, number(0, 1), "decay of the teacher's centres"),
    **_temperature("class"),
    **_temperature("patch"),
    "teacher.ema_decay": Field(
        0.996, number(0, 1), "decay of the teacher at the start; a cosine to 1 at the end"
    ),
    **with_defaults(
        optim.FIELDS,
        {
            "optim.base_lr": 5e-4,
            "optim.final_lr": 1e-6,
            "optim.warmup_epochs": 10.0,
            "optim.weight_decay": 0.04,
            "optim.weight_decay_end": 0.4,
            "optim.b2": 0.999,
            "optim.clip_norm": 3.0,
            "optim.clip_per_tensor": True,
        },
    ),
    "optim.freeze_last_layer_epochs": Field(
        1.0, number(0), "epochs before the last layer of the head moves", in_epochs=True
    ),
}


def check(config) -> None:
    """Raises InputError where fields of a config do not fit each other."""
    num_patches = vit.checked_patches("image_size", config.image_size, config.model.patch_size)
    if config.data.local_views:
        vit.checked_patches("data.local_size", config.data.local_size, config.model.patch_size)
    ratios, variations = tuple(config.mask.ratio), tuple(config.mask.ratio_var)
    where = f"config.mask.ratio={ratios}, config.mask.ratio_var={variations}"
    if len(ratios) != len(variations):
        raise InputError(f"{where}: give as many variations as ratios")
    if any(v > r or r + v >= 1 for r, v in zip(ratios, variations, strict=True)):
        raise InputError(f"{where}: each ratio ± its variation must stay within 0 to below 1")
    most = int(num_masked(num_patches, ratio_range(ratios, variations)[1].max()))
    if most in (0, num_patches):
        share = "none" if most == 0 else "all"
        raise InputError(f"{where} masks {share} of the {num_patches} patches; change the ratio")
    if not config.loss.class_weight and not config.loss.patch_weight:
        raise InputError("config.loss.class_weight and config.loss.patch_weight are both 0")
    start, frozen = config.mask.start_epoch, config.optim.freeze_last_layer_epochs
    check_lengths(config.epochs, {"mask.start_epoch": start}, below=True)
    check_lengths(
        config.epochs,
        {"optim.freeze_last_layer_epochs": frozen},
        below=True,
        scaled_by="configs/ibot.py:epochs=N",
    )


def build(config, plan: Plan) -> Method:
    """The iBOT of a checked config.

    Args:
      config: see configs/ibot.py; already through `config.check`.
      plan: the length of the run and of its epochs, for the schedules.
    """
    steps_per_epoch, total_steps = plan.steps_per_epoch, plan.total_steps
    encoder, head = model_from(config)
    patch_size = config.model.patch_size
    num_patches = encoder.grid[0] * encoder.grid[1]
    data = config.data
    num_views = GLOBAL_VIEWS + data.local_views
    fewest, most = ibot_masks.masked_range(config)
    masker = masking.masker_of(config.mask)
    draw_masks = ibot_masks.drawer(config, masker, plan)

    def init(key):
        encoder_key, head_key = jax.random.split(key)
        tokens = jnp.zeros((1, encoder.width), jnp.float32)
        network = {
            "encoder": encoder.init(encoder_key),
            "head": head.init(head_key, tokens)["params"],
        }
        prototypes = config.model.prototypes
        extra = {
            "teacher": network,
            "class_center": jnp.zeros(prototypes, jnp.float32),
            "patch_center": jnp.zeros(prototypes, jnp.float32),
            # Long ago: none has been used yet.
            "last_use": jnp.full(prototypes, -_RECENT_STEPS, jnp.int32),
        }
        return {**network, "mask_embed": jnp.zeros((1, encoder.width))}, extra

    def on_head(network, tokens, method):
        return head.apply({"params": network["head"]}, tokens, method=method)

    def kernel_features(teacher, images, tokens):
        return {
            "tokens": lambda: tokens,
            "head": lambda: on_head(teacher, on_head(teacher, tokens, "project"), "patch_logits"),
            "pixels": lambda: patches.patchify(images, patch_size),
        }[config.mask.features]()

    def loss(params, extra, batch, key, step):
        teacher = jax.lax.stop_gradient(extra["teacher"])
        num = len(batch["index"])
        keys = keys_of_views(key, batch["index"])
        view_keys, mask_keys, drop_keys = keys[:, 0], keys[: GLOBAL_VIEWS * num, 1], keys[:, 2]
        with jax.named_scope("augment"):
            global_images, local_images = augmented(batch, view_keys)

        tokens, weights = encoder.attended(teacher["encoder"], global_images)
        with jax.named_scope("selection"):
            masks, of_masks = draw_masks(
                mask_keys,
                key,
                step,
                features=lambda: kernel_features(teacher, global_images, tokens.patches),
                attention=lambda: jnp.mean(weights, axis=1),
                proposed=(lambda: jnp.concatenate([batch["proposed"]] * GLOBAL_VIEWS))
                if "proposed" in batch
                else None,
            )
        # Every masked patch of a view and, where it has fewer than the most, some visible ones.
        chosen = masks.order[:, num_patches - most :]
        of_teacher = teacher_logits(teacher, tokens, chosen)
        of_student = student_logits(
            params, global_images, local_images, masks.mask, chosen, drop_keys
        )

        epoch = step // steps_per_epoch

        def of_views(logits):
            return logits.reshape(-1, num, logits.shape[-1])

        class_target = distillation.teacher_probabilities(
            of_views(of_teacher["class"]),
            extra["class_center"],
            temperature(config.loss.class_temp, epoch),
        )
        patch_target = distillation.teacher_probabilities(
            of_teacher["patch"],
            extra["patch_center"],
            # Its warm-up begins with the masks, as in iBOT's code.
            temperature(config.loss.patch_temp, epoch - config.mask.start_epoch),
        )
        class_loss = distillation.class_token_loss(
            class_target, of_views(of_student["class"]), config.loss.student_temp
        )
        patch_loss = distillation.patch_token_loss(
            patch_target,
            of_student["patch"],
            jnp.take_along_axis(masks.mask, chosen, axis=1),
            config.loss.student_temp,
        )
        entropy = jnp.mean(distillation.entropy(class_target))
        metrics = {
            "loss_class": class_loss,
            "loss_patch": patch_loss,
            "teacher_entropy": entropy,
            "kl": class_loss - entropy,
            "masked_share": jnp.mean(masks.mask),
            # "acc" of iBOT's code: the teacher on one view and the student on the other, masked
            # one. The agreement that task=cluster measures is of views that are not masked.
            "masked_agreement": jnp.mean(
                jnp.argmax(class_target[0], axis=-1)
                == jnp.argmax(of_views(of_student["class"])[1], axis=-1)
            ),
        }
        best = jax.nn.one_hot(jnp.argmax(class_target, axis=-1), config.model.prototypes)
        aux = {
            "class_logits": jnp.mean(of_teacher["class"], axis=0),
            "patch_logits": of_teacher["mean_patch"],
            "class_target": jnp.mean(class_target, axis=(0, 1)),
            "best": jnp.mean(best, axis=(0, 1)),
        }
        if of_masks:
            is_masked = masks.count < num_patches
            aux["masked_views"] = jnp.mean(is_masked.astype(jnp.float32))
            aux["of_masks"] = {
                name: jnp.mean(jnp.where(is_masked, value, 0).astype(jnp.float32))
                for name, value in of_masks.items()
            }
        total = config.loss.class_weight * class_loss + config.loss.patch_weight * patch_loss
        return total, (metrics, jax.lax.stop_gradient(aux))

    def keys_of_views(key, index):
        """(V B, 3) keys: of the views, of their masks, of drop-path.

        Views stand one after the other, each with all examples, the two global ones first.
        """
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        keys = jnp.concatenate(
            [jax.vmap(jax.random.fold_in, (0, None))(keys, view) for view in range(num_views)]
        )
        return jax.vmap(lambda k: jax.random.split(k, 3))(keys)

    def augmented(batch, keys):
        """Images (2B, H, W, 3) and (n B, h, w, 3), or None without local views."""
        globals_ = jnp.concatenate(augmented_globals(batch, keys))
        if not data.local_views:
            return globals_, None
        local = jnp.moveaxis(batch["local_views"], 1, 0)
        local = local.reshape(-1, *local.shape[2:])
        return globals_, augment(local, keys[len(globals_) :], data.blur_prob[2], 0.0)

    def augmented_globals(batch, keys):
        """The two global views, each (B, H, W, 3)."""
        num = len(batch["index"])
        first, second = batch["global_views"][:, 0], batch["global_views"][:, 1]
        return (
            augment(first, keys[:num], data.blur_prob[0], 0.0),
            augment(second, keys[num : 2 * num], data.blur_prob[1], data.solarize_prob),
        )

    def augment(images, keys, blur_prob, solarize_prob):
        return views.augment_view(
            images,
            keys,
            jitter=tuple(data.jitter),
            jitter_prob=data.jitter_prob,
            grey_prob=data.grey_prob,
            blur_prob=blur_prob,
            blur_sigma=tuple(data.blur_sigma),
            solarize_prob=solarize_prob,
        )

    def teacher_logits(teacher, tokens, chosen):
        """Of the class tokens (2B, C), of the chosen patches (2B, M, C), and the mean of those of
        all patches (C,)."""
        latent = jnp.concatenate([tokens.cls[:, None], tokens.patches], axis=1)
        projected = on_head(teacher, latent, "project")
        return {
            "class": on_head(teacher, projected[:, 0], "class_logits"),
            "patch": on_head(teacher, patches.gather(projected[:, 1:], chosen), "patch_logits"),
            # The last layer is linear: the mean of its outputs is its output for the mean.
            "mean_patch": on_head(teacher, jnp.mean(projected[:, 1:], axis=(0, 1)), "patch_logits"),
        }

    def student_logits(params, global_images, local_images, mask, chosen, drop_keys):
        """Of the class tokens of all views (V B, C), and of the chosen patches (2B, M, C)."""
        num_global = len(global_images)
        tokens = encoder.encode(
            params["encoder"], global_images, drop_keys[:num_global], mask, params["mask_embed"]
        )
        class_tokens = tokens.cls
        if local_images is not None:
            local = encoder.encode(params["encoder"], local_images, drop_keys[num_global:])
            class_tokens = jnp.concatenate([class_tokens, local.cls])
        patch_tokens = patches.gather(tokens.patches, chosen)
        return {
            "class": on_head(params, on_head(params, class_tokens, "project"), "class_logits"),
            "patch": on_head(params, on_head(params, patch_tokens, "project"), "patch_logits"),
        }

    decay_at = optim.cosine(config.teacher.ema_decay, 1.0, total_steps)

    def after_step(params, extra, aux, step):
        decay = decay_at(step)
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
        values = {
            "prototype_entropy": distillation.entropy(aux["class_target"]),
            "prototypes_used": jnp.mean(step - extra["last_use"] < _RECENT_STEPS),
            "class_center_norm": jnp.linalg.norm(extra["class_center"]),
            "patch_center_norm": jnp.linalg.norm(extra["patch_center"]),
        }
        for name, value in aux.get("of_masks", {}).items():  # of the views that are masked
            values[name] = value / jnp.maximum(aux["masked_views"], 1e-6)
        return values

    def logits(params, extra, images):
        teacher = extra["teacher"]
        tokens = encoder.encode(teacher["encoder"], normalize(images))
        return on_head(teacher, on_head(teacher, tokens.cls, "project"), "class_logits")

    def view_clusters(params, extra, batch, key):
        keys = keys_of_views(key, batch["index"])[:, 0]
        first, second = augmented_globals(batch, keys)
        return {
            "teacher": best_prototype(extra["teacher"], first),
            "student": best_prototype(params, second),
        }

    def best_prototype(network, images):
        projected = on_head(network, encoder.encode(network["encoder"], images).cls, "project")
        return jnp.argmax(on_head(network, projected, "class_logits"), axis=-1).astype(jnp.int32)

    def features(params, extra, images):
        teacher, images = extra["teacher"], normalize(images)
        tokens = encoder.encode(teacher["encoder"], images)
        return kernel_features(teacher, images, tokens.patches)

    def masks(params, extra, images, keys, masker=masker, count=num_patches - most):
        seen = masking.Seen(
            encoder.grid,
            features=lambda: features(params, extra, images),
            attention=lambda: jnp.mean(attention(params, extra, images), axis=1),
        )
        return masker.draw(keys, count, seen, count)

    def attention(params, extra, images):
        return encoder.attended(extra["teacher"]["encoder"], normalize(images))[1]

    def with_encoder(params, extra, given):
        teacher = {**extra["teacher"], "encoder": given}
        return {**params, "encoder": given}, {**extra, "teacher": teacher}

    return Method(
        example=functools.partial(
            crops.multi_crop,
            image_size=tuple(config.image_size),
            scale=tuple(data.crop_scale),
            local_size=tuple(data.local_size),
            local_scale=tuple(data.local_scale),
            num_local=data.local_views,
            flip=data.flip,
        ),
        init=init,
        turns=(Turn(loss, optim.from_settings(config.optim, plan, optim.linspace_cosine)),),
        after_step=after_step,
        encoder=encoder,
        features=features,
        extras=tuple(masker.needs & {"proposed"}),
        masker=masker,
        masks=masks,
        selection=greedy_dpp.settings(config.mask),
        num_masked=(fewest, most),
        encoder_of=lambda params, extra: extra["teacher"]["encoder"],
        with_encoder=with_encoder,
        logits=logits,
        view_clusters=view_clusters,
        describe=(described_masks(masker, (fewest, most), num_patches),),
        loss_of_views=True,
        schedules={
            "decay of the teacher": decay_at,
            **masking.over_steps(masker, total_steps),
        },
        report=report,
        watch=functools.partial(_watch_collapse, math.log(config.model.prototypes)),
        attention=attention,
    )


def model_from(config) -> tuple[Encoder, ProjectionHead]:
    """The network of a checked config; student and teacher are two sets of its parameters."""
    model = config.model
    encoder = encoders.build(config, start=vit.normal_start(model.init_std))
    head = ProjectionHead(
        hidden=model.head_hidden,
        bottleneck=model.head_bottleneck,
        prototypes=model.prototypes,
        trainable_scale=not model.norm_last_layer,
        shared=model.shared_head,
        dtype=jnp.dtype(model.dtype),
        init_std=model.init_std,
    )
    return encoder, head


def temperature(settings, epoch):
    """Of the teacher's softmax: linear over the epochs 0 to `warmup_epochs` - 1, as np.linspace."""
    if not settings.warmup_epochs:
        return settings.end
    progress = jnp.clip(epoch / max(settings.warmup_epochs - 1, 1), 0.0, 1.0)
    return settings.start + (settings.end - settings.start) * progress


def _watch_collapse(largest_entropy: float):
    """Names a collapse once it has lasted for `_MANY_STEPS`.

    What the teacher's answer says about the image is the entropy of the mean answer less the mean
    entropy of the answers. It vanishes when all images get the same answer, whether that is every
    prototype alike or one of them.
    """
    since = None

    def watch(step, values) -> str:
        nonlocal since
        if values["prototype_entropy"] - values["teacher_entropy"] > _LEAST_INFORMATION:
            since = None
            return ""
        since = step if since is None else since
        if step - since < _MANY_STEPS:
            return ""
        uniform = values["teacher_entropy"] > 0.5 * largest_entropy
        return _COLLAPSES["uniform" if uniform else "point"]

    return watch


_COLLAPSES = {
    "uniform": (
        "collapse to uniform: the teacher gives all prototypes nearly the same weight, whatever "
        "the image; lower config.loss.class_temp.start and .end or config.optim.base_lr, or "
        "weaken the augmentation"
    ),
    "point": (
        "collapse to a point: the teacher gives all images to the same prototype; raise "
        "config.loss.class_temp.start, lower config.optim.base_lr or config.loss.center_decay, "
        "or set config.model.norm_last_layer=True"
    ),
}


KIND = MethodKind(
    build,
    "iBOT",
    FIELDS,
    check,
    gives=frozenset({"features", "attention", "proposed"}),
    recipes=("configs/ibot.py",),
    shares=ibot_masks.RECIPE_SHARE,
)
