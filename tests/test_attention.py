import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.models.attention import attend, attention_weights

SHAPE = (2, 3, 8, 13)  # B, H, C, L


def inputs(scale=1.0):
    rng = np.random.default_rng(0)
    return [scale * rng.normal(size=SHAPE) for _ in range(3)], rng.normal(size=SHAPE)


def reference(query, key, value, cotangent):
    """Attention, its weights and its three gradients in float64, written out."""
    logits = np.einsum("bhcq,bhck->bhqk", query, key)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhqk,bhck->bhcq", weights, value)
    of_weights = np.einsum("bhcq,bhck->bhqk", cotangent, value)
    of_logits = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
    gradients = (
        np.einsum("bhqk,bhck->bhcq", of_logits, key),
        np.einsum("bhqk,bhcq->bhck", of_logits, query),
        np.einsum("bhqk,bhcq->bhck", weights, cotangent),
    )
    return out, weights, gradients


def run(arrays, cotangent, dtype):
    arrays = [jnp.asarray(a, dtype) for a in arrays]
    out, backward = jax.vjp(attend, *arrays)
    return out, backward(jnp.asarray(cotangent, dtype))


def distance(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def test_value_weights_and_gradients_equal_float64():
    arrays, cotangent = inputs()
    expected, weights, gradients = reference(*arrays, cotangent)
    out, backward = run(arrays, cotangent, jnp.float32)
    assert distance(out, expected) < 1e-6
    for got, want in zip(backward, gradients, strict=True):
        assert distance(got, want) < 2e-6
    query, key, _ = (jnp.asarray(a, jnp.float32) for a in arrays)
    assert distance(attention_weights(query, key), weights) < 1e-6


@pytest.mark.parametrize("scale,times", [(0.6, 1.5), (1.0, 3.0)])
def test_rounded_logits_cost_little_precision(scale, times):
    # Logits with a standard deviation of 1.0 and of 2.8: the error of rounding grows with them.
    arrays, cotangent = inputs(scale)
    # Both forms see the same rounded inputs.
    arrays = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in arrays]
    cotangent = np.asarray(jnp.asarray(cotangent, jnp.bfloat16), np.float64)
    expected, _, gradients = reference(*arrays, cotangent)

    def plain(query, key, value):
        logits = jnp.einsum("bhcq,bhck->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bhck->bhcq", weights, value)

    rounded = [jnp.asarray(a, jnp.bfloat16) for a in (*arrays, cotangent)]
    out, backward = jax.vjp(attend, *rounded[:3])
    plain_out, plain_backward = jax.vjp(plain, *rounded[:3])
    pairs = [(out, plain_out, expected)]
    pairs += list(zip(backward(rounded[3]), plain_backward(rounded[3]), gradients, strict=True))
    for got, usual, want in pairs:
        assert got.dtype == jnp.bfloat16
        assert distance(got, want) < times * distance(usual, want)
        assert distance(got, want) < 1e-2


def test_a_bias_is_added_to_the_logits_and_gets_its_gradient():
    arrays, cotangent = inputs()
    bias = np.random.default_rng(1).normal(size=(3, 13, 13))
    # The same as logits of queries and keys with more channels.
    apart = np.broadcast_to(np.eye(13), (2, 3, 13, 13))
    wider = [
        np.concatenate([arrays[0], np.broadcast_to(bias.swapaxes(1, 2), apart.shape)], axis=2),
        np.concatenate([arrays[1], apart], axis=2),
    ]
    expected, weights, gradients = reference(*wider, arrays[2], cotangent)
    floats = [jnp.asarray(a, jnp.float32) for a in (*arrays, bias)]
    out, backward = jax.vjp(attend, *floats)
    found = backward(jnp.asarray(cotangent, jnp.float32))
    assert distance(out, expected) < 1e-6
    assert distance(attention_weights(floats[0], floats[1], floats[3]), weights) < 1e-6
    wanted = (gradients[0][:, :, :8], gradients[1][:, :, :8], gradients[2])
    for got, want in zip(found[:3], wanted, strict=True):
        assert distance(got, want) < 2e-6
    assert distance(found[3], gradients[0][:, :, 8:].sum(axis=0).swapaxes(1, 2)) < 2e-6


def test_large_logits_stay_finite():
    arrays, cotangent = inputs(scale=40.0)
    expected, _, gradients = reference(*arrays, cotangent)
    out, backward = run(arrays, cotangent, jnp.float32)
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in backward)
    assert distance(backward[2], gradients[2]) < 1e-3
