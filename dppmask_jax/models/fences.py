"""Fences keep XLA's compilers from fusing what should stay apart.

The one for CPUs fuses sums into everything that uses them. The gradient of a residual stream is a
sum over all the blocks behind, and without a fence each block adds it up anew, several times.
`lax.optimization_barrier` does not help there: the compiler removes it before it fuses.

The one for TPUs compiles equal blocks once; with what stands in front of them or behind fused into
it, a block is like no other. And a fusion that is too large it compiles again and again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def fence(x):
    """x as it is; on a CPU, it and its gradient are computed once and kept, however many use them.

    Args:
      x: floating-point array.
    """
    return jax.lax.platform_dependent(x, cpu=_behind_a_branch, default=_same)


def seam(x):
    """x as it is; on a TPU, nothing is fused across it, nor across its gradient.

    Args:
      x: floating-point array.
    """
    return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=_same)


def _behind_a_branch(x):
    # Nothing is fused into a branch. This one is never taken, not even for NaN, which the compiler
    # cannot know.
    first = jax.lax.stop_gradient(x.ravel()[:1])
    never = jnp.any(jnp.square(first) < -1)
    return jax.lax.cond(never, jnp.negative, _same, x)


def _same(x):
    return x
