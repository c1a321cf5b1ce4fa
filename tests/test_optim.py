import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_ibot as reference
from ml_collections import config_dict

from dppmask_jax import optim
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.sizes import Size
from dppmask_jax.models.vit import layer_of
from dppmask_jax.models.vit_module import ViT

SETTINGS = {
    "learning_rate": lambda step: 1.0,
    "weight_decay": lambda step: 0.05,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "clip": optax.identity(),
}


def test_warmup_cosine_at_its_ends_and_in_the_middle():
    rate = optim.warmup_cosine(0.4, 0.1, 10, 110)
    expected = {0: 0.0, 5: 0.2, 10: 0.4, 60: 0.25, 110: 0.1}
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-6, atol=1e-9)
    quarter = 0.1 + 0.3 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rate(35), quarter, rtol=1e-6)
    np.testing.assert_allclose(optim.warmup_cosine(0.4, 0.1, 0, 110)(0), 0.4, rtol=1e-6)


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_linspace_cosine_is_the_reference_at_every_step(warmup_epochs):
    expected = reference.learning_rates(2e-3, 1e-6, 7, 5, warmup_epochs)
    rate = jax.jit(optim.linspace_cosine(2e-3, 1e-6, 5 * warmup_epochs, 35))
    np.testing.assert_allclose([rate(step) for step in range(35)], expected, rtol=1e-5, atol=1e-9)
    if warmup_epochs:
        assert expected[0] == 0.0 and expected[5 * warmup_epochs - 1] == 2e-3
    np.testing.assert_allclose(rate(35), 1e-6, atol=1e-9)


@pytest.mark.parametrize("start,end", [(0.04, 0.4), (0.996, 1.0), (0.05, 0.05)])
def test_cosine_is_the_reference_at_every_step(start, end):
    expected = reference.cosine(start, end, 4, 5)
    schedule = jax.jit(optim.cosine(start, end, 20))
    np.testing.assert_allclose([schedule(step) for step in range(20)], expected, rtol=1e-6)
    np.testing.assert_allclose(schedule(0), start, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), (start + end) / 2, rtol=1e-6)
    assert float(schedule(20)) == float(schedule(99)) == np.float32(end)


def test_clipping_is_per_tensor():
    rng = np.random.default_rng(0)
    grads = {
        "a": {"w": rng.normal(size=(4, 5)) * 9, "b": rng.normal(size=3) * 1e-3},
        "c": np.ones(2),
    }
    clipped, _ = optim.clip_by_tensor_norm(1.2).update(
        jax.tree.map(jnp.float32, grads), optax.EmptyState()
    )
    expected = reference.clip_per_tensor(grads, 1.2)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), clipped, expected)
    np.testing.assert_allclose(np.linalg.norm(clipped["a"]["w"]), 1.2, rtol=1e-5)
    np.testing.assert_array_equal(clipped["a"]["b"], np.float32(grads["a"]["b"]))


