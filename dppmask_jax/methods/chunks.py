"""Losses of a batch, on TPUs computed a few images at a time, forward and backward.

What a decoder keeps of a whole batch for its backward pass goes through the main memory of a chip
many times; that of a few images stays in the fast one. As nothing follows the loss, its gradient is
computed with it: each image is decoded once, and nothing is kept but gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

FAST_BYTES = 20 * 2**20  # of logits, in a fast memory of 128 MiB, as v5e and v6e have


def size_for(images: int, bytes_of_one: int) -> int:
    """How many of the images are one chunk: a divisor of them.

    Args:
      images: of a batch.
      bytes_of_one: what the attention logits of a block take of an image. Chunks are measured by
        them, as they are read and written most often; they need not be the largest array.

    Returns:
      The largest divisor whose array takes `FAST_BYTES` at most. All images, where that is half of
      what would fit, or less: small chunks keep no device busy.
    """
    most = max(1, FAST_BYTES // bytes_of_one)
    size = max(n for n in range(1, min(images, most) + 1) if images % n == 0)
    return size if 2 * size > min(images, most) else images


def mean(loss: Callable, size: int, params, latent, others):
    """The mean of a loss over a batch: on TPUs chunk by chunk, elsewhere, where a small batch keeps
    a device less busy, at once.

    Args:
      loss: (params, latent, others) of some images -> () float32, a mean over them. It closes over
        no array that depends on the parameters.
      size: images of a chunk, a divisor of theirs.
      params: a tree of floating-point arrays.
      latent: (B, ...), floating point.
      others: a tree of (B, ...) arrays that have no gradient.

    Returns:
      () float32, with gradients in `params` and `latent`.
    """
    if size == len(latent):
        return loss(params, latent, others)
    return _mean(loss, size, params, latent, others)


def in_chunks(find: Callable, size: int, params, latent, others):
    """What `find` gives of chunks of a batch, as of all of it.

    Args:
      find: `jax.value_and_grad(loss, argnums=(0, 1))`, see `mean`, as are the others.

    Returns:
      (mean, (gradient in params, gradient in latent)).
    """
    number = len(latent) // size

    # Slices of arrays that stay as they are: a scan would have them copied into its own order.
    def add(i, total):
        sums, of_latent = total
        first = i * size
        chunk = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), (latent, others)
        )
        value, (of_params, of_chunk) = find(params, *chunk)
        sums = jax.tree.map(jnp.add, sums, (value, of_params))
        return sums, jax.lax.dynamic_update_slice_in_dim(of_latent, of_chunk, first, 0)

    start = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params))
    found = jax.lax.fori_loop(0, number, add, (start, jnp.zeros_like(latent)))
    (value, of_params), of_latent = jax.tree.map(lambda x: (x / number).astype(x.dtype), found)
    return value, (of_params, of_latent)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean(loss, size, params, latent, others):
    return loss(params, latent, others)


def _mean_forward(loss, size, params, latent, others):
    find = jax.value_and_grad(loss, argnums=(0, 1))
    return jax.lax.platform_dependent(
        params, latent, others, tpu=functools.partial(in_chunks, find, size), default=find
    )


def _mean_backward(loss, size, gradients, of_mean):
    of_params, of_latent = jax.tree.map(lambda x: (x * of_mean).astype(x.dtype), gradients)
    return of_params, of_latent, None


_mean.defvjp(_mean_forward, _mean_backward)
