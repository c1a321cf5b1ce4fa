"""Checks of arguments, and the batching, that kernels, greedy selection and sampling share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def constants(*arrays):
    """Float32, and constant to autodiff."""
    return [lax.stop_gradient(jnp.asarray(array).astype(jnp.float32)) for array in arrays]


def real(array, name):
    array = jnp.asarray(array)
    if jnp.iscomplexobj(array):
        raise ValueError(f"{name} must be real, got {array.dtype}; take its modulus, say")
    return array


def checked_num_keep(num_keep, num_patches, name="num_keep"):
    if isinstance(num_keep, jax.core.Tracer):
        raise ValueError(f"{name} is static: bind it with functools.partial before jit or vmap")
    is_int = isinstance(num_keep, (int, np.integer))
    if not is_int or not 1 <= num_keep <= num_patches:
        raise ValueError(f"{name} must be an int in 1..{num_patches}, got {num_keep}")
    return int(num_keep)


@functools.cache
def batchable(serial, batched, *static):
    """`serial(*static, ...)` of one image, which under vmap takes the form its platform runs best.

    Both functions take a batch. On a CPU that is `serial`, one image after another (in one loop
    every factor would stream through the cache at each pick, until the last image stops).
    """
    serial, batched = functools.partial(serial, *static), functools.partial(batched, *static)

    def over_images(*args):
        return lax.platform_dependent(*args, cpu=serial, default=batched)

    def one_image(*args):
        return jax.tree.map(lambda out: out[0], serial(*(arg[None] for arg in args)))

    def broadcast(axis_size, in_batched, args):
        return [
            arg if is_batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
            for arg, is_batched in zip(args, in_batched, strict=True)
        ]

    # The jit is for callers without one: it keeps what was compiled from call to call.
    run_one = jax.custom_batching.custom_vmap(jax.jit(one_image))
    run_many = jax.custom_batching.custom_vmap(jax.jit(over_images))

    @run_one.def_vmap
    def _(axis_size, in_batched, *args):
        return _all_batched(run_many(*broadcast(axis_size, in_batched, args)))

    @run_many.def_vmap
    def _(axis_size, in_batched, *args):  # vmap of vmap: one longer batch
        args = broadcast(axis_size, in_batched, args)
        images = axis_size * args[0].shape[1]
        out = run_many(*(arg.reshape(images, *arg.shape[2:]) for arg in args))
        unflatten = lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:])  # noqa: E731
        return _all_batched(jax.tree.map(unflatten, out))

    return run_one


def _all_batched(out):
    """(out, True for each of its arrays), as rules of `custom_vmap` return it."""
    return out, jax.tree.map(lambda _: True, out)