def test_frozen_layers_are_the_reference_before_and_after_the_thaw():
    rng = np.random.default_rng(1)
    params = {
        "head": {
            "last_layer": {"direction": rng.normal(size=(3, 4)), "scale": rng.normal(size=(1, 4))},
            "patch_last_layer": {"direction": rng.normal(size=(3, 4))},
            "mlp_0": {"kernel": rng.normal(size=(2, 3)), "bias": rng.normal(size=3)},
        }
    }
    names = {"/".join(str(k.key) for k in path): path for path, _ in _leaves(params)}
    frozen = {name for name in names if "last_layer" in name}
    decayed = {name for name in names if not name.endswith("bias")}
    rate, decay = optim.linspace_cosine(1e-2, 1e-4, 2, 9), optim.cosine(0.04, 0.4, 9)
    optimizer = optim.adamw(
        learning_rate=rate, weight_decay=decay, b1=0.9, b2=0.999, epsilon=1e-8,
        clip=optim.clip_by_tensor_norm(3.0), frozen_steps=4,
    )  # fmt: skip
    tree = jax.tree.map(jnp.float32, params)
    opt_state = optimizer.tx.init(tree)
    flat = {name: leaf for name, (_, leaf) in zip(names, _leaves(params), strict=True)}
    state = {}
    update = jax.jit(lambda *args, step: optimizer.tx.update(*args, train_step=step))
    for step in range(9):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape) * 2, params)
        before = jax.tree.leaves(_moments(opt_state, "later"))
        lr = float(rate(step))
        updates, opt_state = update(jax.tree.map(jnp.float32, grads), opt_state, tree, step=step)
        if step < 4:
            after = jax.tree.leaves(_moments(opt_state, "later"))
            assert len(after) == 7  # a count, and two moments of three tensors
            jax.tree.map(np.testing.assert_array_equal, before, after)
        tree = optax.apply_updates(tree, optax.tree.scale(lr, updates))
        clipped = _leaves(reference.clip_per_tensor(grads, 3.0))
        clipped = {name: leaf for name, (_, leaf) in zip(names, clipped, strict=True)}
        flat, state = reference.adamw_step(
            flat, clipped, state, lr, float(decay(step)),
            frozen if step < 4 else set(), decayed,
        )  # fmt: skip
        for (_, leaf), (name, expected) in zip(_leaves(tree), flat.items(), strict=True):
            np.testing.assert_allclose(leaf, expected, rtol=2e-4, atol=1e-6, err_msg=name)
            if step < 4 and name in frozen:
                np.testing.assert_array_equal(leaf, np.float32(_at(params, names[name])))


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def _moments(opt_state, label):
    """The Adam state of one group of tensors."""
    states = jax.tree.leaves(
        opt_state[1].inner_states[label], is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    return [state for state in states if isinstance(state, optax.ScaleByAdamState)]


def test_clipping_can_be_turned_on_between_two_runs():
    params = {"w": jnp.ones((2, 2))}
    clips = (optax.identity(), optax.clip_by_global_norm(1.0), optim.clip_by_tensor_norm(1.0))
    states = [optim.adamw(**SETTINGS | {"clip": clip}).tx.init(params) for clip in clips]
    assert len({jax.tree.structure(state) for state in states}) == 1


def test_linear_scaling():
    assert optim.scaled_learning_rate(1.5e-4, 4096) == 1.5e-4 * 16


def test_update_is_adamw_written_out():
    params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    optimizer = optim.adamw(**SETTINGS)
    opt_state = optimizer.tx.init(params)
    rng = np.random.default_rng(0)
    values = {name: np.asarray(x, np.float64) for name, x in params.items()}
    first = {name: np.zeros_like(x) for name, x in values.items()}
    second = {name: np.zeros_like(x) for name, x in values.items()}
    for t in range(1, 4):
        grads = {name: rng.normal(size=x.shape) for name, x in values.items()}
        updates, opt_state = optimizer.tx.update(
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()},
            opt_state,
            params,
            train_step=0,
        )
        params = optax.apply_updates(params, {n: 0.1 * u for n, u in updates.items()})
        for name, g in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            step = first[name] / (1 - 0.9**t) / (np.sqrt(second[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.05 if name == "kernel" else 0.0
            values[name] = values[name] - 0.1 * (step + decay * values[name])
            np.testing.assert_allclose(params[name], values[name], rtol=1e-5)


def test_tokens_decay_and_biases_do_not():
    params = {"cls_token": jnp.ones((1, 1, 4)), "norm": {"scale": jnp.ones(4)}}
    optimizer = optim.adamw(**SETTINGS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.tx.update(zeros, optimizer.tx.init(params), params, train_step=0)
    np.testing.assert_allclose(updates["cls_token"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)


@pytest.mark.parametrize("frozen_steps", [None, 0])
def test_clipping_limits_the_global_norm(frozen_steps):
    params = {"a_last_layer": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    clipped = optim.adamw(
        **SETTINGS | {"clip": optax.clip_by_global_norm(1.0), "frozen_steps": frozen_steps}
    ).tx
    plain = optim.adamw(**SETTINGS | {"frozen_steps": frozen_steps}).tx
    grads = {"a_last_layer": jnp.full((2, 2), 3.0), "b": jnp.full(3, 4.0)}
    small = {name: g / np.sqrt(4 * 9 + 3 * 16) for name, g in grads.items()}
    later = {"a_last_layer": jnp.full((2, 2), 0.01), "b": jnp.full(3, 0.02)}
    results = []
    for tx, first in ((clipped, grads), (plain, small), (plain, grads)):
        _, state = tx.update(first, tx.init(params), params, train_step=0)
        results.append(np.asarray(tx.update(later, state, params, train_step=0)[0]["b"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    assert not np.allclose(results[0], results[2], rtol=1e-2)


def classifier(width=4, depth=2):
    """Parameters of a classifier, all 2."""
    backbone = ViT(Size(width, depth, 1), (8, 8), 4)
    images = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: backbone.init(jax.random.key(0), images))["params"]
    encoder = jax.tree.map(lambda x: jnp.full(x.shape, 2.0), shapes)
    head = {"kernel": jnp.full((width, 3), 2.0), "bias": jnp.full(3, 2.0)}
    return {"encoder": encoder, "fc_norm": {"scale": jnp.full(width, 2.0)}, "head": head}


def train(optimizer, params, grads):
    """The parameters after each gradient, updated as `make_step` does."""

    @jax.jit
    def update(gradient, opt_state, params, step):
        updates, opt_state = optax.with_extra_args_support(optimizer.tx).update(
            gradient, opt_state, params, train_step=step
        )
        lr = optimizer.learning_rate(step)
        return optax.apply_updates(params, jax.tree.map(lambda u: lr * u, updates)), opt_state

    opt_state, history = jax.jit(optimizer.tx.init)(params), []
    for step, gradient in enumerate(grads):
        params, opt_state = update(gradient, opt_state, params, step)
        history.append(params)
    return history


def scales_of(params, depth, decay):
    return optim.layer_scales(params, functools.partial(layer_of, depth=depth), depth, decay)


def test_layer_scales_by_hand():
    params = classifier()
    scales = scales_of(params, depth=2, decay=0.5)
    assert jax.tree.structure(scales) == jax.tree.structure(params)
    encoder = scales.pop("encoder")
    expected = {
        "cls_token": 1 / 8, "positions": 1 / 8, "patch_embed": 1 / 8, "norm": 1.0,
        "block_0": 1 / 4, "block_1": 1 / 2,
    }  # fmt: skip
    for name, part in (encoder | encoder.pop("blocks")).items():
        assert set(jax.tree.leaves(part)) == {expected.pop(name)}, name
    assert not expected and set(jax.tree.leaves(scales)) == {1.0}


def test_layers_are_numbered_not_sorted_by_name():
    blocks = {f"block_{b}": {"kernel": jnp.ones((1, 1))} for b in range(12)}
    scales = scales_of({"encoder": {"blocks": blocks}, "head": jnp.ones(1)}, 12, 0.65)
    for b in range(12):
        found = scales["encoder"]["blocks"][f"block_{b}"]["kernel"]
        np.testing.assert_allclose(found, 0.65 ** (12 - b), rtol=1e-6)
    with pytest.raises(ValueError, match=r"block_11, which an encoder of 11 blocks has not"):
        scales_of({"encoder": {"blocks": blocks}}, 11, 0.65)


@pytest.mark.parametrize(
    "decays,tokens",
    [
        # Lr .1 then .2, both times 1/8: without decay 2 - .0125 - .025.
        (optim.decay_weights, 1.9625),
        # 2 - .0125 (1 + .05 * 2) = 1.98625, less .025 (1 + .05 * 1.98625).
        (optim.decay_weights_and_tokens, 1.9587671875),
    ],
)
def test_fine_tuning_updates_by_hand(decays, tokens):
    # A constant gradient of 1 makes every Adam update 1.
    optimizer = optim.adamw(
        **SETTINGS | {"learning_rate": lambda step: 0.1 * (step + 1)},
        decays=decays,
        scales=lambda params: scales_of(params, depth=2, decay=0.5),
    )
    params = classifier()
    ones = jax.tree.map(jnp.ones_like, params)
    params = train(optimizer, params, [ones, ones])[-1]
    encoder = params["encoder"]
    block_0, block_1 = (encoder["blocks"][f"block_{b}"] for b in range(2))
    for tensor, expected in (
        (encoder["cls_token"], tokens),
        (encoder["positions"], tokens),
        (encoder["patch_embed"]["proj"]["kernel"], 1.9587671875),
        (encoder["patch_embed"]["proj"]["bias"], 1.9625),
        # 2 - .025 * 1.1 = 1.9725, less .05 (1 + .098625).
        (block_0["mlp"]["fc1"]["kernel"], 1.91756875),
        # 2 - .05 * 1.1 = 1.945, less .1 (1 + .09725).
        (block_1["mlp"]["fc1"]["kernel"], 1.835275),
        (block_1["norm1"]["scale"], 2 - 0.05 - 0.1),
        # 2 - .1 * 1.1 = 1.89, less .2 (1 + .0945).
        (params["head"]["kernel"], 1.6711),
        (params["head"]["bias"], 2 - 0.1 - 0.2),
        (params["fc_norm"]["scale"], 2 - 0.1 - 0.2),
    ):
        np.testing.assert_allclose(tensor, np.full(tensor.shape, expected), rtol=1e-6)


def test_scales_act_on_frozen_layers_once_they_thaw():
    params = {"last_layer": jnp.full((1, 1), 2.0), "other": jnp.full((1, 1), 2.0)}
    optimizer = optim.adamw(
        **SETTINGS | {"learning_rate": lambda step: 0.1 * (step + 1), "frozen_steps": 1},
        scales=lambda params: {"last_layer": 0.5, "other": 0.25},
    )
    ones = jax.tree.map(jnp.ones_like, params)
    first, second = train(optimizer, params, [ones, ones])
    assert float(first["last_layer"][0, 0]) == 2.0
    np.testing.assert_allclose(second["last_layer"], [[2 - 0.2 * 0.5 * 1.1]], rtol=1e-6)
    np.testing.assert_allclose(first["other"], [[2 - 0.1 * 0.25 * 1.1]], rtol=1e-6)


def test_scales_of_one_change_nothing():
    params = classifier(depth=1)
    rng = np.random.default_rng(0)
    grads = [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
        for _ in range(2)
    ]
    plain = train(optim.adamw(**SETTINGS), params, grads)[-1]
    scaled = optim.adamw(**SETTINGS, scales=lambda params: scales_of(params, 1, 1.0))
    jax.tree.map(np.testing.assert_array_equal, train(scaled, params, grads)[-1], plain)


def test_lars_by_hand():
    optimizer = optim.lars(
        learning_rate=lambda step: jnp.array([1.0, 0.5, 0.2])[step],
        weight_decay=lambda step: 0.0,
        momentum=0.5,
        trust=0.1,
    )
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0])}
    grads = [
        {"kernel": jnp.array([[g, h]]), "bias": jnp.array([2.0])}
        for g, h in ((6.0, 8.0), (0.0, 9.0), (0.0, 0.0))
    ]
    history = train(optimizer, params, grads)
    kernels = [
        [[2.7, 3.6]],  # .1 * 5 / 10 of (6, 8): momentum (.3, .4)
        [[2.625, 3.275]],  # .1 * 4.5 / 9 of (0, 9): momentum (.15, .65), times .5
        [[2.61, 3.21]],  # momentum (.075, .325), times .2
    ]
    biases = [[-1.0], [-2.5], [-3.2]]  # momentum 2, 3, 3.5 of the gradients as they are
    for params, kernel, bias in zip(history, kernels, biases, strict=True):
        np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-6)
        np.testing.assert_allclose(params["bias"], bias, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("last_layer", [None, 1.0])
def test_what_is_frozen_never_moves_and_all_else_as_without(kind, last_layer):
    """Neither gradients nor weight decay move it, and nothing is kept of it."""
    settings = config_dict.ConfigDict(
        {"kind": kind, "b1": 0.9, "b2": 0.95, "epsilon": 1e-8, "clip_norm": 0.0}
        | {"weight_decay": 0.1, "final_lr": 0.0}
    )
    if last_layer is not None:
        settings.freeze_last_layer_epochs = last_layer
    plan = Plan(2, 6, 0, 0, 0.5)
    rng = np.random.default_rng(0)
    params = {
        "encoder": {"patch_embed": {"kernel": rng.normal(size=(5, 7))}, "norm": np.ones(3)},
        "patch_embed": {"kernel": rng.normal(size=(2, 2))},  # another's
        "last_layer": rng.normal(size=(3, 2)),
    }
    params = jax.tree.map(jnp.float32, params)
    grads = [jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params)] * 3
    frozen = optim.below("encoder", "patch_embed")
    one, every = (
        optim.from_settings(settings, plan, optim.warmup_cosine, **options)
        for options in ({"frozen": frozen}, {})
    )
    found, wanted = (train(optimizer, params, grads) for optimizer in (one, every))
    for after, without in zip(found, wanted, strict=True):
        kernel = after["encoder"].pop("patch_embed")["kernel"]
        np.testing.assert_array_equal(kernel, params["encoder"]["patch_embed"]["kernel"])
        assert np.any(without["encoder"].pop("patch_embed")["kernel"] != kernel)
        jax.tree.map(np.testing.assert_array_equal, after, without)
    state = jax.eval_shape(one.tx.init, params)
    assert not any(leaf.shape == (5, 7) for leaf in jax.tree.leaves(state))


def test_lars_decays_weights_before_the_ratio_and_by_schedule():
    optimizer = optim.lars(
        learning_rate=lambda step: 1.0,
        weight_decay=lambda step: 0.5 * (step == 0),
        momentum=0.0,
        trust=0.1,
    )
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([8.0])}
    # (4.5, 6) + .5 (3, 4) = (6, 8), then .1 * 5 / 10 of it; the next step has no decay.
    gradient = {"kernel": jnp.array([[4.5, 6.0]]), "bias": jnp.array([0.0])}
    first, second = train(optimizer, params, [gradient, gradient])
    np.testing.assert_allclose(first["kernel"], [[2.7, 3.6]], rtol=1e-6)
    # .1 * 4.5 / 7.5 of (4.5, 6).
    np.testing.assert_allclose(second["kernel"], [[2.43, 3.24]], rtol=1e-6)
    np.testing.assert_array_equal(second["bias"], [8.0])


@pytest.mark.parametrize("shape", [(2, 2), (1, 2, 1, 2)])
def test_lars_of_a_zero_tensor_takes_the_whole_gradient(shape):
    constant = {"learning_rate": lambda step: 1.0, "weight_decay": lambda step: 0.0}
    params, ones = {"kernel": jnp.zeros(shape)}, {"kernel": jnp.ones(shape)}
    first, second = train(optim.lars(**constant), params, [ones, ones])
    np.testing.assert_array_equal(first["kernel"], np.full(shape, -1.0))
    # From -1: momentum .9 of the first update, and .001 * 2 / 2 of the gradient.
    np.testing.assert_allclose(second["kernel"], np.full(shape, -1.901), rtol=1e-6)


def test_sgd_by_hand():
    """The decay of each tensor joins its gradient, the momentum adds both up, and the learning rate
    of the step multiplies all."""
    optimizer = optim.sgd(
        learning_rate=lambda step: 0.1 * (1 + step), weight_decay=lambda step: 0.1 * step
    )
    params = {"w": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
    grads = {"w": jnp.array([[0.5, 0.25]]), "bias": jnp.array([-1.0])}
    first, second = train(optimizer, params, [grads, grads])
    np.testing.assert_allclose(first["w"], [[0.95, -2.025]], rtol=1e-6)
    np.testing.assert_allclose(first["bias"], [3.1], rtol=1e-6)
    # 0.9 * 0.5 + 0.5 + 0.1 * 0.95 = 1.045, times 0.2; 0.225 + 0.25 - 0.2025; -0.9 - 1 + 0.31.
    np.testing.assert_allclose(second["w"], [[0.741, -2.0795]], rtol=1e-6)
    np.testing.assert_allclose(second["bias"], [3.418], rtol=1e-6)


def test_the_config_chooses_the_optimizer():
    settings = config_dict.ConfigDict(
        {"kind": "sgd", "b1": 0.9, "b2": 0.999, "epsilon": 1e-8, "clip_norm": 5.0}
        | {"weight_decay": 0.0, "final_lr": 0.0}
    )
    plan = Plan(2, 4, 0, 0, 0.5)
    params, grads = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), 5.0)}
    halves = {"scales": lambda params: {"w": 0.5}, "decays": optim.decay_weights}
    for shape, expected in (({}, 1 - 0.5 * 2.5), (halves, 1 - 0.5 * 1.25)):  # norm 10 becomes 5
        optimizer = optim.from_settings(settings, plan, optim.warmup_cosine, **shape)
        (found,) = train(optimizer, params, [grads])
        np.testing.assert_allclose(found["w"], expected, rtol=1e-6)
    settings.kind = "adamw"
    (found,) = train(optim.from_settings(settings, plan, optim.warmup_cosine), params, [grads])
    np.testing.assert_allclose(found["w"], 1 - 0.5, rtol=1e-5)  # Adam's first step is the sign
    for solver, step in (("sgd", 5.0), ("lars", 0.001 * (2 / 10) * 5.0)):
        optimizer = optim.linear_from_settings(solver, settings, plan, optim.warmup_cosine)
        (found,) = train(optimizer, params, [grads])
        np.testing.assert_allclose(found["w"], 1 - 0.5 * step, rtol=1e-6)
