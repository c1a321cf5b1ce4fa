"""MoCo v3 against the authors' code (arXiv 2104.02057)."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from configs import moco as recipe
from dppmask_jax import optim, parallel
from dppmask_jax.losses.contrastive import info_nce
from dppmask_jax.methods import contrast, moco
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.projectors import Projector, project
from dppmask_jax.weights import names

pytestmark = oracles.MARKS
KEY = jax.random.key(0)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss(temperature):
    oracle, ending = oracles.load("moco_loss"), f"T{temperature}"
    q1, q2, k1, k2 = (oracle[name] for name in ("q1", "q2", "k1", "k2"))
    with_gradient = jax.jit(jax.value_and_grad(info_nce))
    factor = 2 * temperature  # theirs
    first, of_q1 = with_gradient(q1, k2, temperature)
    second, _ = with_gradient(q2, k1, temperature)
    for name, value in (
        (f"loss_q1k2_{ending}", first),
        (f"loss_q2k1_{ending}", second),
        (f"loss_{ending}", first + second),
        (f"grad_q1_{ending}", of_q1),
    ):
        oracles.near(f"moco_loss, {name}", factor * value, oracle[name], 1e-6)


def test_schedules():
    """An epoch of a thousand steps, so that the authors' epochs are whole steps."""
    oracle = oracles.load("moco_schedules")
    peak, warmup, epochs, base = oracle["settings"]
    steps = np.round(oracle["epoch"] * 1000)
    np.testing.assert_allclose(steps / 1000, oracle["epoch"], atol=1e-9)
    total = int(epochs) * 1000
    config = recipe.get_config()
    config.teacher.ema_decay = float(base)
    config.optim.base_lr, config.optim.weight_decay = float(peak), 0.1
    plan = Plan(1000, total, int(warmup) * 1000, 0, float(peak))
    method = moco.build(config, plan)
    (momentum,) = method.schedules.values()
    rate = method.turns[0].optimizer.learning_rate
    with jax.enable_x64():
        found = [np.float64([schedule(step) for step in steps]) for schedule in (momentum, rate)]
    oracles.near("moco_schedules, momentum", found[0], oracle["momentum"], 1e-7)
    oracles.near("moco_schedules, learning rate", found[1], oracle["lr"], 1e-7)


def projector_params(oracle, prefix, layers):
    """Theirs number linear layers, norms and ReLUs in one row."""
    params = {f"layer_{i}": {"kernel": oracle[f"{prefix}{3 * i}.weight"].T} for i in range(layers)}
    for i in range(layers - 1):
        number = f"{prefix}{3 * i + 1}"
        params[f"norm_{i}"] = {
            "scale": oracle[f"{number}.weight"],
            "bias": oracle[f"{number}.bias"],
        }
    return params


def on_one_device(function):
    """With the axis of devices, of which there is one."""
    mapped = jax.jit(jax.vmap(function, axis_name=parallel.AXIS))
    return lambda *inputs: jax.tree.map(
        lambda x: x[0], mapped(*jax.tree.map(lambda x: jnp.asarray(x)[None], inputs))
    )


def test_projector_and_predictor():
    """They keep no running statistics, so what the authors' give in evaluation is not compared."""
    oracle = oracles.load("moco_heads")
    projector, predictor = Projector((32, 32, 12)), Projector((32, 12))

    @on_one_device
    def both(x, projecting, predicting):
        projected = project(projector, projecting, x)
        return projected, project(predictor, predicting, projected)

    params = (projector_params(oracle, "projector.", 3), projector_params(oracle, "predictor.", 2))
    projected, predicted = both(oracle["x"], *params)
    oracles.near("moco_heads, projected", projected, oracle["projected"], 1e-5)
    oracles.near("moco_heads, predicted", predicted, oracle["predicted"], 1e-5)


def tiny_step():
    """(config, params, extra) of the authors' step, by our names."""
    oracle = oracles.load("moco_tiny_step")
    config = recipe.get_config()
    config.image_size, config.model.patch_size, config.batch_size = (32, 32), 16, 6
    config.model.width, config.model.depth, config.model.heads = 12, 2, 3
    config.model.projector_hidden = config.model.predictor_hidden = 32
    config.model.projector_out = 12
    encoder = moco.encoder_from(config)
    # Positions stand in both trees, as those of the authors' momentum encoder are moved away here.
    shapes = {"encoder": jax.eval_shape(lambda key: encoder.trainable(encoder.init(key)), KEY)}

    def network(which):
        tensors = {name: oracle[f"param.{which}.{name}"] for name in names.write_names(
            shapes, lambda name: (name,))}  # fmt: skip
        found = names.read(shapes, lambda name: (name,), tensors)
        return found | {"projector": projector_params(oracle, f"param.{which}.head.", 3)}

    params = network("base_encoder")
    params["predictor"] = projector_params(oracle, "param.predictor.", 2)
    own = encoder.trainable({})["positions"]
    oracles.near("moco_tiny_step, positions", own, params["encoder"]["positions"], 1e-6)
    return oracle, config, encoder, params, {"momentum": network("momentum_encoder")}


def test_one_step():
    """The momentum encoder follows, then makes the keys: what `after_step` left is what the next
    loss takes."""
    oracle, config, encoder, params, extra = tiny_step()
    config.teacher.ema_decay = float(oracle["m"])
    parts = contrast.build(config, Plan(10, 10), encoder)
    extra = jax.jit(parts.after_step)(params, extra, {}, -1)  # before step 0
    attention = extra["momentum"]["encoder"]["blocks"]["block_0"]["attn"]
    for name, found in {
        "blocks.0.attn.qkv.bias": attention["qkv"]["bias"],
        "head.0.weight": extra["momentum"]["projector"]["layer_0"]["kernel"].T,
    }.items():
        expected = oracle[f"momentum_after.{name}"]
        oracles.near(f"moco_tiny_step, momentum {name}", found, expected, 1e-6)

    @on_one_device
    def step_of(params, extra, first, second):
        def loss(params):
            stopped = optim.stopped(params, moco.frozen(config))
            return parts.loss(stopped, extra, (first, second), None)[0]

        return jax.value_and_grad(loss)(params)

    views = (oracles.images(oracle["x1"]), oracles.images(oracle["x2"]))
    value, gradient = step_of(params, extra, *views)
    oracles.near("moco_tiny_step, loss", value, oracle["loss"], 1e-5)
    blocks = gradient["encoder"]["blocks"]
    for name, found in {
        "cls_token": gradient["encoder"]["cls_token"],
        "blocks.0.attn.qkv.bias": blocks["block_0"]["attn"]["qkv"]["bias"],
        "blocks.1.mlp.fc2.bias": blocks["block_1"]["mlp"]["fc2"]["bias"],
        "head.1.weight": gradient["projector"]["norm_0"]["scale"],
    }.items():
        expected = oracle[f"grad.base_encoder.{name}"]
        oracles.near(f"moco_tiny_step, gradient of {name}", found, expected, 1e-4, relative=True)
    for leaf in jax.tree.leaves(gradient["encoder"]["patch_embed"]):
        assert not np.any(leaf)
