"""The shares of arrays that devices hold of a state, and how they exchange them.

An array is shared out along the first axis that splits evenly; where none does, every device has
all of it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dppmask_jax.parallel.collectives import AXIS, mean
from dppmask_jax.parallel.devices import on_tpu


def share_axis(shape: tuple[int, ...], devices: int) -> int | None:
    """The axis along which an array is shared out; None: none splits evenly."""
    if devices == 1:
        return None
    return next((i for i, size in enumerate(shape) if size and size % devices == 0), None)


def share_specs(tree, devices: int):
    """Which axis of each array is shared out."""

    def spec(x):
        axis = share_axis(jnp.shape(x), devices)
        return PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS)

    return jax.tree.map(spec, tree)


def share_shardings(tree, mesh: Mesh):
    """The shardings of a state that the devices of a mesh share."""
    specs = share_specs(tree, mesh.size)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def exchange_stages(devices) -> list[list[list[int]] | None]:
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


def mean_share(stages, x):
    """This device's share of the mean of an array over all devices; all of the mean where it does
    not split. Only inside a step."""
    devices = jax.lax.axis_size(AXIS)
    axis = share_axis(x.shape, devices)
    if axis is None:
        return mean(x)
    for groups in stages:
        x = jax.lax.psum_scatter(
            x, AXIS, scatter_dimension=axis, axis_index_groups=groups, tiled=True
        )
    return x / devices


def whole_of_share(stages, share, axis: int | None):
    """The array of which this device has a share along an axis; None: it has all of it. Only inside
    a step."""
    if axis is None:
        return share
    for groups in reversed(stages):
        share = jax.lax.all_gather(share, AXIS, axis=axis, axis_index_groups=groups, tiled=True)
    return share
