"""Where arrays lie: whole on every device, shared out, or on the host."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dppmask_jax.parallel.devices import mesh_of
from dppmask_jax.parallel.shares import mesh_of_shares, shardings_of


def replicate(tree, mesh: Mesh | None = None):
    """Puts a tree on every device of every process, once, without a device axis.

    Args:
      mesh: has the devices of all processes that get it; None: all there are.
    """
    sharding = NamedSharding(mesh or mesh_of(), PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x):
        # device_put on all devices gives an array that cannot be read (jax 0.10) where each process
        # has one device.
        copies = [jax.device_put(x, device) for device in jax.local_devices()]
        return jax.make_array_from_single_device_arrays(np.shape(x), sharding, copies)

    return jax.tree.map(put, tree)


def place(whole, mode: str):
    """Puts a state that every device has where the step of a mode wants it.

    Args:
      whole: from `replicate`.
      mode: see `data_parallel_update`.
    """
    if mode == "pmap":
        return whole
    devices = jax.tree.leaves(whole)[0].sharding.mesh.devices.ravel()
    shardings = shardings_of(whole, mesh_of_shares(devices))
    # Of what every device has, each keeps its share: nothing travels.
    return jax.jit(_same, out_shardings=shardings)(whole)


def describe_shares(state) -> str:
    """One line on what each device holds of a state once all of them share it."""
    shardings = shardings_of(state, mesh_of_shares(mesh_of().devices))

    def held(x, sharding) -> int:
        return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    of_one = sum(jax.tree.leaves(jax.tree.map(held, state, shardings))) / 1e6
    of_all = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    return f"{of_one:,.1f} of {of_all:,.1f} MB on each device"


def gather(tree):
    """Puts all of a state on every device, whatever the mode; all processes call it together.

    Returns once it is there: a process that ended before would take its shares with it.
    """
    shared = [leaf for leaf in jax.tree.leaves(tree) if not _is_whole(leaf)]
    if not shared:
        return tree
    return jax.block_until_ready(_gatherer(shared[0].sharding.mesh)(tree))


def _is_whole(x) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_replicated


@functools.cache
def _gatherer(mesh: Mesh):
    return jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _same(tree):
    return tree


def split_batch(batch):
    """(b, ...) host arrays of this process -> (local devices, b / local devices, ...)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape((local, -1, *x.shape[1:])), batch)


def to_host(tree):
    """Arrays as NumPy ones, whole; one after the other where devices hold shares, and all processes
    call it together then.

    On a CPU they are views: as long as one lives, its buffer cannot be donated.
    """
    return jax.tree.map(
        lambda x: np.asarray(gather(x).addressable_data(0)) if isinstance(x, jax.Array) else x, tree
    )
