"""AMT's weights, draws, numbers and loss, against the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from scipy import stats

from dppmask_jax import masking, patches
from dppmask_jax.masking.amt import amt, attention_weights
from dppmask_jax.methods import single_view
from dppmask_jax.targets import base, pixels

pytestmark = oracles.MARKS


def test_weights():
    oracle = oracles.load("amt_weights")
    found = jax.vmap(attention_weights)(jnp.asarray(oracle["cls_attention"], jnp.float32))
    oracles.near("amt_weights", found, oracle["weights"].reshape(2, 196), 1e-6)


def test_draws():
    oracle = oracles.load("amt")
    ((masked, thrown, visible),) = oracle["counts"]
    weights = jnp.asarray(oracle["weights_grid"]).ravel()
    draw = functools.partial(amt, grid=(6, 6), count=int(visible), num_thrown=int(thrown))
    keys = jax.random.split(jax.random.key(6), 20000)
    masks = jax.jit(jax.vmap(lambda key: draw(key, weights)))(keys)
    assert (np.asarray(masks.mask).sum(axis=1) == masked).all()
    for name, found in (("masked", masks.mask), ("thrown", masks.thrown)):
        share = np.asarray(found).mean(axis=0)
        oracles.near(f"amt, {name}", share, oracle[f"{name}_frequency"], 0.015)
        counts = np.stack([share, oracle[f"{name}_frequency"]]) * 20000
        found = stats.chi2_contingency(counts.round())
        bound = stats.chi2.isf(1e-3, found.dof)
        oracles.below(f"amt, {name}, chi-square", found.statistic, bound)


def test_numbers_of_patches():
    """Their code rounds the masked and the hidden ones down, MAE's the visible ones, and ours the
    thrown ones: shares of four digits give the same numbers as theirs."""
    for _, _, masked, thrown, visible in oracles.load("amt")["counts_at_196"]:
        ratio = np.floor((masked + thrown) / 196 * 1e4) / 1e4
        share = np.ceil(thrown / 196 * 1e4) / 1e4
        number = masking.MASKERS["amt"].build(_settings(thrown=share)).num_thrown(196)
        shown = masking.num_visible(196, ratio)
        found, expected = (196 - shown - number, number, shown), (masked, thrown, visible)
        oracles.same(f"amt, numbers at {ratio:g}, {share:g}", found, expected)


def _settings(**changes):
    fields = masking.MASKERS["amt"].fields
    defaults = {name.removeprefix("mask."): field.default for name, field in fields.items()}
    return type("Settings", (), defaults | changes)


def test_loss():
    oracle = oracles.load("amt")
    images = oracles.images(oracle["loss_images"])
    is_masked, thrown = oracle["loss_mask"] == 1, oracle["loss_mask"] == -1
    # The patches that are not thrown, in any order, as masks have them.
    rng = np.random.default_rng(0)
    kept = np.stack([rng.permutation(np.flatnonzero(~each)) for each in thrown])
    target = base.Target(
        width=48,
        of=lambda images: pixels.pixel_target(patches.patchify(images, 4), True),
        loss=base.masked_square_error,
    )
    mask = masking.Mask(kept, jnp.asarray(is_masked), None, jnp.asarray(thrown))
    pred = jnp.asarray(oracle["loss_pred_unthrown"])
    found = target.loss(pred, *single_view.wanted_of(target, images, mask, jnp.asarray(kept)))
    error = abs(float(found) / float(oracle["loss"]) - 1)
    oracles.below("amt, loss (relative)", error, 1e-6)
