"""SimMIM (arXiv 2111.09886): masked patches enter the encoder as one learned token, and a linear
layer predicts them. With HOG for a target and block masks it is MaskFeat (arXiv 2112.09133).

Thrown patches are left out, as if the image had fewer. An encoder with biases by relative position
takes whole images alone: it sees a thrown patch as a masked one, which is not predicted.

The fields' defaults are SimMIM's recipe for ViT-B.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppmask_jax import masking, optim, patches
from dppmask_jax.fields import FLAG, Field, above_to, number, one_of, optional, with_defaults
from dppmask_jax.methods import hardness, mask_teacher, single_view
from dppmask_jax.methods.base import Method, MethodKind, Plan, Turn
from dppmask_jax.methods.image_features import WITHOUT_ENCODER
from dppmask_jax.models import encoders, vit, vit_module
from dppmask_jax.models.base import Encoder
from dppmask_jax.models.layers import uniform
from dppmask_jax.targets import TARGETS, pixels

_START_STD = 0.02  # of the truncated normal distribution that parameters start with
_FIRST_RATE = 0.005  # of the peak, at step 0: 5e-7 to 1e-4 in the authors' recipe

FIELDS = {
    "model.drop_path": vit.FIELDS["model.drop_path"]._replace(default=0.1),
    "model.position": Field(
        "none", one_of("none", "fixed", "learned"), "absolute positions", fixed=True
    ),
    "model.relative": Field(
        "shared",
        one_of("none", "shared", "each"),
        "biases by relative position: shared by all blocks, or of each",
        fixed=True,
    ),
    "model.layer_scale": Field(
        0.1, number(0), "start of the trained scale of each branch; 0: none", fixed=True
    ),
    "model.qv_bias": Field(
        True, FLAG, "biases of queries and values alone; False: of keys as well", fixed=True
    ),
    **with_defaults(single_view.FIELDS, {"data.crop_scale": (0.67, 1.0)}),
    "mask.ratio": single_view.FIELDS["mask.ratio"]._replace(
        default=0.6122, note="share of the patches that are masked; of 196, 30 cells of four"
    ),
    **with_defaults(pixels.FIELDS, {"loss.norm_pix": False, "loss.distance": "absolute"}),
    **with_defaults(
        optim.FIELDS,
        {
            "optim.base_lr": 5e-5,
            "optim.warmup_epochs": 10.0,
            "optim.b2": 0.999,
            "optim.clip_norm": 5.0,
        },
    ),
    "optim.drop_at": Field(
        None,
        optional(above_to(0, 1)),
        "share of the run after which the learning rate is final_lr; None: a cosine leads there",
    ),
}
# AMT, of 14 x 14 patches: 22 cells of four masked, 13 thrown; from epoch 40 of 200 on.
MASK_RECIPES = {
    "amt": {"ratio": 0.714, "thrown": 0.2654, "guided_from": 0.2, "amt_cell": 2},
    # ours, as in MAE; its authors train no SimMIM
    "hard": {"hard": 0.0, "hard_end": 0.5, "ema_decay_end": 0.9999},
}


class _Network(NamedTuple):
    """An encoder and its linear heads: of what is predicted, and of how hard patches are."""

    encoder: Encoder
    head: nn.Dense
    scorer: nn.Dense

    def init(self, key, *, with_scorer: bool):
        encoder_key, head_key, token_key = jax.random.split(key, 3)
        width = self.encoder.width
        tokens = jnp.zeros((1, width), jnp.float32)
        params = {
            "encoder": self.encoder.init(encoder_key),
            "mask_token": vit_module.cut_start(_START_STD).tokens(
                token_key, (1, width), jnp.float32
            ),
            "head": self.head.init(head_key, tokens)["params"],
        }
        if with_scorer:
            scorer_key = jax.random.fold_in(head_key, 1)
            params["hardness"] = self.scorer.init(scorer_key, tokens)["params"]
        return params

    def encode(self, params, images, hidden, kept, keys=None):
        """(B, M, D) tokens of the patches `kept` (B, M) of normalised images, in the order of the
        image; the patches `hidden` (B, N) are not seen, and the others do not enter."""
        of_encoder, token = params["encoder"], params["mask_token"]
        if kept.shape[1] < hidden.shape[1]:
            embedded = self.encoder.embed(of_encoder, images, hidden, token)
            embedded = patches.gather(embedded, jnp.sort(kept, axis=1))
            return self.encoder.blocks(of_encoder, embedded, keys).patches
        return self.encoder.encode(of_encoder, images, keys, mask=hidden, mask_token=token).patches

    def predict(self, params, tokens):
        """(B, M, P) float32 of tokens (B, M, D)."""
        return self.head.apply({"params": params["head"]}, tokens).astype(jnp.float32)

    def scores(self, params, tokens):
        """(B, M) float32: how hard the patches of tokens (B, M, D) are."""
        found = self.scorer.apply({"params": params["hardness"]}, tokens)
        return found[..., 0].astype(jnp.float32)

    def looks(self) -> dict[str, mask_teacher.Look]:
        """What a copy of the parameters shows a masker."""

        def hardness_of(params, images):
            return self.scores(params, self.encoder.encode(params["encoder"], images).patches)

        look = mask_teacher.Look(("encoder", "hardness"), hardness_of)
        return {**mask_teacher.of_encoder(self.encoder), "hardness": look}


def build(config, plan: Plan, encoder: Encoder | None = None) -> Method:
    """The SimMIM of a checked config.

    Args:
      config: see configs/simmim.py; already through `config.check`.
      plan: the length of the run, for the schedules.
      encoder: what is trained, which `hides`; None: the encoder of SimMIM.
    """
    encoder = encoder or encoder_from(config)
    target = TARGETS[config.loss.target].build(config)
    dtype = config.model.dtype
    net = _Network(
        encoder, _head(encoder.width, target.width, dtype), _head(encoder.width, 1, dtype)
    )
    shares, masker = single_view.shares_of(config), masking.masker_of(config.mask)
    num_patches = encoder.grid[0] * encoder.grid[1]
    num_kept = shares.kept if encoder.blocks else num_patches
    teacher = mask_teacher.build(config, plan, masker, net.looks())
    ranks = hardness.is_needed(masker)

    def init(key):
        params = net.init(key, with_scorer=ranks)
        return params, teacher.init(params)

    def features_of(params, images):
        embed = functools.partial(encoder.embed, params["encoder"], images)
        return single_view.kernel_features(config, images, embed)

    def loss(params, extra, batch, key, step):
        views = single_view.views_of(config, batch, key)
        seen = masking.Seen(
            encoder.grid,
            masking.progress_at(step, plan.total_steps),
            step,
            features=lambda: features_of(params, views.images),
            **teacher.shown(extra, views.images),
        )
        mask, metrics = single_view.drawn(masker, shares.visible, views, seen, batch, key)
        kept = mask.order[:, :num_kept]
        tokens = net.encode(params, views.images, mask.hidden, kept, views.drop_keys)
        pred = net.predict(params, tokens)
        wanted, is_masked = single_view.wanted_of(target, views.raw, mask, kept)
        if not ranks:
            return target.loss(pred, wanted, is_masked), (metrics, {})
        found = pred, net.scores(params, tokens)
        total, losses = single_view.ranked_loss(config, target, found, wanted, is_masked)
        return total, (metrics | losses, {})

    def reconstruct(params, extra, images, order, borrow_statistics=False):
        hidden = single_view.ranks(order, num_patches) >= shares.visible
        kept = order if encoder.blocks else jnp.broadcast_to(jnp.arange(num_patches), hidden.shape)
        tokens = net.encode(params, encoder.pixels.normalize(images), hidden, kept)
        pred = net.predict(params, tokens)
        return single_view.painted(
            encoder.pixels,
            target,
            pred,
            images,
            order,
            shares.visible,
            config.model.patch_size,
            borrow_statistics,
        )

    def features(params, extra, images):
        return features_of(params, encoder.pixels.normalize(images))

    shown = encoder.embed or config.mask.features in WITHOUT_ENCODER
    return Method(
        **single_view.method_parts(config, plan, features if shown else None, teacher, encoder),
        init=init,
        turns=(Turn(loss, _optimizer(config.optim, plan)),),
        encoder=encoder,
        encoder_of=lambda params, extra: params["encoder"],
        with_encoder=mask_teacher.with_encoder,
        with_positions=functools.partial(_with_positions, encoder),
        reconstruct=reconstruct if target.pixels else None,
    )


def _with_positions(encoder: Encoder, params, extra):
    def placed(params):
        return {**params, "encoder": encoder.trainable(params["encoder"])}

    return placed(params), mask_teacher.mapped(extra, placed)


def _optimizer(settings, plan: Plan):
    schedule = functools.partial(_schedule, settings.drop_at)
    return optim.from_settings(settings, plan, schedule, decays=optim.decay_weights)


def _head(width: int, values: int, dtype) -> nn.Dense:
    """(..., width) -> (..., values), with a convolution's usual start."""
    start = uniform(width**-0.5)
    return nn.Dense(values, dtype=dtype, kernel_init=start, bias_init=start, name="head")


