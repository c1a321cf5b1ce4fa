"""Masks whose visible patches are an exact draw of a determinantal point process of fixed size.

Greedy selection (DPPMask, arXiv 2303.12736, section 3) stands in for it: it takes the most diverse
set that it finds. An exact draw takes each set with a probability in proportion to its determinant,
and needs an eigendecomposition of each image's kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from dppmask_jax.dpp import cosine_kernel, gaussian_kernel, sample_exact
from dppmask_jax.masking import greedy_dpp
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Shaped

FIELDS = {
    name: greedy_dpp.FIELDS[name] for name in ("mask.kernel", "mask.bandwidth", "mask.normalize")
}


def exact(
    key: Array,
    features: Shaped[Array, "N D"],
    count: int | Int[Array, ""],
    *,
    num_keep: int | None = None,
    kernel: str = "gaussian",
    bandwidth=1.0,
    normalize: str = "l2",
) -> Mask:
    """Visible patches drawn by `dpp.sample_exact`.

    Of a batch that is sharded over devices, take it under pmap or shard_map: a jit that partitions
    by itself gathers the batch for the eigendecompositions. On a CPU with fewer cores than devices
    these can wait for each other for ever; `NPROC=16` in the environment gives XLA more threads.

    Args:
      key: a JAX key of this image alone.
      features: what the kernel compares, as in `dpp.select`; gradients stop here.
      count: number of visible patches, an int; with `num_keep` it may be traced.
      num_keep: static upper bound of a traced `count`; a count above it shows patches in the order
        of the image beyond `num_keep`.
      kernel, bandwidth, normalize: see `dpp.select`.

    Raises:
      ValueError: as the kernels and `dpp.sample_exact`, or a static `count` outside 1..num_keep.
    """
    if num_keep is None:
        if isinstance(count, jax.core.Tracer):
            raise ValueError("a traced count needs num_keep, its static upper bound")
        num_keep = count
    if kernel not in ("gaussian", "cosine"):
        raise ValueError(f"kernel must be 'gaussian' or 'cosine', got {kernel!r}")
    check_count(count, 1, num_keep)
    if kernel == "cosine":
        matrix = cosine_kernel(features, normalize=normalize)
    else:
        matrix = gaussian_kernel(features, bandwidth, normalize=normalize)
    size = jnp.minimum(jnp.asarray(count, jnp.int32), num_keep)
    drawn = sample_exact(key, matrix, num_keep, size=size)
    place = jnp.full(features.shape[:1], num_keep, jnp.int32)
    place = place.at[drawn].set(jnp.arange(num_keep, dtype=jnp.int32))
    return mask_from(jnp.argsort(place).astype(jnp.int32), count)


def _build(mask) -> Masker:
    settings = {"kernel": mask.kernel, "bandwidth": mask.bandwidth, "normalize": mask.normalize}

    def draw(keys, count, seen, most):
        num_keep = None if isinstance(count, int) else most

        def choose(key, count, features):
            return exact(key, features, count, num_keep=num_keep, **settings)

        return per_image(choose, keys, count, seen.features()), {}

    return Masker(draw, frozenset({"features"}), "exact DPP")


KIND = MaskerKind(_build, FIELDS, traced=frozenset({"bandwidth"}))
