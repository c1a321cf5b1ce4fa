"""iBOT: masked self-distillation with an online tokenizer (arXiv 2111.07832).

The masks are blocks, random, from the teacher's attention (AttMask, arXiv 2203.12719), or drawn by
DPPMask (arXiv 2303.12736) from the teacher's own patch tokens. The student is `params`; teacher,
centres and the prototypes' record of use are `extra`.

Without the loss of patches it is DINO (arXiv 2104.14294): patches then have no logits, and masks
are drawn only where a ratio asks for them.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import masking, optim
from dppmask_jax.data.images import crops
from dppmask_jax.losses import distillation
from dppmask_jax.methods import augmented_views, collapse, ibot_fields, ibot_masks
from dppmask_jax.methods.augmented_views import GLOBAL_VIEWS
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.methods.describing import described_masks
from dppmask_jax.methods.ibot_network import (
    Network,
    kernel_features,
    model_from,
    seen_by_teacher,
    student_logits,
    teacher_logits,
)
from dppmask_jax.methods.image_features import parts_in
from dppmask_jax.methods.momentum import averaged, followed
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.sizes import size_of

_RECENT_STEPS = 100  # a prototype that was an image's best in one of them counts as used


class _Parts(NamedTuple):
    """What the functions of the method share."""

    config: Any
    plan: Plan
    net: Network
    masker: masking.Masker
    num_hidden: tuple[int, int]
    """The fewest and the most patches that a masked view hides."""

    @property
    def num_patches(self) -> int:
        rows, columns = self.net.encoder.grid
        return rows * columns

    @property
    def hides_any(self) -> bool:
        return self.num_hidden[1] > 0


def build(config, plan: Plan) -> Method:
    """The iBOT of a checked config.

    Args:
      config: see configs/ibot.py; already through `config.check`.
      plan: the length of the run and of its epochs, for the schedules.
    """
    net, masker = model_from(config), masking.masker_of(config.mask)
    parts = _Parts(config, plan, net, masker, ibot_masks.masked_range(config))
    loss = functools.partial(_loss, parts, ibot_masks.drawer(config, masker, plan))
    decay_at = optim.cosine(config.teacher.ema_decay, 1.0, plan.total_steps)
    data = config.data
    method = Method(
        example=functools.partial(
            crops.multi_crop,
            image_size=tuple(config.image_size),
            scale=tuple(data.crop_scale),
            local_size=tuple(data.local_size),
            local_scale=tuple(data.local_scale),
            num_local=data.local_views,
            flip=data.flip,
        ),
        init=functools.partial(_init, parts),
        turns=(
            Turn(
                loss,
                optim.from_settings(config.optim, plan, optim.linspace_cosine),
                logits_bytes=GLOBAL_VIEWS * _attention_bytes(config, net.encoder),
            ),
        ),
        after_step=functools.partial(_after_step, config.loss.center_decay, decay_at),
        encoder=net.encoder,
        features=functools.partial(_features, parts),
        extras=tuple(sorted(masker.needs & masking.WITH_IMAGES)),
        masker=masker,
        masks=functools.partial(_masks, parts),
        num_hidden=parts.num_hidden,
        encoder_of=lambda params, extra: extra["teacher"]["encoder"],
        with_encoder=_with_encoder,
        logits=functools.partial(_logits, net),
        view_clusters=functools.partial(_view_clusters, parts),
        describe=(described_masks(masker, parts.num_hidden, parts.num_patches),),
        loss_of_views=True,
        schedules={
            "decay of the teacher": decay_at,
            **masking.over_steps(masker, plan.total_steps),
        },
        report=_report,
        watch=functools.partial(collapse.watch, math.log(config.model.prototypes)),
        attention=functools.partial(_attention, net) if net.encoder.attended else None,
    )
    if parts.hides_any:
        return method
    return method._replace(
        masker=None, masks=None, num_hidden=None, describe=(),
        schedules={"decay of the teacher": decay_at},
    )  # fmt: skip


def _attention_bytes(config, encoder: Encoder) -> int:
    """What the attention logits of a view take in a block of the encoder."""
    rows, columns = encoder.grid
    tokens = 1 + rows * columns
    return size_of(config.model).heads * tokens**2 * jnp.dtype(config.model.dtype).itemsize


def _init(parts: _Parts, key):
    network, prototypes = parts.net.init(key), parts.config.model.prototypes
    extra = {
        "teacher": network,
        "class_center": jnp.zeros(prototypes, jnp.float32),
        # Stays where it is without the loss of patches: files of iBOT have both.
        "patch_center": jnp.zeros(prototypes, jnp.float32),
        # Long ago: none has been used yet.
        "last_use": jnp.full(prototypes, -_RECENT_STEPS, jnp.int32),
    }
    return {**network, "mask_embed": jnp.zeros((1, parts.net.encoder.width))}, extra


def _loss(parts: _Parts, draw_masks, params, extra, batch, key, step):
    config, net = parts.config, parts.net
    teacher = jax.lax.stop_gradient(extra["teacher"])
    num = len(batch["index"])
    keys = augmented_views.keys_of_views(config.data, key, batch["index"])
    view_keys, mask_keys, drop_keys = keys[:, 0], keys[: GLOBAL_VIEWS * num, 1], keys[:, 2]
    with jax.named_scope("augment"):
        images = augmented_views.augmented(config.data, batch, view_keys)

    tokens, attention = seen_by_teacher(net, teacher, images[0])
    with jax.named_scope("selection"):
        masks, of_masks = draw_masks(
            mask_keys,
            key,
            step,
            features=lambda: kernel_features(net, config, teacher, images[0], tokens.patches),
            attention=attention,
            proposed=(lambda: jnp.concatenate([batch["proposed"]] * GLOBAL_VIEWS))
            if "proposed" in batch
            else None,
            parts=parts_in(config, augmented_views.global_maps(batch, "parts")),
        )
    # Every masked or thrown patch of a view and, where they are fewer than the most, visible ones.
    chosen = masks.order[:, parts.num_patches - parts.num_hidden[1] :]
    chosen = chosen if config.loss.patch_weight else None
    hidden = masks.hidden if parts.hides_any else None
    of_teacher = teacher_logits(net, teacher, tokens, chosen)
    of_student = student_logits(net, params, images, hidden, chosen, drop_keys)
    # (views, B, C)
    of_teacher["class"], of_student["class"] = (
        logits["class"].reshape(-1, num, logits["class"].shape[-1])
        for logits in (of_teacher, of_student)
    )
    targets = _targets(parts, extra, of_teacher, step)
    losses = _losses(config.loss, targets, of_student, masks.mask, chosen)
    aux = _aux(parts, of_teacher, targets["class"], masks, of_masks)
    metrics = _metrics(losses, targets["class"], of_student["class"], masks)
    total = sum(config.loss[f"{kind}_weight"] * loss for kind, loss in losses.items())
    return total, (metrics, jax.lax.stop_gradient(aux))


def _targets(parts: _Parts, extra, of_teacher, step):
    """The teacher's answers, of class tokens (2, B, C) and of the chosen patches (2B, M, C)."""
    settings, epoch = parts.config.loss, step // parts.plan.steps_per_epoch
    targets = {
        "class": distillation.teacher_probabilities(
            of_teacher["class"], extra["class_center"], temperature(settings.class_temp, epoch)
        )
    }
    if "patch" in of_teacher:
        # The temperature of patches warms up from the first masks on, as in iBOT's code.
        epoch_of_masks = epoch - parts.config.mask.start_epoch
        targets["patch"] = distillation.teacher_probabilities(
            of_teacher["patch"],
            extra["patch_center"],
            temperature(settings.patch_temp, epoch_of_masks),
        )
    return targets


