"""Overlay, its weighted loss and the hybrid's, against values of their formulas."""

import jax.numpy as jnp
import numpy as np
import oracles

from dppmask_jax import patches
from dppmask_jax.data.images import mixing
from dppmask_jax.losses import contrastive
from dppmask_jax.methods import hybrid, overlay
from dppmask_jax.targets.base import masked_square_error

pytestmark = oracles.MARKS


def test_mixing_with_the_image_some_places_before():
    oracle = oracles.load("overlay_hybrid")
    images = oracle["images"]
    for by in (1, 2, 3):
        for alpha in (0.0, 0.1, 0.3, 0.4):
            found = mixing.overlay(images, jnp.roll(images, by, axis=0), alpha)
            expected = oracle[f"overlay_roll{by}_alpha{alpha}"]
            oracles.near(f"overlay_hybrid, overlay {by} {alpha}", found, expected, 1e-6)


def test_losses_are_of_the_image_as_it_was():
    oracle = oracles.load("overlay_hybrid")
    pred, target = (patches.patchify(oracle[name], 4) for name in ("pred", "images"))
    masked = oracle["patch_mask"]

    def loss(masked, weight):
        return overlay.weighted(masked_square_error, weight, pred, target, masked)

    for weight in (0.0, 0.5, 1.0):
        expected = oracle[f"overlay_mask_loss_visible{weight}"]
        name = f"overlay_hybrid, loss {weight}"
        oracles.near(name, loss(masked, weight), expected, 1e-6, relative=True)
    whole = loss(np.zeros_like(masked), 1.0)
    oracles.near("overlay_hybrid, mse", whole, oracle["mse_to_clean"], 1e-6, relative=True)
    wrong = oracle["mse_to_mixed_WRONG_roll1_alpha0.3"]
    assert abs(float(whole) - wrong) > 0.1


def test_the_hybrid_is_the_weighted_sum():
    oracle = oracles.load("overlay_hybrid")
    pred, target = (patches.patchify(oracle[name], 4) for name in ("pred", "images"))
    of_mim = masked_square_error(pred, target, np.ones_like(oracle["patch_mask"]))
    temperature = 0.2
    of_pairs = sum(
        contrastive.info_nce(oracle[q], oracle[k], temperature)
        for q, k in (("q1", "k2"), ("q2", "k1"))
    )
    for name, factor in (("plain", 1.0), ("moco", 2 * temperature)):
        oracles.near(
            f"overlay_hybrid, cl {name}", factor * of_pairs, oracle[f"cl_{name}"], 1e-6,
            relative=True,
        )  # fmt: skip
        for weight in (0.0, 0.2, 0.5, 1.0):
            found = hybrid.mixed(weight, of_mim, factor * of_pairs)
            expected = oracle[f"hybrid_lambda{weight}_{name}"]
            oracles.near(f"overlay_hybrid, {weight} {name}", found, expected, 1e-6, relative=True)
