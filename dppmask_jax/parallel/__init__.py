"""Devices and processes. No other part knows how many there are.

The state is one array a leaf, without a device axis; batches gain a leading axis of this process's
devices.
"""

from dppmask_jax.parallel.collectives import AXIS, largest, mean, roll, rows_of_all, total
from dppmask_jax.parallel.devices import (
    check_batch,
    describe,
    idle_dtype,
    on_cpu,
    on_tpu,
    round_up,
)
from dppmask_jax.parallel.placement import (
    describe_shares,
    gather,
    place,
    replicate,
    split_batch,
    to_host,
)
from dppmask_jax.parallel.processes import (
    all_rows,
    decided_by_main,
    is_alone,
    is_main,
    process_shard,
    wait_for_all,
)
from dppmask_jax.parallel.steps import (
    FIELDS,
    Over,
    data_parallel_map,
    data_parallel_mean,
    data_parallel_update,
)

__all__ = [
    "AXIS",
    "FIELDS",
    "Over",
    "all_rows",
    "check_batch",
    "data_parallel_map",
    "data_parallel_mean",
    "data_parallel_update",
    "decided_by_main",
    "describe",
    "describe_shares",
    "gather",
    "idle_dtype",
    "is_alone",
    "is_main",
    "largest",
    "mean",
    "on_cpu",
    "on_tpu",
    "place",
    "process_shard",
    "replicate",
    "roll",
    "round_up",
    "rows_of_all",
    "split_batch",
    "to_host",
    "total",
    "wait_for_all",
]
