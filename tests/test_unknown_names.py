"""Names that no check has seen: what chooses by a name raises at its end, and takes no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax import dpp, masking
from dppmask_jax.data.sources import imagenet9, opening
from dppmask_jax.dpp import kernels
from dppmask_jax.methods import ibot, ibot_masks, mae
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.classifier import Classifier
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit import layer_of
from dppmask_jax.models.vit_module import ViT

KEYS = jax.random.split(jax.random.key(0), 2)
FEATURES = np.ones((2, 16, 8), np.float32)
IMAGES = np.zeros((2, 16, 16, 3), np.uint8)


def ibot_masks_of(strategy):
    config = tiny.config("ibot", mask__strategy=strategy)
    ibot_masks.drawer(config, masking.masker_of(config.mask), Plan(1, 1))(KEYS, KEYS[0], 0)


def mae_masks_of(strategy):
    method = mae.build(tiny.config("mae", mask__strategy=strategy), Plan(1, 1))
    method.masks({}, {}, IMAGES, KEYS)


def features_of(build, method):
    built = build(tiny.config(method, mask__features="nosuch"), Plan(1, 1))
    jax.eval_shape(built.features, *jax.eval_shape(built.init, KEYS[0]), IMAGES)


def classifier_pooling(pool):
    model = Classifier(ViT(Size(8, 1, 2), (16, 16), 8), 3, pool)
    jax.eval_shape(model.init, KEYS[0], jnp.zeros((1, 16, 16, 3)))


CHOICES = {
    "masks of MAE": lambda: mae_masks_of("nosuch"),
    "masks of iBOT": lambda: ibot_masks_of("nosuch"),
    "features of MAE": lambda: features_of(mae.build, "mae"),
    "features of iBOT": lambda: features_of(ibot.build, "ibot"),
    "strategy of export": lambda: masking.export_masks(IMAGES, patch_size=4, strategy="nosuch"),
    "variant of AttMask": lambda: masking.attention(
        KEYS[0], FEATURES[0, :, 0], 4, variant="nosuch"
    ),
    "kernel": lambda: kernels.kernel_entries(FEATURES[0], 1.0, 2.0, 1.0, "nosuch"),
    "normalize": lambda: dpp.select(KEYS[0], FEATURES[0], 4, normalize="nosuch"),
    "threshold_on": lambda: dpp.select(KEYS[0], FEATURES[0], 4, threshold_on="nosuch"),
    "pool": lambda: classifier_pooling("nosuch"),
    "layer": lambda: layer_of(("nosuch",), 12),
    "source": lambda: opening.open_splits("nosuch:there"),
    "classes of ImageNet-9": lambda: imagenet9.in9_of_model_class(1000, "nosuch"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_an_unknown_name_raises(choice):
    with pytest.raises((ValueError, KeyError), match="nosuch"):
        CHOICES[choice]()
