"""Devices and processes. No other file knows how many there are.

The state is one array a leaf, without a device axis; batches gain a leading axis of this process's
devices. `jax.pmap` with `in_axes=(None, 0, None)` takes both as they are, where every device holds
the whole state; `_Sharded` has the step of devices that hold a share of it each.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, one_of
from dppmask_jax.words import count

AXIS = "batch"
FIELDS = {
    "parallel.mode": Field(
        "pmap",
        one_of("pmap", "shard_map"),
        "pmap: every device holds the state and updates all of it; shard_map: each holds and "
        "updates a share (ZeRO)",
        free="regrouped",
    ),
}
_DECISIONS = itertools.count()  # a barrier's name is used once


def wait_for_all(what: str) -> None:
    """Returns once every process got here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _wait_for_main() -> None:
    """Returns once every process got here, an hour after the first at the latest: process 0 may
    have a lock to watch. In a computation CPUs wait for each other 40 s, and abort."""
    multihost.sync_global_processes(
        f"decided {next(_DECISIONS)}", timeout=3600, processes=set(range(jax.process_count()))
    )


def is_alone() -> bool:
    """True where the run has no other process."""
    return jax.process_count() == 1


def decided_by_main(decide: Callable[[], int]) -> int:
    """Calls `decide()`, which returns a number from 0 up, in the main process alone.

    Returns:
      Its result, in every process.

    Raises:
      InputError: in every process, where `decide` raises it.
    """
    refusal, result = None, -1
    if is_main():
        try:
            result = decide()
        except InputError as error:
            refusal = error
    if jax.process_count() > 1:
        _wait_for_main()
        result = int(multihost_utils.broadcast_one_to_all(np.int32(result)))
    if result < 0:
        raise refusal or InputError("process 0 refuses to start; it says why")
    return result


def is_main() -> bool:
    """True in the one process that writes metrics and figures."""
    return jax.process_index() == 0


def process_shard() -> tuple[int, int]:
    """(this process's number, number of processes)."""
    return jax.process_index(), jax.process_count()


def describe() -> str:
    """One line on the devices: how many, of what kind, over how many processes."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind} ({device.platform}), "
        f"{count(jax.process_count(), 'process', 'processes')}"
    )


def on_cpu() -> bool:
    """Whether the devices are CPUs."""
    return jax.devices()[0].platform == "cpu"


def on_tpu(devices=None) -> bool:
    """Whether these devices are TPUs; None: all there are."""
    return (devices or jax.devices())[0].platform == "tpu"


def idle_dtype(dtype: str) -> str:
    """Why a dtype only costs precision on these devices, in words; "" where it saves time."""
    if dtype != "bfloat16" or not on_cpu():
        return ""
    return "on a CPU bfloat16 costs precision and saves no time: add --config.model.dtype=float32"


def check_batch(batch_size: int, accum_steps: int, field: str, group: int = 1) -> None:
    """Raises InputError unless every device gets the same whole number of groups of images."""
    parts = jax.device_count() * accum_steps * group
    if batch_size < 1 or batch_size % parts:
        raise InputError(
            f"{field}={batch_size} is not a positive multiple of {parts} "
            f"({count(jax.device_count(), 'device')} x {count(accum_steps, 'accumulation step')}"
            + (f" x {group} images that are mixed" if group > 1 else "")
            + "); "
            f"the nearest larger one is {max(1, -(-batch_size // parts)) * parts}"
        )


def round_up(batch_size: int) -> int:
    """The smallest batch of at least `batch_size` that splits evenly over all devices."""
    return -(-batch_size // jax.device_count()) * jax.device_count()


def replicate(tree, devices=None):
    """Puts a tree on every device of every process, once, without a device axis.

    Args:
      devices: those of all processes that get it; None is all there are.
    """
    sharding = NamedSharding(_mesh(devices), PartitionSpec())
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
    shardings = _share_shardings(whole, jax.tree.leaves(whole)[0].sharding.mesh)
    # Of what every device has, each keeps its share: nothing travels.
    return jax.jit(_same, out_shardings=shardings)(whole)


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


def _mesh(devices=None) -> Mesh:
    return Mesh(np.asarray(_in_order(jax.devices() if devices is None else devices)), (AXIS,))


def _in_order(devices) -> list:
    """Those of a process one after the other, as `jax.pmap` has them and batches are put together;
    on TPUs their numbers are not."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def _share_axis(shape: tuple[int, ...], devices: int) -> int | None:
    """The axis along which an array is shared out: the first that splits evenly; None: no such."""
    if devices == 1:
        return None
    return next((i for i, size in enumerate(shape) if size and size % devices == 0), None)


def _share_specs(tree, devices: int):
    def spec(x):
        axis = _share_axis(jnp.shape(x), devices)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)

    return jax.tree.map(spec, tree)


