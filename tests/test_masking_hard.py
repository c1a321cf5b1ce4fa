"""Masks of the patches that are predicted to be hard, and the head that predicts them."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax import config as pretraining
from dppmask_jax import masking
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.losses import ranking
from dppmask_jax.masking.hard_patches import hard
from dppmask_jax.methods import METHODS, hardness, mask_teacher
from dppmask_jax.methods.base import Plan
from dppmask_jax.targets import TARGETS

KEY = jax.random.key(4)
FEW = {"model__depth": 1, "model__width": 8, "model__heads": 2, "mask__ratio": 0.75}


def built(method, **changes):
    config = tiny.config(method, mask__strategy="hard", data__flip=False, **FEW | changes)
    found = METHODS[method].build(config, Plan(4, 21))
    return config, found, *tiny.filled(jax.eval_shape(found.init, KEY), seed=1)


@jax.jit
def drawn(keys, scores, share):
    return jax.vmap(lambda key, scores: hard(key, scores, 5, share))(keys, scores)


def test_the_hardest_are_masked_and_the_rest_is_random():
    keys = jax.random.split(KEY, 2000)
    scores = jax.random.normal(jax.random.key(1), (2000, 16))
    ranked = np.argsort(-np.asarray(scores), axis=1)
    at_random = jax.jit(jax.vmap(lambda key: masking.random(key, 16, 5)))(keys)
    for name, values in drawn(keys, scores, 0.0)._asdict().items():
        if values is not None:
            np.testing.assert_array_equal(values, getattr(at_random, name), name)
    for share, number in ((0.5, 5), (0.99, 10), (1.0, 11)):  # of 11 masked patches
        mask = np.asarray(drawn(keys, scores, share).mask)
        assert (mask.sum(axis=1) == 11).all()
        assert np.take_along_axis(mask, ranked[:, :number], axis=1).all(), share
        rest = np.take_along_axis(mask, ranked[:, number:], axis=1).mean(axis=0)
        expected = (11 - number) / (16 - number)
        error = np.sqrt(expected * (1 - expected) / 2000) + 1e-9
        assert (np.abs(rest - expected) < 4.5 * error).all(), share


def test_the_share_rises_linearly():
    settings = SimpleNamespace(hard=0.1, hard_end=0.5)
    masker = masking.MASKERS["hard"].build(settings)
    assert masker.schedules["mask.hard"](0.25) == pytest.approx(0.2)
    scores, keys = jnp.tile(jnp.arange(16.0), (200, 1)), jax.random.split(KEY, 200)
    for progress, number in ((0.0, 1), (0.5, 3), (1.0, 6)):  # of 12 masked patches
        seen = masking.Seen((4, 4), progress, hardness=lambda: scores)
        share = np.asarray(masker.draw(keys, 4, seen, 4)[0].mask).mean(axis=0)
        assert (share == 1).sum() == number and (share[-number:] == 1).all(), progress
    stays = masking.MASKERS["hard"].build(SimpleNamespace(hard=0.3, hard_end=None))
    assert stays.schedules["mask.hard"](0.9) == 0.3


def test_the_ranking_loss_is_that_of_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=(2, 3, 7))
    values[0, 2] = values[0, 4]
    mask = rng.random((3, 7)) < 0.7
    total, pairs = 0.0, 0
    for row in range(3):
        for i in range(7):
            for j in range(7):
                if mask[row, i] and mask[row, j] and values[row, i] != values[row, j]:
                    p = 1 / (1 + np.exp(scores[row, j] - scores[row, i]))
                    total -= np.log(p if values[row, i] > values[row, j] else 1 - p)
                    pairs += 1
    found = ranking.pairwise(jnp.float32(scores), jnp.float32(values), jnp.asarray(mask))
    assert pairs and float(found) == pytest.approx(total / pairs, rel=1e-5)
    assert float(ranking.pairwise(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.ones((1, 3), bool))) == 0
    assert not np.any(jax.grad(lambda v: ranking.pairwise(scores, v, mask))(jnp.float32(values)))


def test_the_loss_of_each_patch_is_that_of_the_target_for_it_alone():
    rng = np.random.default_rng(0)
    pred, wanted = rng.normal(size=(2, 3, 5, 48)).astype(np.float32)
    for distance, size in (("squared", np.square), ("absolute", np.abs)):
        config = tiny.config("mae", loss__distance=distance)
        target = TARGETS["pixels"].build(config)
        expected = size(pred - wanted).mean(axis=2)
        np.testing.assert_allclose(hardness.per_patch(target, pred, wanted), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_masks_come_from_what_the_teacher_finds_hard_in_the_whole_image(name):
    _, method, params, extra = built(name, mask__hard_end=1.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    keys = jax.random.split(KEY, 2)
    other = jax.tree.map(lambda x: -x, params)
    scores = np.asarray(jax.jit(method.hardness)(other, extra, images))
    assert scores.shape == (2, 16) and len(np.unique(scores)) == 32
    found = jax.jit(method.masks)(other, extra, images, keys)[0].mask  # as at the end of the run
    ranked, expected = np.argsort(-scores, axis=1)[:, :12], np.zeros((2, 16), bool)
    np.put_along_axis(expected, ranked, True, axis=1)
    np.testing.assert_array_equal(found, expected)
    if name == "simmim":
        given = extra[mask_teacher.NAME]
        tokens = method.encoder.encode(given["encoder"], augment.normalize(images)).patches
        by_hand = np.asarray(tokens) @ given["hardness"]["kernel"] + given["hardness"]["bias"]
        np.testing.assert_allclose(scores, by_hand[..., 0], atol=2e-5)


@pytest.mark.parametrize(("name", "last"), [("mae", ("decoder", "pred")), ("simmim", ("head",))])
def test_gradients_of_the_head_stop_before_the_loss_that_it_predicts(name, last):
    config, method, params, extra = built(name)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        "index": np.arange(4, dtype=np.int32),
    }

    def of_ranks(params):
        loss, (metrics, _) = method.turns[0].loss(params, extra, batch, KEY, 0)
        return metrics["loss_rank"], (loss, metrics)

    gradient, (loss, metrics) = jax.jit(jax.grad(of_ranks, has_aux=True))(params)
    of_last = functools.reduce(lambda tree, part: tree[part], last, gradient)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_last))
    # The authors let them pass into the encoder.
    assert np.any(gradient["encoder"]["patch_embed"]["proj"]["kernel"])
    weighed = metrics["loss_target"] + config.mask.rank_weight * metrics["loss_rank"]
    np.testing.assert_allclose(loss, weighed, rtol=1e-6)


def test_other_masks_have_no_such_head():
    for name, part in (("mae", "decoder"), ("simmim", None)):
        _, method, *_ = built(name)
        plain = METHODS[name].build(tiny.config(name, mask__strategy="random", **FEW), Plan(4, 21))
        with_head, without = (jax.eval_shape(each.init, KEY)[0] for each in (method, plain))
        if part:
            with_head, without = with_head[part], without[part]
        more = with_head.keys() - without.keys()
        assert more == ({"hard_blocks", "hard_norm", "hard_pred"} if part else {"hardness"})
        assert all(with_head[key] == without[key] for key in without)


def test_who_cannot_predict_losses_refuses_them():
    words = "no head that predicts losses: config.mask.strategy='hard' needs one; use dpp"
    config = tiny.config("ibot", mask__strategy="hard")
    with pytest.raises(InputError, match=f"iBOT has {words}"):
        pretraining.check(config)
    words = "strategy='hard' needs predicted losses, which images alone"
    with pytest.raises(ValueError, match=words):
        masking.export_masks(np.zeros((1, 32, 32, 3), np.uint8), strategy="hard")
