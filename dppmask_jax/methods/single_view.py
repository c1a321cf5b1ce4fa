"""What MAE and SimMIM share: they mask one view of an image and predict what is hidden."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dppmask_jax import masking, patches, pixel_format
from dppmask_jax.data.images import augment, crops
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, is_number, one_of
from dppmask_jax.masking import kinds
from dppmask_jax.methods import hardness, mask_teacher
from dppmask_jax.methods.base import Plan
from dppmask_jax.methods.describing import described_masks
from dppmask_jax.methods.image_features import WITHOUT_ENCODER, image_features, parts_in
from dppmask_jax.methods.mask_teacher import MaskTeacher
from dppmask_jax.models import vit
from dppmask_jax.models.base import Encoder
from dppmask_jax.targets import Target

FIELDS = {
    **crops.FIELDS,
    **augment.FIELDS,
    "mask.ratio": Field(
        0.75,
        Rule(
            lambda value: is_number(value) and 0 < value < 1,
            "a number above 0 and below 1 (share masked)",
            float,
        ),
        "share of the patches that are masked; paper: 0.75",
    ),
    "mask.features": Field(
        "embedding",
        one_of("embedding", *WITHOUT_ENCODER),
        "what the masks are drawn from: the patch embedding with positions (paper), pixels, or "
        "positions alone",
    ),
    **mask_teacher.FIELDS,
    **hardness.FIELDS,
}
# What the fields of a strategy of masks are in the papers that came with it, of 14 x 14 patches.
MASK_RECIPES = {
    "amt": {"ratio": 0.8469, "thrown": 0.4},  # 88 masked, 78 thrown, 30 visible
    # ours: the decay rises over the whole run, in the authors' code over the first 100 epochs
    "hard": {"ratio": 0.75, "hard": 0.0, "hard_end": 0.5, "ema_decay_end": 0.9999},
}


def check(config) -> None:
    """Raises InputError where the ratio masks no patch or all."""
    num_patches = vit.checked_patches("image_size", config.image_size, config.model.patch_size)
    try:
        num_keep = masking.num_visible(num_patches, config.mask.ratio)
    except ValueError as error:
        raise InputError(f"config.mask.ratio={config.mask.ratio}: {error}") from error
    if num_keep == num_patches:
        raise InputError(
            f"config.mask.ratio={config.mask.ratio} masks none of the {num_patches} patches; "
            "raise it"
        )
    kinds.check_thrown(config.mask, num_patches, num_patches - num_keep)


class Shares(NamedTuple):
    """How many patches of every image are visible, and how many are not thrown away."""

    visible: int
    kept: int


def shares_of(config) -> Shares:
    """The shares of a checked config."""
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    thrown = masking.masker_of(config.mask).num_thrown(rows * columns)
    return Shares(visible_count(config), rows * columns - thrown)


def visible_count(config) -> int:
    """Number of visible patches of every image."""
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    return masking.num_visible(rows * columns, config.mask.ratio)


def wanted_of(target: Target, images, mask: masking.Mask, kept):
    """What is to be predicted of the patches that were not thrown away.

    Args:
      images: flipped, as they are loaded.
      kept: (B, M) int32, the numbers of the patches, in any order.

    Returns:
      ((B, M, P) targets, (B, M) bool, True where a patch is masked), in the order of the image.
    """
    wanted, is_masked = target.of(images), mask.mask
    if kept.shape[1] < is_masked.shape[1]:
        place = jnp.sort(kept, axis=1)
        wanted = patches.gather(wanted, place)
        is_masked = jnp.take_along_axis(is_masked, place, axis=1)
    return wanted, is_masked


def ranked_loss(config, target: Target, found, wanted, is_masked):
    """(loss, {metric: ()}) of a method that predicts losses as well.

    Args:
      found: (pred (B, M, P), scores (B, M)), in the order of the image.
      wanted, is_masked: of `wanted_of`.
    """
    pred, scores = found
    of_target = target.loss(pred, wanted, is_masked)
    of_ranks = hardness.ranked(target, pred, wanted, scores, is_masked)
    metrics = {"loss_target": of_target, "loss_rank": of_ranks}
    return of_target + config.mask.rank_weight * of_ranks, metrics


def method_parts(
    config, plan: Plan, features: Callable | None, teacher: MaskTeacher, encoder: Encoder
) -> dict[str, Any]:
    """The members of `Method` that follow from one crop an image and its masks.

    Args:
      teacher: what `extra` is for.
      encoder: what is trained. Its own attention is shown where the teacher shows none, but not
        in a training step.
      features: (params, extra, images as they are loaded) -> (B, N, D), see `kernel_features`;
        None: the encoder embeds no patches.
    """
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    masker, num_keep = masking.masker_of(config.mask), visible_count(config)
    num_hidden = (rows * columns - num_keep,) * 2
    looks = _of_params(encoder) | {
        name: lambda params, extra, images, look=look: look(extra, images)
        for name, look in teacher.looks.items()
    }

    def masks(params, extra, images, keys, masker=masker, count=num_keep):
        seen = masking.Seen((rows, columns))
        if features:
            seen = seen._replace(features=lambda: features(params, extra, images))
        given = params, extra, encoder.pixels.normalize(images)
        shown = {name: functools.partial(look, *given) for name, look in looks.items()}
        return masker.draw(keys, count, seen._replace(**shown), count)

    def shown_by(look):
        """(params, extra, images as they are loaded) -> what a masker sees."""
        return lambda params, extra, images: look(params, extra, encoder.pixels.normalize(images))

    return {
        **{name: shown_by(look) for name, look in looks.items()},
        "after_step": teacher.after_step,
        "example": functools.partial(
            crops.single_view,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
        ),
        "extras": tuple(sorted(masker.needs & masking.WITH_IMAGES)),
        "features": features,
        "masker": masker,
        "masks": masks,
        "num_hidden": num_hidden,
        "describe": (
            described_masks(masker, num_hidden, rows * columns),
            ("target", config.loss.target),
        ),
        "schedules": {**teacher.schedules, **masking.over_steps(masker, plan.total_steps)},
    }


def _of_params(encoder: Encoder) -> dict[str, Callable]:
    """{field of `masking.Seen`: (params, extra, normalised images) -> its value} of the encoder as
    it is."""
    return {
        name: lambda params, extra, images, look=look: look.of(params, images)
        for name, look in mask_teacher.of_encoder(encoder).items()
    }


class Views(NamedTuple):
    """A batch as a step sees it: `raw` (B, H, W, C) flipped, `images` normalised as well, keys
    (B,), and `maps`: those of the extras that are (B, H, W), flipped with the images. `parts` is ()
    -> (B, N), see `masking.Seen`; None where the images come without."""

    raw: Any
    images: Any
    mask_keys: Any
    drop_keys: Any
    maps: dict[str, Any]
    parts: Callable | None


def views_of(config, batch, key) -> Views:
    """The views of a batch; `key` is the step's."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    split = jax.vmap(lambda example_key: jax.random.split(example_key, 3))(keys)
    flip_keys, mask_keys, drop_keys = split[:, 0], split[:, 1], split[:, 2]
    shape = batch["image"].shape[:3]
    pixels = {name: value for name, value in batch.items() if value.shape[:3] == shape}
    if config.data.flip:
        pixels = {name: augment.flip(value, flip_keys) for name, value in pixels.items()}
    raw = pixels.pop("image")
    parts = parts_in(config, pixels.get("parts"))
    images = pixel_format.of(config).normalize(raw)
    return Views(raw, images, mask_keys, drop_keys, pixels, parts)


