import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.losses.contrastive import accuracy, info_nce, simclr

ROWS, WIDTH, TEMPERATURE = 8, 6, 0.2
jitted = jax.jit(info_nce)
with_gradient = jax.jit(jax.value_and_grad(info_nce, argnums=(0, 1)))


def vectors(seed=0, rows=ROWS):
    rng = np.random.default_rng(seed)
    # Of other lengths than 1, and keys near their queries.
    q = rng.normal(size=(rows, WIDTH)) * np.geomspace(0.1, 10, rows)[:, None]
    return q.astype(np.float32), (q + rng.normal(size=q.shape)).astype(np.float32)


def in_float64(q, k, temperature=TEMPERATURE):
    """(loss, its gradient by q, by k), all written out."""
    q, k = np.float64(q), np.float64(k)
    length_q, length_k = (np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    u, v = q / length_q, k / length_k
    logits = u @ v.T / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    loss = -np.mean(np.log(np.diag(weights)))
    of_logits = (weights - np.eye(len(q))) / (len(q) * temperature)
    of_u, of_v = of_logits @ v, of_logits.T @ u

    def through_unit(of_unit, unit, length):
        along = np.sum(of_unit * unit, axis=1, keepdims=True)
        return (of_unit - along * unit) / length

    return loss, through_unit(of_u, u, length_q), through_unit(of_v, v, length_k)


def test_two_pairs_by_hand():
    # Cosines (.6, .8) and (1, 0); the keys' lengths make no difference.
    q, k = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[3.0, 4.0], [0.0, 5.0]])
    by_hand = (np.log(1 + np.exp(-0.6 / 0.5)) + np.log(1 + np.exp(-0.2 / 0.5))) / 2
    np.testing.assert_allclose(jitted(q, k, 0.5), by_hand, rtol=1e-6)
    assert accuracy(q, k) == 1.0
    assert accuracy(q, k[::-1]) == 0.0
    assert accuracy(q, k[jnp.array([0, 0])]) == 0.5  # the first of equal ones is the nearest


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_devices_have_the_loss_and_gradient_of_the_whole_batch(devices):
    q, k = vectors()
    weights = np.eye(WIDTH) + 0.3 * np.random.default_rng(1).normal(size=(2, WIDTH, WIDTH))
    weights = weights.astype(np.float32)

    def step(weights, q, k):
        def loss(weights):
            return info_nce(q @ weights[0], k @ weights[1], TEMPERATURE, axis_name="all")

        found = *jax.value_and_grad(loss)(weights), accuracy(q, k, axis_name="all")
        return jax.lax.pmean(found, "all")

    mapped = jax.pmap(step, "all", in_axes=(None, 0, 0), devices=jax.devices()[:devices])
    split = (devices, ROWS // devices, WIDTH)
    value, gradient, share = mapped(weights, q.reshape(split), k.reshape(split))
    images = np.float64(q) @ weights[0], np.float64(k) @ weights[1]
    expected, of_q, of_k = in_float64(*images)
    np.testing.assert_allclose(value, np.full(devices, expected), rtol=1e-5)
    by_hand = np.stack([np.float64(q).T @ of_q, np.float64(k).T @ of_k])
    for of_device in gradient:
        np.testing.assert_allclose(of_device, by_hand, rtol=1e-5, atol=1e-5 * np.abs(by_hand).max())
    cosines = (q / np.linalg.norm(q, axis=1)[:, None]) @ (k / np.linalg.norm(k, axis=1)[:, None]).T
    np.testing.assert_allclose(share, np.full(devices, np.mean(cosines.argmax(1) == range(ROWS))))


def test_without_an_axis_it_is_a_plain_function():
    q, k = vectors(2)
    expected, of_q, of_k = in_float64(q, k, 1.0)
    value, gradient = with_gradient(q, k, 1.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for found, by_hand in zip(gradient, (of_q, of_k), strict=True):
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-5 * np.abs(by_hand).max())
    np.testing.assert_allclose(jitted(7 * q, k / 3, 1.0), value, rtol=1e-6)


def test_accumulated_micro_batches_are_not_one_large_batch():
    q, k = vectors(3)
    whole = float(jitted(q, k, TEMPERATURE))
    halves = [(q[part], k[part]) for part in (slice(4), slice(4, 8))]
    losses = [float(jitted(*half, TEMPERATURE)) for half in halves]
    assert np.mean(losses) < whole - 0.1  # each query has three negatives instead of seven
    np.testing.assert_allclose(losses, [in_float64(*half)[0] for half in halves], rtol=1e-5)


def test_zeros_are_as_far_from_all_keys_and_have_a_gradient():
    q, k = vectors(4, rows=4)
    value, gradient = with_gradient(np.zeros_like(q), k, TEMPERATURE)
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)
    assert np.all(np.isfinite(gradient[0]))


def test_shapes_and_temperature_are_checked():
    q, k = vectors()
    with pytest.raises(AssertionError):
        info_nce(q, k[:4], 1.0)
    with pytest.raises(AssertionError):
        info_nce(q[None], k[None], 1.0)
    for temperature in (0, -0.2, float("nan"), np.float32(0), np.int64(-1)):
        for loss in (info_nce, simclr):
            with pytest.raises(ValueError, match="temperature"):
                loss(q, k, temperature)
