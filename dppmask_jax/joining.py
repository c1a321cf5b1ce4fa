"""Joins the processes of a run, before anything else touches JAX."""

from __future__ import annotations

import glob
import importlib.util
import os
import socket

import jax

from dppmask_jax.errors import InputError

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