def _share_shardings(tree, mesh: Mesh):
    specs = _share_specs(tree, mesh.size)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def split_batch(batch):
    """(b, ...) host arrays of this process -> (local devices, b / local devices, ...)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape((local, -1, *x.shape[1:])), batch)


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
        return _Sharded(step, _mesh(devices))
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
        self._mesh, self._stages = mesh, _exchange_stages(list(mesh.devices))
        over = Over(self._each, self._mean)

        def update(state, batch, shared):
            state, metrics = step(state, batch, shared, over)
            held = jax.lax.with_sharding_constraint(state, _share_shardings(state, mesh))
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
            shaped(state, _share_shardings(state, self._mesh)),
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
            return jax.tree.map(functools.partial(_mean_share, self._stages), first), mean(others)

        return self._mapped(on_rows, (_share_specs(like, self._mesh.size), PartitionSpec()))

    def _mapped(self, on_rows, out_specs):
        def call(batch, *shared):
            def whole_of(share, like):
                axis = _share_axis(jnp.shape(like), self._mesh.size)
                return _whole_of_share(self._stages, share, axis)

            def on_shares(batch, *shares):
                whole = jax.tree.map(whole_of, shares, shared)
                return on_rows(jax.tree.map(lambda x: x[0], batch), *whole)

            mapped = jax.shard_map(
                on_shares,
                mesh=self._mesh,
                in_specs=(PartitionSpec(AXIS), *_share_specs(shared, self._mesh.size)),
                out_specs=out_specs,
                check_vma=False,
            )
            return mapped(batch, *shared)

        return call


def _exchange_stages(devices) -> list[list[list[int]] | None]:
    """Which devices exchange shares with which, stage after stage; None: all with all.

    The TPU compiler makes a sum of everything for everybody out of a sum in shares over all chips,
    which sends twice the bytes; not where groups of them do it (libtpu 0.0.42).
    """
    number = len(devices)
    rows = max(n for n in range(1, math.isqrt(number) + 1) if number % n == 0)
    if rows == 1 or not on_tpu(devices):
        return [None]
    places = np.arange(number).reshape(rows, -1)
    return [places.T.tolist(), places.tolist()]


def _mean_share(stages, x):
    """This device's share of the mean of `x` over all devices."""
    devices = jax.lax.axis_size(AXIS)
    axis = _share_axis(x.shape, devices)
    if axis is None:
        return mean(x)
    for groups in stages:
        x = jax.lax.psum_scatter(
            x, AXIS, scatter_dimension=axis, axis_index_groups=groups, tiled=True
        )
    return x / devices


def _whole_of_share(stages, share, axis: int | None):
    """The array of which this device has a share along an axis; None: it has all of it."""
    if axis is None:
        return share
    for groups in reversed(stages):
        share = jax.lax.all_gather(share, AXIS, axis=axis, axis_index_groups=groups, tiled=True)
    return share


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


def all_rows(tree):
    """(b, ...) host arrays of each process -> (processes * b, ...) in all, in their order."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def mean(tree):
    """Mean of floats over all devices; only inside a function compiled here."""
    # pmean over a single device copies everything on a CPU.
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def total(tree):
    """Sum over all devices; only inside a function compiled here."""
    return jax.lax.psum(tree, AXIS)


def largest(tree):
    """Maximum over all devices; only inside a function compiled here."""
    return jax.lax.pmax(tree, AXIS)


def rows_of_all(rows: int) -> int:
    """How many rows all devices hold, of which this one holds some; only inside a function compiled
    here."""
    return rows * jax.lax.axis_size(AXIS)


def roll(tree, places):
    """Rolls the rows of all devices together, as `jnp.roll` would on one; only inside a function
    compiled here.

    Args:
      tree: arrays (b, ...), b rows of each device, in the order of the devices.
      places: () int32 from 0 to below `rows_of_all(b)`, the same on all devices, may be traced.
        Row i comes to stand at row i + `places`, and the last ones at the front.
    """
    devices = jax.lax.axis_size(AXIS)
    if devices == 1:
        return jax.tree.map(lambda x: jnp.roll(x, places, axis=0), tree)

    def moved(x, by: int):
        return jax.lax.ppermute(x, AXIS, [(i, (i + by) % devices) for i in range(devices)])

    def rolled(x):
        whole, rest = jnp.divmod(places, len(x))
        # Whole devices in steps of powers of two: fewer bytes travel than if all had everything.
        for bit in range((devices - 1).bit_length()):
            x = jnp.where((whole >> bit) & 1, moved(x, 1 << bit), x)
        both = jnp.concatenate([moved(x, 1), x])
        return jax.lax.dynamic_slice_in_dim(both, len(x) - rest, len(x))

    return jax.tree.map(rolled, tree)


def to_host(tree):
    """Arrays as NumPy ones, whole; one after the other where devices hold shares, and all processes
    call it together then.

    On a CPU they are views: as long as one lives, its buffer cannot be donated.
    """
    return jax.tree.map(
        lambda x: np.asarray(gather(x).addressable_data(0)) if isinstance(x, jax.Array) else x, tree
    )