def _losses(settings, targets, of_student, mask, chosen):
    """{"class", "patch"}; the second where patches have logits."""
    losses = {
        "class": distillation.class_token_loss(
            targets["class"], of_student["class"], settings.student_temp
        )
    }
    if "patch" in targets:
        losses["patch"] = distillation.patch_token_loss(
            targets["patch"],
            of_student["patch"],
            jnp.take_along_axis(mask, chosen, axis=1),
            settings.student_temp,
        )
    return losses


def _metrics(losses, class_target, of_student, masks):
    entropy = jnp.mean(distillation.entropy(class_target))
    return {
        **{f"loss_{kind}": loss for kind, loss in losses.items()},
        "teacher_entropy": entropy,
        "kl": losses["class"] - entropy,
        "masked_share": jnp.mean(masks.mask),
        # "acc" of iBOT's code: the teacher on one view and the student on the other, masked one.
        # The agreement that task=cluster measures is of views that are not masked.
        "masked_agreement": jnp.mean(
            jnp.argmax(class_target[0], axis=-1) == jnp.argmax(of_student[1], axis=-1)
        ),
    }


def _aux(parts: _Parts, of_teacher, class_target, masks, of_masks):
    """Means over the examples of a step, for the centres, the record of prototypes and reports."""
    best = jax.nn.one_hot(jnp.argmax(class_target, axis=-1), parts.config.model.prototypes)
    class_logits = of_teacher["class"]
    aux = {
        "class_logits": jnp.mean(class_logits.reshape(-1, class_logits.shape[-1]), axis=0),
        "class_target": jnp.mean(class_target, axis=(0, 1)),
        "best": jnp.mean(best, axis=(0, 1)),
    }
    if "mean_patch" in of_teacher:
        aux["patch_logits"] = of_teacher["mean_patch"]
    if of_masks:
        is_masked = masks.count < parts.num_patches
        aux["masked_views"] = jnp.mean(is_masked.astype(jnp.float32))
        aux["of_masks"] = {
            name: jnp.mean(jnp.where(is_masked, value, 0).astype(jnp.float32))
            for name, value in of_masks.items()
        }
    return aux


