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


def mean_shares(stages, tree):
    """This device's shares of the means of arrays over all devices; the whole mean of those that
    do not split. Only inside a step."""
    devices = jax.lax.axis_size(AXIS)
    leaves, structure = jax.tree.flatten(tree)
    axis_of = {i: share_axis(x.shape, devices) for i, x in enumerate(leaves)}
    split = {i: axis for i, axis in axis_of.items() if axis is not None}
    shares, axes = [leaves[i] for i in split], list(split.values())
    for stage, groups in enumerate(stages):
        shares = (_scattered_as_one if stage else _scattered)(groups, shares, axes)
    found = dict(zip(split, shares, strict=True))
    means = [found[i] / devices if i in found else mean(x) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, means)


def _scattered(groups, arrays, axes):
    """Of the sums over each group, every device's part along the axes."""
    return [
        jax.lax.psum_scatter(x, AXIS, scatter_dimension=axis, axis_index_groups=groups, tiled=True)
        for x, axis in zip(arrays, axes, strict=True)
    ]


def _scattered_as_one(groups, arrays, axes):
    """As `_scattered`, in one exchange. One by one they are too small: the TPU compiler sums them
    for everybody (libtpu 0.0.42). They are copied for it, so for large ones it costs more."""
    size = len(groups[0])
    parts = [jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    rows = [x.reshape(size, -1) for x in parts]
    sums = jax.lax.psum_scatter(
        jnp.concatenate(rows, axis=1), AXIS, scatter_dimension=0, axis_index_groups=groups
    )
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    return [
        jnp.moveaxis(one.reshape(-1, *part.shape[1:]), 0, axis)
        for one, part, axis in zip(jnp.split(sums, ends), parts, axes, strict=True)
    ]


def whole_of_share(stages, share, axis: int | None):
    """The array of which this device has a share along an axis; None: it has all of it. Only inside
    a step."""
    if axis is None:
        return share
    for groups in reversed(stages):
        share = jax.lax.all_gather(share, AXIS, axis=axis, axis_index_groups=groups, tiled=True)
    return share
