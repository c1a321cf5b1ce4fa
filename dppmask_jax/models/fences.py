"""What keeps XLA's CPU compiler from computing the same thing again and again.

It fuses sums into everything that uses them. The slope of a residual stream is a sum over all the
blocks behind, and without a fence each block adds it up anew, several times.
`lax.optimization_barrier` does not help: the compiler removes it before it fuses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def fence(x):
    """x as it is; on a CPU, it and its slope are computed once and kept, however many use them.

    Args:
      x: floating-point array of one element or more.
    """
    return _fence(x)


def _fence(x):
    return jax.lax.platform_dependent(x, cpu=_fence_on_cpu, default=lambda x: x)


def _fence_on_cpu(x):
    # A branch is a program of its own, into which nothing is fused. This one is never taken, not
    # even for NaN, but that the compiler cannot know.
    never = jnp.square(x.ravel()[0]) < -1
    return jax.lax.cond(never, jnp.negative, lambda x: x, x)


fence.defvjp(lambda x: (_fence(x), None), lambda _, slope: (_fence(slope),))
