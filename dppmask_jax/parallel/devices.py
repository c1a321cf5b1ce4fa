"""The devices: how many, of what kind, in which order, and the batches that they can share."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from dppmask_jax.errors import InputError
from dppmask_jax.parallel.collectives import AXIS
from dppmask_jax.words import count


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


def mesh_of(devices=None) -> Mesh:
    """The mesh of these devices, with one axis; None: all there are."""
    return Mesh(np.asarray(in_order(jax.devices() if devices is None else devices)), (AXIS,))


def in_order(devices) -> list:
    """Those of a process one after the other, as `jax.pmap` has them and batches are put together;
    on TPUs their numbers are not."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))
