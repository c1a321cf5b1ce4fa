"""The encoder that masks are drawn by in methods without a teacher of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import overlay
from dppmask_jax import masking
from dppmask_jax.data.images import augment
from dppmask_jax.methods import METHODS, mask_teacher
from dppmask_jax.methods.base import Plan

KEY, PLAN = jax.random.key(3), Plan(steps_per_epoch=4, total_steps=21)
FEW = {"model__depth": 1, "model__width": 8, "model__heads": 2}


def config_of(method, **changes):
    return tiny.config(method, **{"mask__ratio": 0.75, **FEW, **changes})


def built(method="mae", **changes):
    return METHODS[method].build(config_of(method, **changes), PLAN)


def filled(method, seed=1):
    return tiny.filled(jax.eval_shape(method.init, KEY), seed)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_only_a_masker_that_needs_it_has_an_encoder_kept(name):
    for strategy in ("random", "dpp"):
        assert jax.eval_shape(built(name, mask__strategy=strategy).init, KEY)[1] == {}
    for strategy in ("attention", "amt"):
        method = built(name, mask__strategy=strategy)
        params, extra = jax.eval_shape(method.init, KEY)
        assert extra == {mask_teacher.NAME: {"encoder": params["encoder"]}}


def follow(method, params, teacher, step):
    extra = {mask_teacher.NAME: teacher}
    return method.after_step(params, extra, {}, step)[mask_teacher.NAME]["encoder"]["w"]


def test_the_average_by_hand():
    params = {"encoder": {"w": 3.0}, "decoder": {"v": 1.0}}
    method = built(mask__strategy="amt", mask__ema_decay=0.9)
    assert follow(method, params, {"encoder": {"w": 1.0}}, 0) == pytest.approx(0.9 + 0.3)
    # From 0.9 at step 0 to 0.5 at step 20, the last of the run: 0.7 at step 10.
    method = built(mask__strategy="amt", mask__ema_decay=0.9, mask__ema_decay_end=0.5)
    for step, decay in ((0, 0.9), (10, 0.7), (20, 0.5)):
        found = follow(method, params, {"encoder": {"w": 1.0}}, step)
        assert found == pytest.approx(decay + 3 * (1 - decay)), step
        assert method.schedules["mask.ema_decay"](step) == pytest.approx(decay)


def test_copies_are_made_at_multiples_of_epochs():
    method = built(mask__strategy="amt", mask__refresh_epochs=1.5)  # six steps
    assert "mask.ema_decay" not in method.schedules

    def copies(skipped):
        params, extra = jax.eval_shape(method.init, KEY)
        given = {"encoder": {"w": 0.0}}
        extra, seen = {**tiny.filled(extra, 0), mask_teacher.NAME: given}, []
        for step in range(20):
            params = {"encoder": {"w": float(step + 1)}}  # what the step left
            if step not in skipped:  # as a step does that is not finite
                extra = method.after_step(params, extra, {}, step)
            seen.append(float(extra[mask_teacher.NAME]["encoder"]["w"]))
        return seen

    assert copies(()) == [0] * 5 + [6] * 6 + [12] * 6 + [18] * 3
    # The second copy is late by two steps, the third is not.
    assert copies((11, 12)) == [0] * 5 + [6] * 8 + [14] * 4 + [18] * 3


def test_copies_start_with_a_run_and_go_with_it():
    method = built(mask__strategy="amt", mask__refresh_epochs=1.5)
    made = jax.eval_shape(method.init, KEY)
    params, extra = tiny.filled(made, 1)
    count = jax.ShapeDtypeStruct((), np.int32)
    assert made[1] == {
        mask_teacher.NAME: {"encoder": made[0]["encoder"]}, mask_teacher.COPIED: count,
    }  # fmt: skip
    extra[mask_teacher.COPIED] = np.int32(12)
    for changed in (
        method.with_positions(params, extra)[1],
        method.with_encoder(params, extra, params["encoder"])[1],
    ):
        assert changed.keys() == extra.keys() and changed[mask_teacher.COPIED] == 12


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_masks_come_from_the_teachers_attention_to_the_images(name):
    method = built(name, mask__strategy="attention")
    params, extra = filled(method)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    keys = jax.random.split(KEY, 3)
    teacher = extra[mask_teacher.NAME]["encoder"]
    other = jax.tree.map(lambda x: x + 0.1, params)
    found, _ = jax.jit(method.masks)(other, extra, images, keys)
    weights = jax.jit(method.encoder.attended)(teacher, augment.normalize(images))[1]
    shown = jax.jit(method.attention)(other, extra, images)
    np.testing.assert_allclose(shown, weights, atol=1e-6)
    ranked = np.argsort(-np.asarray(weights).mean(axis=1), axis=1)[:, :12]
    expected = np.zeros((3, 16), bool)
    np.put_along_axis(expected, ranked, True, axis=1)
    np.testing.assert_array_equal(found.mask, expected)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_outside_of_training_a_run_without_a_teacher_shows_its_own_attention(name, monkeypatch):
    asked = []
    of_encoder = mask_teacher.of_encoder

    def counted(encoder):
        return of_encoder(encoder._replace(
            attended=lambda *given: asked.append(1) or encoder.attended(*given)
        ))  # fmt: skip

    monkeypatch.setattr(mask_teacher, "of_encoder", counted)
    method = built(name, mask__strategy="random")
    params, extra = filled(method)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert extra == {}
    batch = {"image": images, "index": np.arange(2, dtype=np.int32)}
    jax.eval_shape(lambda: method.turns[0].loss(params, extra, batch, KEY, 0)[0])
    assert not asked
    weights = jax.jit(method.encoder.attended)(params["encoder"], augment.normalize(images))[1]
    np.testing.assert_allclose(jax.jit(method.attention)(params, extra, images), weights, atol=1e-6)
    masker = masking.masker_of(config_of(name, mask__strategy="attention").mask)
    draw = jax.jit(lambda keys: method.masks(params, extra, images, keys, masker, 4)[0].mask)
    ranked = np.argsort(-np.asarray(weights).mean(axis=1), axis=1)[:, :12]
    expected = np.zeros((2, 16), bool)
    np.put_along_axis(expected, ranked, True, axis=1)
    np.testing.assert_array_equal(draw(jax.random.split(KEY, 2)), expected)


def test_overlay_without_masks_keeps_nothing_for_them():
    for strategy in ("amt", "attention"):
        for ratio, kept in ((0.0, set()), (0.5, {mask_teacher.NAME})):
            config = overlay.get_config("dataset=shapes,form=vit")
            config.mask.strategy, config.mask.ratio, config.mask.thrown = strategy, ratio, 0.1
            method = METHODS["overlay"].build(config, PLAN)
            assert jax.eval_shape(method.init, KEY)[1].keys() == kept


@pytest.mark.parametrize("method", METHODS)
def test_recipes_of_hard_masks_end_with_the_slower_teacher(method):
    recipes = METHODS[method].mask_recipes
    assert ("hard" in recipes) == (method in ("mae", "simmim", "hybrid"))
    if "hard" in recipes:
        config = tiny.RECIPES[method].get_config("dataset=shapes,mask=hard")
        assert (config.mask.ema_decay, config.mask.ema_decay_end) == (0.999, 0.9999)
        assert (config.mask.hard, config.mask.hard_end) == (0.0, 0.5)


def test_a_step_draws_by_the_teacher_and_sends_it_no_gradient():
    method = built(mask__strategy="amt", mask__guided_from=0.0, mask__thrown=0.25)
    params, extra = filled(method)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        "index": np.arange(4, dtype=np.int32),
    }

    @jax.jit
    @jax.value_and_grad
    def loss(extra, step):
        return method.turns[0].loss(params, extra, batch, KEY, step)[0]

    value, gradient = loss(extra, 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    changed = jax.tree.map(lambda x: -x, extra)
    assert loss(changed, 0)[0] != value


def test_a_run_that_starts_from_an_encoder_has_it_as_the_teacher_too():
    method = built(mask__strategy="amt")
    params, extra = filled(method)
    given = jax.tree.map(jnp.zeros_like, params["encoder"])
    params, extra = method.with_encoder(params, extra, given)
    for found in (params["encoder"], extra[mask_teacher.NAME]["encoder"]):
        jax.tree.map(np.testing.assert_array_equal, found, given)


def test_positions_of_the_teacher_are_there_for_another_image_size():
    method = built(mask__strategy="amt")
    params, extra = method.with_positions(*filled(method))
    assert params["decoder"]["positions"].shape == (1, 17, 32)
    assert extra[mask_teacher.NAME]["encoder"]["positions"].shape == (1, 17, 8)
    assert built(mask__strategy="random").with_positions(params, {})[1] == {}
