"""Contrastive losses: a query is to find its own key among those of other images.

Negatives are those of one call, over all devices of its axis. Micro-batches that are accumulated do
not see each other, so they are not one large batch: each has the fewer negatives.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def info_nce(
    q: Float[Array, "B D"], k: Float[Array, "B D"], temperature, *, axis_name: str | None = None
) -> Float[Array, ""]:
    """InfoNCE (arXiv 1807.03748, equation 4) of unit vectors, as MoCo v3 has it (arXiv 2104.02057,
    equation 1): the cross-entropy of softmax(q k' / temperature), where k' are all keys, to a
    query's own key. MoCo v3's code multiplies it by 2 * temperature besides; this does not.

    Args:
      q: queries, of any length; they are normalised here, to 0 where they are 0.
      k: keys; row i is the positive of q's row i, all other rows are its negatives. Gradients go
        through them too: stop them where the method has them constant.
      temperature: above 0.
      axis_name: of `jax.pmap` or `jax.vmap`. The keys of all its devices are then gathered, with
        their gradient: the mean over the devices, of the loss and of its gradient, is that of one
        device with all rows. None: nothing is gathered, and no axis is needed.

    Returns:
      In nats, the mean over this device's queries, float32.

    Raises:
      AssertionError: q and k are not two matrices of one shape.
      ValueError: temperature is a number that is not above 0.
    """
    _check(temperature)
    cosines, own = _cosines(q, k, axis_name)
    losses = optax.softmax_cross_entropy_with_integer_labels(cosines / temperature, own)
    return jnp.mean(losses)


def simclr(
    first: Float[Array, "B D"],
    second: Float[Array, "B D"],
    temperature,
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """NT-Xent (SimCLR, arXiv 2002.05709, equation 1): each of the 2B projections is to find its
    image's other one among all but itself, those of its own view too.

    Args:
      first, second: projections of two views, of any length, with their gradient both; rows belong
        together.
      temperature, axis_name: as for `info_nce`.

    Returns:
      In nats, the mean over this device's 2B projections, float32.

    Raises:
      AssertionError, ValueError: as `info_nce`.
    """
    _check(temperature)
    both = jnp.concatenate([first, second])
    cosines, itself = _cosines(both, both, axis_name)
    logits = (cosines / temperature).at[jnp.arange(len(both)), itself].set(-jnp.inf)
    other = jnp.roll(itself, len(first))
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, other))


def accuracy(
    q: Float[Array, "B D"], k: Float[Array, "B D"], *, axis_name: str | None = None
) -> Float[Array, ""]:
    """The share, from 0 to 1, of this device's queries to whom no key is nearer than their own; the
    first of equal ones is the nearest. Arguments are those of `info_nce`; there is no gradient."""
    cosines, own = _cosines(q, k, axis_name)
    return jnp.mean((jnp.argmax(cosines, axis=1) == own).astype(jnp.float32))


def _check(temperature) -> None:
    """Raises ValueError for a number, NumPy's among them, that is no temperature."""
    if isinstance(temperature, numbers.Real) and not temperature > 0:
        raise ValueError(f"temperature={temperature} is not above 0")


def _cosines(q, k, axis_name) -> tuple[Float[Array, "B K"], Int[Array, " B"]]:
    """Cosines of the queries to all keys, and the number of each query's own key."""
    chex.assert_rank([q, k], 2)
    chex.assert_equal_shape([q, k])
    q, k = unit(q), unit(k)
    own = jnp.arange(len(q))
    if axis_name is not None:
        # Transposed, it sums over the devices what they want of this one's keys.
        k = jax.lax.all_gather(k, axis_name, tiled=True)
        own += len(q) * jax.lax.axis_index(axis_name)
    return jnp.matmul(q, k.T, precision=jax.lax.Precision.HIGHEST), own


def unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    """The rows at length 1, float32; 0 where they are 0."""
    x = x.astype(jnp.float32)
    # A zero has a gradient here, which it lacks under a root of its own.
    square = jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24)
    return x * jax.lax.rsqrt(square)
