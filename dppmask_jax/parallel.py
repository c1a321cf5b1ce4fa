"""Devices and processes. No other file knows how many there are.

The state is one replicated array a leaf, without a device axis; batches gain a leading axis of
this process's devices. `jax.pmap` with `in_axes=(None, 0, None)` takes both as they are.
"""

from __future__ import annotations

import glob
import importlib.util
import itertools
import os
import socket
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from dppmask_jax.errors import InputError
from dppmask_jax.words import count

AXIS = "batch"
_DECISIONS = itertools.count()  # a barrier's name is used once
LOST_AFTER_SECONDS = 60  # without a word from a process, the others end


# JAX's defaults of the settings that decide what a seed draws, and in what precision.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the processes of a multi-host run. Call before anything else touches JAX.

    TPU pods detect themselves: pass None three times there, and on a single machine. Elsewhere
    pass the coordinator's HOST:PORT, the number of processes and this process's number.

    Settings of JAX that would change a run's numbers are put back, and named: a run is a function
    of its config, seed and step alone.

    Raises:
      InputError: only some of the three are given, or they cannot be; nothing was connected.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    _settle_settings()
    if all(given):
        _check_processes(coordinator, num_processes, process_id)
        _join(coordinator, num_processes, process_id)
    elif any(given):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together: give all or none"
        )
    elif _on_tpu_host():
        try:
            _join()
        except ValueError as error:
            # A single machine outside a pod, which JAX detects by its environment.
            print(f"no TPU pod found ({error}); this process runs alone", flush=True)


def _settle_settings() -> None:
    for name, value in _SETTINGS.items():
        if (found := getattr(jax.config, name)) != value:
            print(
                f"warning: {name}={found} would change the numbers; it is put back to {value}",
                flush=True,
            )
            jax.config.update(name, value)


def _check_processes(coordinator: str, num_processes: int, process_id: int) -> None:
    if process_id >= num_processes:
        raise InputError(
            f"--process_id={process_id} is not below --num_processes={num_processes}; processes "
            "count from 0"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator={coordinator} is not HOST:PORT, such as localhost:12345: the host of "
            "process 0 and a free port there, from 1 to 65535"
        )
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(
            f"--coordinator={coordinator}: there is no host {host} ({error.strerror})"
        ) from error
    if process_id == 0:  # jaxlib crashes where it cannot listen
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} "
                f"({error.strerror}); name a free one"
            ) from error


def _join(*who) -> None:
    # JAX's preemption service would take SIGTERM, which a run handles itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(*who, heartbeat_timeout_seconds=LOST_AFTER_SECONDS)


def _on_tpu_host() -> bool:
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    wanted = os.environ.get("JAX_PLATFORMS", "") in ("", "tpu")
    return bool(chips) and wanted and importlib.util.find_spec("libtpu") is not None


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


def replicate(tree):
    """Puts a tree on every device of every process, once, without a device axis."""
    mesh = Mesh(np.asarray(jax.devices()), (AXIS,))
    sharding = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x):
        # device_put on all devices gives an array that cannot be read (jax 0.10) where each process
        # has one device.
        copies = [jax.device_put(x, device) for device in jax.local_devices()]
        return jax.make_array_from_single_device_arrays(np.shape(x), sharding, copies)

    return jax.tree.map(put, tree)


def split_batch(batch):
    """(b, ...) host arrays of this process -> (local devices, b / local devices, ...)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape((local, -1, *x.shape[1:])), batch)


def data_parallel_update(step, devices=None):
    """Compiles `step(state, batch, shared) -> (state, metrics)` for all devices.

    Inside, use `mean` on everything that has to agree. The old state is donated.

    Args:
      devices: what to compile for, such as a topology that is not there; None is all there are.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        devices=devices,
        donate_argnums=(0,),
    )


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
    """Replicated arrays as NumPy ones.

    On a CPU they are views: as long as one lives, its buffer cannot be donated.
    """
    return jax.tree.map(
        lambda x: np.asarray(x.addressable_data(0)) if isinstance(x, jax.Array) else x, tree
    )