def encoder_from(config):
    """The encoder of a checked config."""
    model = config.model
    return encoders.build(
        config,
        position=model.position,
        relative="" if model.relative == "none" else model.relative,
        layer_scale=model.layer_scale,
        qv_bias=model.qv_bias,
        start=vit_module.cut_start(_START_STD),
    )


def _schedule(drop_at, peak: float, final: float, warmup_steps: int, total_steps: int):
    """Linear to `peak`, constant until `drop_at` of the run and `final` from there on, as SimMIM's
    code has it; without `drop_at` half a cosine."""
    if drop_at is None:
        return optim.warmup_cosine(peak, final, warmup_steps, total_steps)

    def schedule(step):
        rise = _FIRST_RATE + (1 - _FIRST_RATE) * jnp.minimum(step / max(warmup_steps, 1), 1.0)
        return jnp.where(step < drop_at * total_steps, peak * rise, final)

    return schedule


KIND = MethodKind(
    build,
    "SimMIM",
    FIELDS,
    single_view.check,
    gives=frozenset({"features", "attention", "hardness", *masking.WITH_IMAGES}),
    shown_by={"features": "embed", "attention": "attended"},
    recipes=("simmim",),
    encoder=("hides",),
    targets=True,
    mask_recipes=MASK_RECIPES,
)
