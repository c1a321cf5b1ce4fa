"""A run that is an encoder alone, as published weights are: nothing trains it further.

It is no method of `METHODS`, as `train.py` has none of it to run; what uses runs takes it as any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from dppmask_jax import config_dicts
from dppmask_jax.data.sources import opening
from dppmask_jax.fields import TEXT, Field, Rule, one_of
from dppmask_jax.methods.base import Method
from dppmask_jax.models import encoders, sizes, vit
from dppmask_jax.patches import PatchSize

NAME = "encoder"  # config.method


def fields() -> dict[str, Field]:
    """The fields of its config; `model.options` stand beside them, see `Encoder.options`."""
    kept = encoders.fields()
    return {
        "method": Field(NAME, one_of(NAME), "an encoder alone", fixed=True),
        "label": Field("published", TEXT, "whose it is, such as DINOv2", free="carried out"),
        **{name: field for name, field in kept.items() if field.fixed or name == "model.dtype"},
        **opening.FIELDS,
        "data.source": Field("", _SOURCE, "what it was trained on; '': not known"),
        "evaluate.knn_feature": Field(
            "cls", one_of("patches", "cls"), "patches: the mean patch token", free="measured"
        ),
    }


def encoder_config(
    size: sizes.Size,
    image_size: tuple[int, int],
    patch_size: PatchSize,
    options: Mapping[str, Any],
    *,
    label: str = "published",
    knn_feature: str = "cls",
    dtype: str = "float32",
) -> config_dict.ConfigDict:
    """The config of a run that is a ViT alone.

    Its checkpoint holds {"params": {"encoder": what `vit_module.ViT` has}, "extra": {}}.

    Args:
      size: of the blocks; `mlp` is the width that the last layer of an MLP takes, also a gated
        one's.
      image_size: (height, width) that its positions are of.
      options: attributes of `vit_module.ViT`, those of `vit.OPTIONS`.
      label: whose it is, such as "DINOv2".
      knn_feature: which tokens it was trained for, "cls" or "patches".

    Raises:
      InputError: no encoder here is of this size or has these options.
    """
    config = config_dicts.built(fields())
    sizes.set_size(config.model, size)
    with config.model.ignore_type():  # a number or a pair
        config.model.patch_size = patch_size
    config.image_size = tuple(image_size)
    config.label, config.evaluate.knn_feature, config.model.dtype = label, knn_feature, dtype
    config.model.options = config_dict.ConfigDict(dict(options))
    vit.check(config)
    vit.check_options(options)
    return config


def build(config) -> Method:
    """The functions of such a run; it has no turns and masks nothing."""
    encoder = encoders.build(config, **config.model.options)

    def attention(params, extra, images):
        return encoder.attended(params["encoder"], encoder.pixels.normalize(images))[1]

    def with_positions(params, extra):
        given = encoder.trainable(params["encoder"])
        return params if given is params["encoder"] else {**params, "encoder": given}, extra

    return Method(
        example=None,
        init=lambda key: ({"encoder": encoder.init(key)}, {}),
        turns=(),
        after_step=lambda params, extra, aux, step: extra,
        encoder=encoder,
        encoder_of=lambda params, extra: params["encoder"],
        with_positions=with_positions,
        attention=attention if encoder.attended else None,
    )


_SOURCE = Rule(lambda value: value == "" or opening.SOURCE.holds(value), "'' | a source", str)
