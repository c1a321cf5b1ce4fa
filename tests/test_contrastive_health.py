import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax import parallel
from dppmask_jax.methods import contrastive_health

HEALTHY = {
    "positive_cosine": 0.7,
    "negative_cosine": 0.1,
    "spread": 0.9,
    "effective_rank": 20.0,
}


@jax.jit
def over_devices(queries, keys):
    """The metrics of (devices, b, D) vectors; one row of values for each device."""
    return jax.vmap(contrastive_health.measured, axis_name=parallel.AXIS)(queries, keys)


def measured(queries, keys):
    found = over_devices(jnp.asarray(queries)[None], jnp.asarray(keys)[None])
    return {name: float(value[0]) for name, value in found.items()}


def in_float64(queries, keys):
    """Each metric by its definition: all pairs, numpy's std, eigenvalues of the covariance."""
    queries, keys = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), keys)
    )
    cosines = queries @ keys.T
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    of_covariance = np.linalg.eigvalsh(np.cov(queries, rowvar=False))
    return {
        "positive_cosine": np.diag(cosines).mean(),
        "negative_cosine": others.mean(),
        "spread": queries.std(axis=0).mean() * np.sqrt(queries.shape[1]),
        "effective_rank": of_covariance.sum() ** 2 / np.sum(of_covariance**2),
    }


def test_two_opposite_pairs():
    # Unit queries +-(.6, .8): one direction, std (.6, .8). Keys are (1, 0) and (0, -1).
    queries, keys = np.array([[3.0, 4.0], [-6.0, -8.0]]), np.array([[2.0, 0.0], [0.0, -5.0]])
    found = measured(queries, keys)
    np.testing.assert_allclose(found["positive_cosine"], (0.6 + 0.8) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["negative_cosine"], (-0.8 - 0.6) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["spread"], 0.7 * np.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(found["effective_rank"], 1.0, rtol=1e-5)


def test_dimensions_are_counted_by_hand():
    axes = np.eye(4)
    # Both ways along four axes; about their mean, four axes are the corners of a solid.
    both = np.concatenate([axes, -axes])
    np.testing.assert_allclose(measured(both, both)["effective_rank"], 4.0, rtol=1e-5)
    np.testing.assert_allclose(measured(axes, axes)["effective_rank"], 3.0, rtol=1e-5)
    # Variances 3/4 and 1/4.
    uneven = np.concatenate([both[[0, 4]]] * 3 + [both[[1, 5]]])
    found = measured(uneven, uneven)["effective_rank"]
    np.testing.assert_allclose(found, 1 / (9 / 16 + 1 / 16), rtol=1e-5)


def test_what_all_embeddings_share_is_no_dimension():
    """Random layers leave a large mean, which no warning is to be given of."""
    noise = np.random.default_rng(4).normal(size=(256, 16)).astype(np.float32)
    values = measured(noise + 3.0, noise + 3.0)
    assert values["negative_cosine"] > 0.85 and values["effective_rank"] > 12
    assert measured(np.ones((64, 16)), noise[:64])["effective_rank"] == 0


@pytest.mark.parametrize("shape", [(12, 5), (8, 24)])
def test_definitions_in_float64(shape):
    rng = np.random.default_rng(0)
    queries = (rng.normal(size=shape) * np.geomspace(1, 0.05, shape[1]) + 0.2).astype(np.float32)
    keys = (queries + 0.3 * rng.normal(size=shape)).astype(np.float32)
    found, expected = measured(queries, keys), in_float64(queries, keys)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_devices_make_no_difference():
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(2, 12, 6)).astype(np.float32)
    whole = measured(queries, keys)
    found = over_devices(queries.reshape(4, 3, 6), keys.reshape(4, 3, 6))
    for name, value in found.items():
        least = 1e-6 if name.endswith("cosine") else 0
        np.testing.assert_allclose(
            value, np.full(4, whole[name]), rtol=1e-5, atol=least, err_msg=name
        )


def test_metrics_have_no_gradient():
    keys = jnp.eye(3)[:, ::-1]

    def total(queries):
        return sum(jnp.sum(v) for v in over_devices(queries[None], keys[None]).values())

    assert not np.any(jax.grad(total)(jnp.arange(9.0).reshape(3, 3) + jnp.eye(3)))


def collapsed(name):
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(2, 64, 16))
    if name == "point":
        return 1.0 + 0.01 * noise
    if name == "zero":  # batch norm of equal rows
        return np.zeros((2, 64, 16))
    if name == "line":
        return np.sign(noise[:1, :, :1]) * np.ones(16) + 0.01 * noise
    return noise


@pytest.mark.parametrize(
    "name,words",
    [("point", "to a point"), ("zero", "to a point"), ("line", "to a line"), ("noise", "to noise")],
)
def test_a_lasting_collapse_is_named_with_its_cures(name, words):
    values = measured(*collapsed(name).astype(np.float32))
    assert all(map(np.isfinite, values.values()))
    watch = contrastive_health.watch()
    assert watch(10, values) == watch(100, values) == ""
    assert watch(105, HEALTHY) == ""
    assert watch(110, values) == watch(200, values) == ""
    warning = watch(210, values)
    assert f"collapse {words}" in warning and "config.optim.base_lr" in warning
    assert "\n" not in warning
    assert watch(220, HEALTHY) == "" and watch(230, values) == ""


def test_healthy_embeddings_are_not_warned_of():
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(64, 16))
    values = measured(queries, queries + rng.normal(size=(64, 16)))
    watch = contrastive_health.watch()
    assert not any(watch(step, values) for step in range(0, 1000, 10))