def drawn(masker: masking.Masker, num_keep: int, views: Views, seen, batch, key):
    """(Mask of (B, ...), {metric: ()}): the masks of a step.

    Args:
      seen: without `step_key` and what comes with the images, which are filled in.
      key: the step's.
    """
    seen = seen._replace(
        step_key=jax.random.fold_in(key, 2**31),  # no example of the stream has this number
        proposed=(lambda: batch["proposed"]) if "proposed" in batch else None,
        parts=views.parts,
    )
    with jax.named_scope("selection"):
        mask, found = masker.draw(views.mask_keys, num_keep, seen, num_keep)
    return mask, {name: jnp.mean(value.astype(jnp.float32)) for name, value in found.items()}


def kernel_features(config, images, tokens):
    """(B, N, D): what `mask.features` says that masks are drawn from.

    Args:
      images: normalised.
      tokens: () -> (B, N, D), their embedding.
    """
    found = {
        "embedding": tokens,
        **image_features(config, images),
    }
    return found[config.mask.features]()


def painted(
    kind: pixel_format.Pixels,
    target: Target,
    pred,
    images,
    order,
    num_keep: int,
    patch_size,
    borrow: bool,
    visible_too: bool = False,
):
    """(B, H, W, 3) from 0 to 1: the images with what was predicted at their masked patches; thrown
    ones are black.

    Args:
      kind: of the pixels of images.
      pred: (B, M, P) predictions of the patches in `order`, in the order of the image; or of all N.
      images: as they are loaded.
      order: (B, M) int32, the `num_keep` visible patches, then masked ones: all that are not thrown
        away.
      borrow: whether hidden pixels may enter, see `runs.run.Run.reconstruct`.
      visible_too: whether visible patches, too, are shown as they were predicted.
    """
    known = None if borrow else order[:, :num_keep]
    original = patches.patchify(kind.denormalize(kind.normalize(images)), patch_size)
    pixels = target.pixels(_everywhere(pred, order, original.shape[1]), images, known)
    rank = ranks(order, original.shape[1])[..., None]
    as_it_was = 0 if visible_too else num_keep
    shown = jnp.where(rank < as_it_was, original, jnp.where(rank < order.shape[1], pixels, 0.0))
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    return jnp.clip(patches.unpatchify(shown, grid, patch_size), 0.0, 1.0)


def ranks(order, num_patches: int):
    """(B, N) int32: the place of each patch in an order (B, M), M for those that it lacks."""
    absent = jnp.full(num_patches, order.shape[1], jnp.int32)
    places = jnp.arange(order.shape[1], dtype=jnp.int32)
    return jax.vmap(lambda order: absent.at[order].set(places))(order)


def _everywhere(pred, order, num_patches: int):
    """(B, N, P): predictions (B, M, P) of the patches of an order at their places, 0 elsewhere."""
    if pred.shape[1] == num_patches:
        return pred
    place = jnp.sort(order, axis=1)
    nothing = jnp.zeros((num_patches, pred.shape[2]), pred.dtype)
    return jax.vmap(lambda place, values: nothing.at[place].set(values))(place, pred)
