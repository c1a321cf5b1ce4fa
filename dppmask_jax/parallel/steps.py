"""Functions of a state and a batch, compiled for all devices.

`jax.pmap` with `in_axes=(None, 0, None)` takes both as they are, where every device holds the whole
state; `_Sharded` has the step of devices that hold a share of it each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from dppmask_jax.fields import Field, one_of
from dppmask_jax.parallel.collectives import AXIS, mean
from dppmask_jax.parallel.devices import mesh_of
from dppmask_jax.parallel.placement import replicate, split_batch
from dppmask_jax.parallel.shares import Shared, mesh_of_shares, shardings_of

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
    updates a share of every array that splits evenly over them, and has it whole while it works
    on its rows (ZeRO, arXiv 1910.02054); the mean of gradients is exchanged as shares.

    The old state is donated.

    Args:
      devices: what to compile for, such as a topology that is not there; None is all there are.

    Returns:
      `update(state, batch, shared) -> (state, metrics)`, the state from `place`, the batch from
      `split_batch`; `update.lower` takes shapes as well.
    """
    if mode == "shard_map":
        return _Sharded(step, devices)
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

    def __init__(self, step, devices):
        self._mesh = mesh_of(devices)
        self._mesh_of_shares = mesh_of_shares(self._mesh.devices)
        over = Over(self._each, self._mean)

        def update(state, batch, shared):
            state, metrics = step(state, batch, shared, over)
            held = jax.lax.with_sharding_constraint(state, self._shardings(state))
            whole = NamedSharding(self._mesh_of_shares, PartitionSpec())
            return held, jax.lax.with_sharding_constraint(metrics, whole)

        self._update = jax.jit(update, donate_argnums=(0,))

    def __call__(self, state, batch, shared):
        rows = NamedSharding(self._mesh, PartitionSpec(AXIS))
        batch = jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), batch)
        return self._update(state, batch, replicate(shared, self._mesh_of_shares))

    def lower(self, state, batch, shared):
        """The step for abstract arguments."""

        def shape(x, sharding):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        def alike(tree, sharding):
            return jax.tree.map(lambda x: shape(x, sharding), tree)

        return self._update.lower(
            jax.tree.map(shape, state, self._shardings(state)),
            alike(batch, NamedSharding(self._mesh, PartitionSpec(AXIS))),
            alike(shared, NamedSharding(self._mesh_of_shares, PartitionSpec())),
        )

    def _shardings(self, state):
        return shardings_of(state, self._mesh_of_shares)

    def _each(self, fn):
        def on_rows(batch, *shared):
            batch, agreed = fn(batch, *shared)
            return jax.tree.map(lambda x: x[None], batch), agreed

        def call(batch, *shared):
            specs = (PartitionSpec(AXIS), PartitionSpec())
            batch, agreed = self._mapped(on_rows, specs)(batch, *shared)
            return batch, self._beside_shares(agreed)

        return call

    def _mean(self, fn, like):
        held = Shared(like, self._mesh_of_shares)

        def on_rows(batch, *shared):
            first, others = fn(batch, *shared)
            return held.mean(first), mean(others)

        def call(batch, *shared):
            pieces, others = self._mapped(on_rows, (held.specs, PartitionSpec()))(batch, *shared)
            return held.arrays(pieces), self._beside_shares(others)

        return call

    def _beside_shares(self, whole):
        """Relabels what every device has whole: operations want one mesh for all they work on."""
        spec = PartitionSpec()
        return jax.shard_map(
            lambda x: x, mesh=self._mesh_of_shares, in_specs=spec, out_specs=spec, check_vma=False
        )(whole)

    def _mapped(self, on_rows, out_specs):
        def call(batch, *shared):
            held = Shared(shared, self._mesh_of_shares)

            def on_pieces(batch, pieces):
                return on_rows(jax.tree.map(lambda x: x[0], batch), *held.whole(pieces))

            mapped = jax.shard_map(
                on_pieces,
                mesh=self._mesh,
                in_specs=(PartitionSpec(AXIS), held.specs),
                out_specs=out_specs,
                check_vma=False,
            )
            return mapped(batch, held.pieces(shared))

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
