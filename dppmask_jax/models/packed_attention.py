"""Softmax attention of short sequences as a TPU likes it: heads side by side in the lanes.

A head of 64 channels fills half of the 128 lanes of a vector unit, and 50 tokens fill less. Here as
many heads as fill the lanes are one group. Its keys and values stay as they are; its queries come
once for each head, zero in the channels of the others. So no array is rearranged into heads, and
the logits of a group, (keys, heads x queries), nearly fill the lanes. Products have twice the
operations or more, of which a matrix unit has plenty.

For the backward pass it keeps keys, values, the queries of each head, and the logits, in the type
of the inputs; the weights are computed again, as in `attention.attend`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

LANES = 128
# Of queries, keys and values: between 14 MB, where this was slower, as all of it stays in the fast
# memory, and 59 MB, where it was faster.
LEAST_BYTES = 32 * 2**20


def pays(qkv, heads: int) -> bool:
    """Whether a TPU is faster this way, by the compiler's estimates: with heads that make whole
    groups, sequences no longer than a head has channels, and batches that leave the fast memory.

    Args:
      qkv: (B, L, 3 D). Where B is a symbol, as in a program for any batch, the answer is no.
    """
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    channels = width // heads
    if channels >= LANES or LANES % channels or width % LANES or length > channels:
        return False
    return not is_symbolic_dim(batch) and qkv.size * qkv.dtype.itemsize > LEAST_BYTES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(heads: int, qkv):
    """Weighted means of the values, with softmax(query . key / sqrt(C)) for weights.

    Args:
      heads: in as many parts are queries, keys and values, C channels each.
      qkv: (B, L, 3 D), queries, keys and values; `pays` says of which heads and lengths.

    Returns:
      (B, L, D) of the same type. Softmax is computed in float32.
    """
    return _attend(heads, qkv)[0]


def _attend(heads, qkv):
    query, key, value = map(_grouped, jnp.split(qkv, 3, axis=-1))
    own, scale = _own(heads, query)
    query = _apart(query, own)
    logits = (_product("bgkc,bgqc->bgkq", key, query) * scale).astype(query.dtype)
    wide = logits.astype(jnp.float32)
    largest = jnp.max(wide, axis=2, keepdims=True)
    total = jnp.sum(jnp.exp(wide - largest), axis=2, keepdims=True)
    weights = (jnp.exp(wide - largest) * (1 / total)).astype(value.dtype)
    out = _together(_product("bgkq,bgkc->bgqc", weights, value), own).astype(value.dtype)
    return _ungrouped(out), (query, key, value, logits, largest + jnp.log(total))


def _attend_backward(heads, kept, gradient):
    query, key, value, logits, log_total = kept
    own, scale = _own(heads, key)
    gradient = _apart(_grouped(gradient), own)
    weights = jnp.exp(logits.astype(jnp.float32) - log_total)
    of_weights = _product("bgkc,bgqc->bgkq", value, gradient)
    # The backward pass of softmax subtracts the sum over keys of weight times its gradient.
    of_logits = weights * (of_weights - jnp.sum(weights * of_weights, axis=2, keepdims=True))
    of_logits = (of_logits * scale).astype(query.dtype)
    parts = (
        _together(_product("bgkq,bgkc->bgqc", of_logits, key), own),
        _product("bgkq,bgqc->bgkc", of_logits, query),
        _product("bgkq,bgqc->bgkc", weights.astype(value.dtype), gradient),
    )
    return (jnp.concatenate([_ungrouped(part.astype(query.dtype)) for part in parts], axis=-1),)


attend.defvjp(_attend, _attend_backward)


def _own(heads: int, grouped):
    """(P, LANES) of 0 and 1, which channels are each head's; and 1 / sqrt(C)."""
    channels = grouped.shape[1] * LANES // heads
    ones = jnp.repeat(jnp.eye(LANES // channels, dtype=grouped.dtype), channels, axis=1)
    return ones, channels**-0.5


def _grouped(x):
    """(B, L, D) -> (B, G, L, LANES)."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, LANES), 1, 2)


def _ungrouped(x):
    """Undoes `_grouped`."""
    return jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


def _apart(x, own):
    """(B, G, L, LANES) -> (B, G, P L, LANES), each head's own channels."""
    return jnp.concatenate([x * head for head in own], axis=2)


def _together(x, own):
    """The sum over heads of their own channels: undoes `_apart`."""
    parts = jnp.split(x, len(own), axis=2)
    return sum(part * head for part, head in zip(parts, own, strict=True))


def _product(subscripts, left, right):
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)
