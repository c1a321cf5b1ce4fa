"""Functions of a state and a batch, compiled for all devices.

`jax.pmap` with `in_axes=(None, 0, None)` takes both as they are, where every device holds the whole
state; `_Sharded` has the step of devices that hold a share of it each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dppmask_jax.fields import Field, one_of
from dppmask_jax.parallel import shares
from dppmask_jax.parallel.collectives import AXIS, mean
from dppmask_jax.parallel.devices import mesh_of
from dppmask_jax.parallel.placement import replicate, split_batch

FIELDS = {
    "parallel.mode": Field(
        "pmap",
        one_of("pmap", "shard_map"),
        "pmap: every device holds the state and updates all of it; shard_map: each holds and "
        "updates a share (ZeRO)",
        free="regrouped",
    ),
}


class Over(NamedTuple):
    """How a step has work done on each device; what it does itself counts for all devices.

    Attributes:
      each: `fn(batch, *shared) -> (batch, agreed)` -> a function of the same arguments. `fn` sees
        the rows of its device, "agreed" is the same on all devices.
      mean: `fn(batch, *shared) -> (tree, others)`, and `like` of the tree's structure and shapes ->
        a function of the same arguments, which returns the means over devices.
    """

    each: Callable
    mean: Callable


def data_parallel_update(step, devices=None, mode: str = "pmap"):
    """Compiles `step(state, batch, shared, over: Over) -> (state, metrics)` for all devices.

    "pmap": each device holds the state whole, and makes the whole step. "shard_map": each holds and
    updates a share of every array that an axis of splits evenly, and has it whole while it works on
    its rows (ZeRO, arXiv 1910.02054); the mean of gradients is exchanged as shares.

    The old state is donated.

    Args:
      devices: what to compile for, such as a topology that is not there; None is all there are.

    Returns:
      `update(state, batch, shared) -> (state, metrics)`, the state from `place`, the batch from
      `split_batch`; `update.lower` takes shapes as well.
    """
    if mode == "shard_map":
        return _Sharded(step, mesh_of(devices))
    over = Over(
        each=lambda fn: fn, mean=lambda fn, like: lambda batch, *shared: mean(fn(batch, *shared))
    )
    return jax.pmap(
        functools.partial(step, over=over),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,),
    )


class _Sharded:
    """`data_parallel_update` of "shard_map"."""

    def __init__(self, step, mesh: Mesh):
        self._mesh, self._stages = mesh, shares.exchange_stages(list(mesh.devices))
        over = Over(self._each, self._mean)

        def update(state, batch, shared):
            state, metrics = step(state, batch, shared, over)
            held = jax.lax.with_sharding_constraint(state, shares.share_shardings(state, mesh))
            whole = NamedSharding(mesh, PartitionSpec())
            return held, jax.lax.with_sharding_constraint(metrics, whole)

        self._update = jax.jit(update, donate_argnums=(0,))

    def __call__(self, state, batch, shared):
        rows = NamedSharding(self._mesh, PartitionSpec(AXIS))
        batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)
        return self._update(state, batch, replicate(shared, self._mesh.devices))

    def lower(self, state, batch, shared):
        """The step for abstract arguments."""

        def shaped(tree, shardings):
            def shape(x, sharding):
                return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

            return jax.tree.map(shape, tree, shardings)

        def alike(tree, spec):
            return shaped(tree, jax.tree.map(lambda _: NamedSharding(self._mesh, spec), tree))

        return self._update.lower(
            shaped(state, shares.share_shardings(state, self._mesh)),
            alike(batch, PartitionSpec(AXIS)),
            alike(shared, PartitionSpec()),
        )

    def _each(self, fn):
        def on_rows(batch, *shared):
            batch, agreed = fn(batch, *shared)
            return jax.tree.map(lambda x: x[None], batch), agreed

        return self._mapped(on_rows, (PartitionSpec(AXIS), PartitionSpec()))

    def _mean(self, fn, like):
        def on_rows(batch, *shared):
            first, others = fn(batch, *shared)
            means = jax.tree.map(functools.partial(shares.mean_share, self._stages), first)
            return means, mean(others)

        return self._mapped(on_rows, (shares.share_specs(like, self._mesh.size), PartitionSpec()))

    def _mapped(self, on_rows, out_specs):
        def call(batch, *shared):
            def whole_of(share, like):
                axis = shares.share_axis(jnp.shape(like), self._mesh.size)
                return shares.whole_of_share(self._stages, share, axis)

            def on_shares(batch, *held):
                whole = jax.tree.map(whole_of, held, shared)
                return on_rows(jax.tree.map(lambda x: x[0], batch), *whole)

            mapped = jax.shard_map(
                on_shares,
                mesh=self._mesh,
                in_specs=(PartitionSpec(AXIS), *shares.share_specs(shared, self._mesh.size)),
                out_specs=out_specs,
                check_vma=False,
            )
            return mapped(batch, *shared)

        return call


def data_parallel_mean(fn):
    """Compiles `fn(state, batch, shared) -> tree`; returns the mean over devices."""
    return jax.pmap(
        lambda state, batch, shared: mean(fn(state, batch, shared)),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
    )


def data_parallel_map(fn):
    """Compiles `fn(state, batch) -> tree of (b, ...)` for this process's devices.

    The result takes host arrays (b, ...) with b a multiple of the local devices and returns host
    arrays (b, ...) in the same order.
    """
    mapped = jax.pmap(fn, axis_name=AXIS, in_axes=(None, 0))

    def call(state, batch):
        out = jax.device_get(mapped(state, split_batch(batch)))
        return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), out)

    return call
