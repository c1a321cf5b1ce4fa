"""The processes of a run: who decides, who writes, and when they wait for each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from dppmask_jax.errors import InputError

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


def all_rows(tree):
    """(b, ...) host arrays of each process -> (processes * b, ...) in all, in their order."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)
