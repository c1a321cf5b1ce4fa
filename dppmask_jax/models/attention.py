"""Softmax attention that keeps little for its backward pass.

Automatic differentiation keeps the weights and the logits of every head in float32. In a ViT-B/16
MAE they take most of the memory, and most of the time of a step on a TPU. Here the logits alone are
kept, in the type of the inputs, and the backward pass computes the weights again (Dao et al.,
FlashAttention, arXiv 2205.14135, section 3.1; there block by block).

Tokens are the last axis: with them in a vector unit's lanes, rather than the 32 or 64 channels of
a head, no product needs its operands rearranged.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention_logits(query, key, bias=None):
    """(B, H, C, L) twice -> (B, H, key, query), summed in float32, of the inputs' type; `bias`
    (H, query, key) is added."""
    logits = _over_channels(key, query)
    if bias is not None:
        logits = logits + bias.mT.astype(jnp.float32)
    return logits.astype(query.dtype)


def attention_weights(query, key, bias=None):
    """(B, H, query, key) float32: how much each token attends to each, for `attend`'s inputs."""
    return jax.nn.softmax(attention_logits(query, key, bias).astype(jnp.float32), axis=-2).mT


@jax.custom_vjp
def attend(query, key, value, bias=None):
    """Weighted means of the values, with softmax(query . key + bias) for weights.

    Args:
      query, key, value: (B, H, C, L), C channels of L tokens in H heads; queries already scaled.
      bias: (H, query, key), of all examples alike; None is 0.

    Returns:
      (B, H, C, L) of the same type. Softmax is computed in float32.
    """
    return _attend(query, key, value, bias)[0]


def _attend(query, key, value, bias=None):
    logits = attention_logits(query, key, bias)
    largest = jnp.max(logits, axis=-2, keepdims=True).astype(jnp.float32)
    weights = jnp.exp(logits.astype(jnp.float32) - largest).astype(value.dtype)
    # One more channel, of ones, makes the matrix unit add up the weights as well.
    ones = jnp.ones_like(value[:, :, :1])
    sums = _over_keys(weights, jnp.concatenate([value, ones], axis=2))
    out, total = sums[:, :, :-1], sums[:, :, -1:]
    out = (out / total).astype(value.dtype)
    return out, (query, key, value, bias, out, logits, largest + jnp.log(total))


def _attend_backward(kept, gradient):
    query, key, value, bias, out, logits, log_total = kept
    weights = jnp.exp(logits.astype(jnp.float32) - log_total)
    # The backward pass of softmax subtracts the sum over keys of weight times its gradient.
    common = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-2, keepdims=True)
    of_logits = weights * (_over_channels(value, gradient) - common)
    of_bias = None if bias is None else jnp.sum(of_logits, axis=0).mT.astype(bias.dtype)
    of_logits = of_logits.astype(query.dtype)
    return (
        _over_keys(of_logits, key).astype(query.dtype),
        _over_queries(of_logits, query).astype(key.dtype),
        _over_queries(weights.astype(value.dtype), gradient).astype(value.dtype),
        of_bias,
    )


attend.defvjp(_attend, _attend_backward)


def _over_channels(keys, queries):
    return jnp.einsum("bhck,bhcq->bhkq", keys, queries, preferred_element_type=jnp.float32)


def _over_keys(weights, values):
    return jnp.einsum("bhkq,bhck->bhcq", weights, values, preferred_element_type=jnp.float32)


def _over_queries(weights, values):
    return jnp.einsum("bhkq,bhcq->bhck", weights, values, preferred_element_type=jnp.float32)
