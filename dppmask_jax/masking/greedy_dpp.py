"""Masks whose visible patches a determinantal point process chooses (DPPMask, arXiv 2303.12736)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from dppmask_jax.dpp import select
from dppmask_jax.fields import Field, above, number, one_of, optional
from dppmask_jax.masking.base import (
    Mask,
    Masker,
    MaskerKind,
    check_count,
    mask_from,
    per_image,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Int, Shaped

FIELDS = {
    "mask.tau": Field(0.9, number(0, 1), "0 fully greedy, 1 fully random; paper: 0.6 to 0.9"),
    "mask.tau_end": Field(
        None, optional(number(0, 1)), "tau at the end of the run, reached linearly; None: tau stays"
    ),
    "mask.threshold_on": Field(
        "d2", one_of("d2", "d"), "what tau is compared with (paper unclear)"
    ),
    "mask.kernel": Field("gaussian", one_of("gaussian", "cosine"), "kernel of the DPP"),
    "mask.bandwidth": Field(1.0, above(0), "epsilon of the Gaussian kernel; paper: 1"),
    "mask.normalize": Field(
        "l2",
        one_of("l2", "center", "standardize"),
        "of features: l2; center: without the image's mean; standardize: each patch to variance 1, "
        "for a bandwidth near the number of its values (paper unclear)",
    ),
}
SETTINGS = ("kernel", "bandwidth", "normalize", "threshold_on")  # keywords of `dpp.select`


def dpp(
    key: Array,
    features: Shaped[Array, "N D"],
    count: int | Int[Array, ""],
    tau=0.9,
    *,
    num_keep: int | None = None,
    kernel: str = "gaussian",
    bandwidth=1.0,
    normalize: str = "l2",
    threshold_on: str = "d2",
) -> tuple[Mask, Int[Array, ""]]:
    """Visible patches chosen by `dpp.select` (DPPMask, arXiv 2303.12736, Algorithm 1).

    Args:
      key: a JAX key of this image alone.
      features: what the kernel compares; gradients stop here.
      count: number of visible patches, an int; with `num_keep` it may be traced and differ from
        image to image, because the choice for a smaller count is a prefix of that for a larger.
      tau, kernel, bandwidth, normalize, threshold_on: see `dpp.select`.
      num_keep: static upper bound of a traced `count`, which is not checked against it: a count
        above it is filled at random beyond `num_keep`.

    Returns:
      (Mask, num_greedy): the latter () int32, how many of the visible patches were greedy picks;
        see `dpp.greedy_order` for what 0 and 1 mean.

    Raises:
      ValueError: as `dpp.select`, or a static `count` outside 1..num_keep.
    """
    if num_keep is None:
        if isinstance(count, jax.core.Tracer):
            raise ValueError("a traced count needs num_keep, its static upper bound")
        num_keep = count
    order, num_greedy = select(
        key,
        features,
        num_keep,
        tau,
        kernel=kernel,
        bandwidth=bandwidth,
        normalize=normalize,
        threshold_on=threshold_on,
    )
    check_count(count, 1, num_keep)
    mask = mask_from(order, count)
    return mask, jnp.minimum(num_greedy, mask.count)


def tau_at(mask, progress):
    """The threshold: linear from `mask.tau` to `mask.tau_end`, where there is one."""
    if mask.tau_end is None:
        return mask.tau
    return mask.tau + (mask.tau_end - mask.tau) * progress


def settings(mask) -> dict:
    """The keyword arguments of `dpp.select` that `config.mask` sets for a whole run."""
    return {name: getattr(mask, name) for name in SETTINGS}


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        tau = tau_at(mask, seen.progress)
        num_keep = None if isinstance(count, int) else most

        def choose(key, count, features):
            return dpp(key, features, count, tau, num_keep=num_keep, **settings(mask))

        masks, num_greedy = per_image(choose, keys, count, seen.features())
        return masks, {"num_greedy": num_greedy}

    tau = f"{mask.tau:g}" if isinstance(mask.tau, (int, float)) else "traced"
    end = "" if mask.tau_end is None else f" to {mask.tau_end:g}"
    return Masker(
        draw,
        needs=frozenset({"features"}),
        label=f"DPP (τ = {tau}{end})",
        schedules={"mask.tau": lambda progress: tau_at(mask, progress)},
    )


KIND = MaskerKind(_build, FIELDS, traced=frozenset({"tau", "bandwidth"}))