def _after_step(center_decay: float, decay_at, params, extra, aux, step):
    student = {"encoder": params["encoder"], "head": params["head"]}
    centers = {
        f"{kind}_center": averaged(extra[f"{kind}_center"], aux[f"{kind}_logits"], center_decay)
        for kind in ("class", "patch")
        if f"{kind}_logits" in aux
    }
    return {
        **extra,
        "teacher": followed(extra["teacher"], student, decay_at(step)),
        **centers,
        "last_use": jnp.where(aux["best"] > 0, step, extra["last_use"]),
    }


def _report(extra, aux, step):
    values = {
        "prototype_entropy": distillation.entropy(aux["class_target"]),
        "prototypes_used": jnp.mean(step - extra["last_use"] < _RECENT_STEPS),
        "class_center_norm": jnp.linalg.norm(extra["class_center"]),
    }
    if "patch_logits" in aux:
        values["patch_center_norm"] = jnp.linalg.norm(extra["patch_center"])
    for name, value in aux.get("of_masks", {}).items():  # of the views that are masked
        values[name] = value / jnp.maximum(aux["masked_views"], 1e-6)
    return values


def _logits(net: Network, params, extra, images):
    images = net.encoder.pixels.normalize(images)
    tokens = net.encoder.encode(extra["teacher"]["encoder"], images)
    return net.class_logits(extra["teacher"], tokens.cls)


def _view_clusters(parts: _Parts, params, extra, batch, key):
    data = parts.config.data
    keys = augmented_views.keys_of_views(data, key, batch["index"])[:, 0]
    first, second = augmented_views.augmented_globals(data, batch, keys)
    return {
        "teacher": parts.net.best_prototype(extra["teacher"], first),
        "student": parts.net.best_prototype(params, second),
    }


def _features(parts: _Parts, params, extra, images):
    teacher, images = extra["teacher"], parts.net.encoder.pixels.normalize(images)
    tokens = parts.net.encoder.encode(teacher["encoder"], images)
    return kernel_features(parts.net, parts.config, teacher, images, tokens.patches)


def _masks(parts: _Parts, params, extra, images, keys, masker=None, count: int | None = None):
    count = parts.num_patches - parts.num_hidden[1] if count is None else count
    normalized = parts.net.encoder.pixels.normalize(images)
    seen = masking.Seen(
        parts.net.encoder.grid,
        features=lambda: _features(parts, params, extra, images),
        attention=seen_by_teacher(parts.net, extra["teacher"], normalized)[1],
    )
    return (masker or parts.masker).draw(keys, count, seen, count)


def _attention(net: Network, params, extra, images):
    images = net.encoder.pixels.normalize(images)
    return net.encoder.attended(extra["teacher"]["encoder"], images)[1]


def _with_encoder(params, extra, encoder):
    teacher = {**extra["teacher"], "encoder": encoder}
    return {**params, "encoder": encoder}, {**extra, "teacher": teacher}


def temperature(settings, epoch):
    """Teacher temperature: linear over the epochs 0 to `warmup_epochs` - 1, as np.linspace."""
    if not settings.warmup_epochs:
        return settings.end
    progress = jnp.clip(epoch / max(settings.warmup_epochs - 1, 1), 0.0, 1.0)
    return settings.start + (settings.end - settings.start) * progress


KIND = MethodKind(
    build,
    "iBOT",
    ibot_fields.FIELDS,
    ibot_fields.check,
    gives=frozenset({"features", "attention", *masking.WITH_IMAGES}),
    shown_by={"attention": "attended"},
    recipes=("ibot", "dino"),
    encoder=("hides",),
    loss_fields=tuple(name for name in ibot_fields.FIELDS if name.startswith("data.")),
    mask_recipes=ibot_masks.RECIPES,
)
