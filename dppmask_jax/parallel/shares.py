"""The shares of arrays that devices hold of a state, and how they exchange them.

The devices stand in rows and columns. An array is cut along the first axis that splits evenly over
all of them; else along one that splits over the rows and one that splits over the columns, such as
384 x 1,152 over 16 x 16. Where none do, every device has all of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dppmask_jax.parallel.collectives import AXIS, mean
from dppmask_jax.parallel.devices import on_tpu

ROWS, COLUMNS = NAMES = ("rows", "columns")
# Shares of whole multiples of so many float32 numbers, (n, 128, 128), the TPU compiler exchanges as
# shares. Of many others it sums everything for everybody (libtpu 0.0.42; docs/speed_tried.md).
TILE = (128, 128)


class Cut(NamedTuple):
    """The axes along which an array is cut: over the rows of devices, and over the columns."""

    by_rows: int
    by_columns: int

    @property
    def spec(self) -> PartitionSpec:
        if self.by_rows == self.by_columns:
            return PartitionSpec(*[None] * self.by_rows, NAMES)
        names = {self.by_rows: ROWS, self.by_columns: COLUMNS}
        return PartitionSpec(*[names.get(axis) for axis in range(max(self) + 1)])


def mesh_of_shares(devices: np.ndarray) -> Mesh:
    """These devices (n,) in rows and columns: one row, or on TPUs numbers of both as close as can
    be.

    The TPU compiler makes a sum of everything for everybody out of a sum in shares over all chips,
    which sends twice the bytes; not where groups of them do it (libtpu 0.0.42).
    """
    rows = 1
    if on_tpu(list(devices)):
        possible = range(1, math.isqrt(len(devices)) + 1)
        rows = max(n for n in possible if len(devices) % n == 0)
    return Mesh(devices.reshape(rows, -1), NAMES)


def cut_of(shape: tuple[int, ...], rows: int, columns: int) -> Cut | None:
    """How an array is cut into rows x columns shares; None: every device has all of it."""

    def split_by(number: int) -> list[int]:
        return [axis for axis, size in enumerate(shape) if size % number == 0]

    if rows * columns == 1 or 0 in shape:
        return None
    along_one = [Cut(axis, axis) for axis in split_by(rows * columns)]
    along_two = [Cut(i, j) for i in split_by(rows) for j in split_by(columns) if i != j]
    return next(iter(along_one + along_two), None)


def shardings_of(tree, mesh: Mesh):
    """The shardings of a state that the devices of a mesh share."""

    def sharding(x):
        cut = cut_of(jnp.shape(x), *mesh.devices.shape)
        return NamedSharding(mesh, PartitionSpec() if cut is None else cut.spec)

    return jax.tree.map(sharding, tree)


class Shared:
    """A tree of arrays that the devices of a mesh share, seen from a function that is mapped over
    `AXIS`, where every array that is cut is one of pieces (devices, *share).

    Methods exchange over that one axis; an array that is cut along two needs two names for the
    devices, so states lie on a mesh of rows and columns. Both meshes have the devices in the same
    order, and nothing travels between them.

    Args:
      like: has the shapes of the whole arrays.
      mesh: from `mesh_of_shares`.
    """

    def __init__(self, like, mesh: Mesh):
        leaves, self._structure = jax.tree.flatten(like)
        self._mesh = mesh
        self._cuts = [cut_of(jnp.shape(x), *mesh.devices.shape) for x in leaves]
        places = np.arange(mesh.size).reshape(mesh.devices.shape)
        # Which of the axes of a cut, and who exchanges with whom; None: all with all.
        if len(places) == 1:
            self._stages = [(1, None)]
        else:
            self._stages = [(0, places.T.tolist()), (1, places.tolist())]

    @property
    def specs(self):
        """How pieces lie where `AXIS` is mapped over."""
        return self._each(lambda cut: PartitionSpec(AXIS), PartitionSpec())

    def pieces(self, arrays):
        """The pieces (devices, *share) of arrays that devices share."""
        return self._relabelled(lambda x: x[None], arrays, self._cut_specs, self._piece_specs)

    def arrays(self, pieces):
        """The arrays of pieces, shared."""
        return self._relabelled(lambda x: x[0], pieces, self._piece_specs, self._cut_specs)

    def whole(self, pieces):
        """Inside: the whole arrays, of this device's pieces (1, *share)."""
        return self._where_cut(lambda x, cut: self._gathered(x[0], cut), pieces)

    def mean(self, tree):
        """Inside: this device's pieces (1, *share) of the means over all devices of whole arrays,
        all of one type."""
        leaves = self._structure.flatten_up_to(tree)
        found = [mean(x) if cut is None else x for x, cut in zip(leaves, self._cuts, strict=True)]
        cuts = {i: cut for i, cut in enumerate(self._cuts) if cut is not None}
        for number, (which, groups) in enumerate(self._stages):
            # Joined are all in the second stage, where the first has left one part of each, and in
            # the first those whose shares fill no tiles. To join the others would copy everything.
            joined = [i for i, cut in cuts.items() if number or cut.by_rows != cut.by_columns]
            alone = [i for i in cuts if i not in joined]
            for i in alone:
                found[i] = _scattered(groups, found[i], cuts[i][which])
            sums = _scattered_as_one(groups, [(found[i], cuts[i][which]) for i in joined])
            for i, share in zip(joined, sums, strict=True):
                found[i] = share
        for i in cuts:
            found[i] = found[i][None] / self._mesh.size
        return self._structure.unflatten(found)

    @property
    def _cut_specs(self):
        return self._each(lambda cut: cut.spec, PartitionSpec())

    @property
    def _piece_specs(self):
        return self._each(lambda cut: PartitionSpec(NAMES), PartitionSpec())

    def _each(self, of_cut, of_none):
        specs = [of_none if cut is None else of_cut(cut) for cut in self._cuts]
        return self._structure.unflatten(specs)

    def _relabelled(self, of_share, tree, in_specs, out_specs):
        mapped = jax.shard_map(
            lambda tree: self._where_cut(lambda x, cut: of_share(x), tree),
            mesh=self._mesh, in_specs=(in_specs,), out_specs=out_specs, check_vma=False,
        )  # fmt: skip
        return mapped(tree)

    def _where_cut(self, fn, tree):
        """`fn(x, cut)` of each leaf that is cut; others stay as they are."""
        leaves = self._structure.flatten_up_to(tree)
        pairs = zip(leaves, self._cuts, strict=True)
        return self._structure.unflatten([x if cut is None else fn(x, cut) for x, cut in pairs])

    def _gathered(self, share, cut: Cut):
        for which, groups in reversed(self._stages):
            share = jax.lax.all_gather(
                share, AXIS, axis=cut[which], axis_index_groups=groups, tiled=True
            )
        return share


def _scattered(groups, x, axis: int):
    """Of the sum over each group, every device's part along an axis."""
    return jax.lax.psum_scatter(
        x, AXIS, scatter_dimension=axis, axis_index_groups=groups, tiled=True
    )


def _scattered_as_one(groups, arrays: list):
    """`_scattered` of each (array, axis), in one exchange of whole tiles, for which the arrays are
    copied."""
    if not arrays:
        return []
    size = len(groups[0])
    parts = [jnp.moveaxis(x, axis, 0) for x, axis in arrays]
    joined = jnp.concatenate([x.reshape(size, -1) for x in parts], axis=1)
    tiles = jnp.pad(joined, ((0, 0), (0, -joined.shape[1] % math.prod(TILE))))
    sums = jax.lax.psum_scatter(tiles.reshape(size, -1, TILE[1]), AXIS, axis_index_groups=groups)
    *own, _ = jnp.split(sums.reshape(-1), np.cumsum([x.size // size for x in parts]))
    return [
        jnp.moveaxis(one.reshape(-1, *part.shape[1:]), 0, axis)
        for one, part, (_, axis) in zip(own, parts, arrays, strict=True)
    ]
