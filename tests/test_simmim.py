import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import simmim as recipe
from dppmask_jax import config as pretraining
from dppmask_jax import masking
from dppmask_jax.methods import simmim, single_view
from dppmask_jax.methods.base import Plan
from dppmask_jax.training import build


def config(argument="", **changes):
    built = recipe.get_config(argument)
    built.image_size, built.model.patch_size, built.mask.ratio = (16, 16), 8, 0.5
    built.model.width, built.model.depth, built.model.heads = 24, 1, 2
    built.update_from_flattened_dict({name.replace("__", "."): x for name, x in changes.items()})
    pretraining.check(built)
    return built


def rates(argument):
    built = recipe.get_config(argument)
    plan = build.plan_from(built, 1_281_167)
    return built, plan, simmim.build(built, plan).turns[0].optimizer.learning_rate


def test_the_rate_rises_and_falls_once():
    """To 1e-4 for 512 images from a two-hundredth of it, to a tenth after 700 of 800 epochs."""
    built, plan, rate = rates("dataset=imagenet1k")
    peak = 1e-4 * built.batch_size / 512
    assert rate(0) == pytest.approx(peak / 200)
    assert rate(plan.warmup_steps) == pytest.approx(peak) == plan.peak_lr
    assert rate(700 * plan.steps_per_epoch - 1) == pytest.approx(peak)
    assert rate(700 * plan.steps_per_epoch) == pytest.approx(peak / 10)


def test_maskfeats_rate_is_a_cosine():
    built, plan, rate = rates("dataset=imagenet1k,target=hog")
    assert plan.peak_lr == pytest.approx(2e-4 * built.batch_size / 256) and rate(0) == 0
    assert rate(plan.warmup_steps) == pytest.approx(plan.peak_lr)
    assert single_view.visible_count(built) == 196 - 78
    middle = (plan.warmup_steps + plan.total_steps) // 2
    assert rate(middle) == pytest.approx(plan.peak_lr / 2, rel=1e-4)


@pytest.mark.parametrize("target,values", [("pixels", 3 * 64), ("hog", 27)])
def test_the_prediction_is_as_wide_as_its_target(target, values):
    built = config(f"target={target}")
    method = simmim.build(built, Plan(5, 10))
    params, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert params["head"]["kernel"].shape == (24, values)
    assert (method.reconstruct is None) == (target == "hog")
    assert ("relative_bias" in params["encoder"]) == (target == "pixels")
    assert ("positions" in params["encoder"]) == (target == "hog")


def test_what_is_hidden_does_not_enter_the_loss_of_what_is_predicted():
    """Pixels of a masked patch are known to the target alone."""
    built = config(data__flip=False, model__dtype="float32", mask__strategy="random")
    method = simmim.build(built, Plan(5, 10))
    params, _ = jax.jit(method.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.int32)
    other = images.copy()
    other[0, 8:], other[1, :8] = 255 - images[0, 8:], 255 - images[1, :8]  # patches 2, 3; 0, 1
    first, second = (jax.jit(method.reconstruct)(params, {}, x, order) for x in (images, other))
    np.testing.assert_array_equal(first[0, 8:], second[0, 8:])
    np.testing.assert_array_equal(first[1, :8], second[1, :8])
    np.testing.assert_allclose(first[0, :8], images[0, :8] / 255.0, atol=1e-6)


def test_a_thrown_patch_is_neither_seen_nor_predicted(monkeypatch):
    def build(mask):
        def draw(keys, count, seen, most):
            order = jnp.tile(jnp.arange(4, dtype=jnp.int32), (len(keys), 1))
            return masking.Mask(order, order == 2, jnp.full(len(keys), 2), order == 3), {}

        return masking.Masker(draw, frozenset(), "thrown")

    monkeypatch.setitem(masking.MASKERS, "thrown", masking.MaskerKind(build))
    built = config(data__flip=False, mask__strategy="thrown")
    method = simmim.build(built, Plan(5, 10))
    params, _ = jax.jit(method.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    loss = jax.jit(
        lambda x: method.turns[0].loss(
            params, {}, {"image": x, "index": np.arange(2)}, jax.random.key(1), 0
        )[0]
    )
    others = [images.copy() for _ in range(3)]
    others[0][:, 8:, 8:] //= 2  # patch 3, thrown
    others[1][:, 8:, :8] //= 2  # patch 2, predicted
    others[2][:, :8, :8] //= 2  # patch 0, seen
    assert [bool(loss(x) == loss(images)) for x in others] == [True, False, False]
