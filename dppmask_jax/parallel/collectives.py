"""What the devices of a step exchange."""

from __future__ import annotations

import jax
import jax.numpy as jnp

AXIS = "batch"


def mean(tree):
    """Mean of floats over all devices; only inside a function compiled by `steps`."""
    # pmean over a single device copies everything on a CPU.
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def total(tree):
    """Sum over all devices; only inside a function compiled by `steps`."""
    return jax.lax.psum(tree, AXIS)


def largest(tree):
    """Maximum over all devices; only inside a function compiled by `steps`."""
    return jax.lax.pmax(tree, AXIS)


def rows_of_all(rows: int) -> int:
    """How many rows all devices hold, of which this one holds some; only inside a function compiled
    by `steps`."""
    return rows * jax.lax.axis_size(AXIS)


def roll(tree, places):
    """Rolls the rows of all devices together, as `jnp.roll` would on one; only inside a function
    compiled by `steps`.

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
