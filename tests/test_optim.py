import jax
import jax.numpy as jnp
import numpy as np
import optax

from dppmask_jax import optim

SETTINGS = {
    "peak": 0.4,
    "final": 0.1,
    "warmup_steps": 10,
    "total_steps": 110,
    "b1": 0.9,
    "b2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.05,
    "clip_norm": 0.0,
}


def test_schedule_at_its_ends_and_in_the_middle():
    rate = optim.adamw(**SETTINGS).learning_rate
    expected = {0: 0.0, 5: 0.2, 10: 0.4, 60: 0.25, 110: 0.1}
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-6, atol=1e-9)
    quarter = 0.1 + 0.3 * 0.5 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rate(35), quarter, rtol=1e-6)


def test_no_warm_up_starts_at_the_peak():
    rate = optim.adamw(**SETTINGS | {"warmup_steps": 0}).learning_rate
    np.testing.assert_allclose(rate(0), 0.4, rtol=1e-6)


def test_clipping_can_be_turned_on_between_two_runs():
    params = {"w": jnp.ones((2, 2))}
    states = [optim.adamw(**SETTINGS | {"clip_norm": c}).tx.init(params) for c in (0.0, 1.0)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


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
            {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}, opt_state, params
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
    assert optim.decays(params) == {"cls_token": True, "norm": {"scale": False}}


def test_clipping_limits_the_global_norm():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    clipped = optim.adamw(**SETTINGS | {"clip_norm": 1.0}).tx
    plain = optim.adamw(**SETTINGS).tx
    grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(3, 4.0)}
    small = {name: g / np.sqrt(4 * 9 + 3 * 16) for name, g in grads.items()}
    later = {"a": jnp.full((2, 2), 0.01), "b": jnp.full(3, 0.02)}
    results = []
    for tx, first in ((clipped, grads), (plain, small), (plain, grads)):
        _, state = tx.update(first, tx.init(params), params)
        results.append(np.asarray(tx.update(later, state, params)[0]["b"]))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    assert not np.allclose(results[0], results[2], rtol=1e-2)
