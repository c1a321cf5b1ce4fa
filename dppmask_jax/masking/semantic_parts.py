"""Masks by the parts of an image: first some of each part, then whole parts (SemMAE,
arXiv 2206.10207)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dppmask_jax.errors import InputError
from dppmask_jax.fields import TEXT, Field, whole
from dppmask_jax.masking.base import Mask, Masker, MaskerKind, check_count, mask_from, per_image
from dppmask_jax.masking.from_file import opened
from dppmask_jax.patches import patchify

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

SOURCE = "source"  # value of mask.parts
FIELDS = {
    "mask.parts": Field(
        SOURCE,
        TEXT,
        "parts: source, the data set's own segments or foreground; or an .npy of (images, rows, "
        "columns), the part of each patch of the whole image",
    ),
    "mask.num_parts": Field(7, whole(1, 256), "parts: the most that an image has; SemMAE: 7"),
}


def parts(
    key: Array,
    part_of: Int[Array, " N"],
    count: int | Int[Array, ""],
    alpha: float | Float[Array, ""],
    num_parts: int = 7,
) -> Mask:
    """Masks a share of each part, whole parts, or what lies between (SemMAE, section 3.3, and its
    code's random_masking_setting3).

    With K patches to mask, part p of n_p patches has m1 = round(n_p K / N) masked within it. Or
    parts in random order are masked whole until K is used up, which gives it m2. It has
    round(alpha m1 + (1 - alpha) m2) masked, drawn uniformly. Those numbers need not sum to K: some
    masked patches of any part are shown again, or some others masked too. The authors leave their
    choice to a sort that is not stable; here they are drawn.

    Args:
      key: a JAX key of this image alone.
      part_of: the part of each patch, 0..num_parts - 1; larger ones count as the last.
      count: number of visible patches; may be traced, then 0..N is not checked.
      alpha: 1: the same share of each part; 0: whole parts. May be traced.
      num_parts: static.

    Raises:
      ValueError: a static `count` outside 0..N.
    """
    num_patches = part_of.shape[0]
    check_count(count, 0, num_patches)
    turn_key, noise_key, rest_key = jax.random.split(key, 3)
    hidden = num_patches - jnp.asarray(count, jnp.int32)
    part_of = jnp.clip(part_of.astype(jnp.int32), 0, num_parts - 1)
    sizes = jnp.sum(
        part_of[None] == lax.iota(jnp.int32, num_parts)[:, None], axis=1, dtype=jnp.int32
    )
    within = jnp.round((sizes * hidden).astype(jnp.float32) / np.float32(num_patches))
    turn = jnp.argsort(jax.random.uniform(turn_key, (num_parts,), jnp.float32))
    in_turn = sizes[turn]
    given = jnp.clip(hidden - (jnp.cumsum(in_turn) - in_turn), 0, in_turn)
    between = jnp.zeros_like(given).at[turn].set(given).astype(jnp.float32)
    alpha = jnp.asarray(alpha, jnp.float32)
    wanted = jnp.round(alpha * within + (1 - alpha) * between).astype(jnp.int32)

    noise = jax.random.uniform(noise_key, (num_patches,), jnp.float32)
    index = lax.iota(jnp.int32, num_patches)
    by_part = lax.sort((part_of, noise, index), num_keys=2)[2]
    first = jnp.cumsum(sizes) - sizes
    rank = jnp.argsort(by_part).astype(jnp.int32) - first[part_of]  # of each patch in its part
    chosen = (rank < wanted[part_of]).astype(jnp.int32)
    rest = jax.random.uniform(rest_key, (num_patches,), jnp.float32)
    return mask_from(lax.sort((chosen, rest, index), num_keys=2)[2], count)


def alpha_at(progress):
    """1 at the start of a run, 0 at its end: 1 - progress^2. The authors change it once an epoch,
    to 1 - ((epoch + 1) / epochs)^2; here each step has its own."""
    return 1 - progress * progress


def of_patches(
    maps: Int[Array, "B H W"], grid: tuple[int, int], num_parts: int
) -> Int[Array, "B N"]:
    """(B, N) int32: the part that most pixels of each patch belong to, the lower of equal ones."""
    patch_size = maps.shape[1] // grid[0], maps.shape[2] // grid[1]
    pixels = patchify(maps[..., None], patch_size)
    numbers = jnp.arange(num_parts, dtype=pixels.dtype)
    votes = jnp.sum(pixels[..., None] == numbers, axis=2, dtype=jnp.int32)
    return jnp.argmax(votes, axis=-1).astype(jnp.int32)


def read(path: str) -> np.ndarray:
    """The part maps of a file, (M, rows, columns) of whole numbers, not yet in memory.

    Raises:
      InputError: there is no such file, or it holds something else.
    """
    where = f"config.mask.parts={path}"
    maps = opened(path, where)
    if maps.ndim != 3 or not np.issubdtype(maps.dtype, np.integer):
        raise InputError(
            f"{where} holds {maps.dtype} {maps.shape}; it takes (images, rows, columns) of whole "
            "numbers"
        )
    return maps


def check_maps(path: str, num_images: int, grid: tuple[int, int], num_parts: int) -> None:
    """Raises InputError unless a file has a map of this grid for each training image, with at most
    `num_parts` parts."""
    maps, where = read(path), f"config.mask.parts={path}"
    if maps.shape != (num_images, *grid):
        raise InputError(
            f"{where} is {maps.shape}; this config has {num_images} training images of "
            f"{grid[0]} x {grid[1]} patches"
        )
    if maps.min() < 0 or maps.max() >= num_parts:
        raise InputError(
            f"{where} holds parts {maps.min()} to {maps.max()}; config.mask.num_parts={num_parts} "
            f"takes 0 to {num_parts - 1}"
        )


def _build(mask) -> Masker:
    def draw(keys, count, seen, most):
        num_patches = seen.grid[0] * seen.grid[1]
        if seen.parts is None:  # other images than those that the maps are of: all is one part
            part_of = jnp.zeros((len(keys), num_patches), jnp.int32)
        else:
            part_of = seen.parts()
        alpha = alpha_at(seen.progress)

        def one(key, count, part_of):
            return parts(key, part_of, count, alpha, mask.num_parts)

        return per_image(one, keys, count, part_of), {}

    return Masker(
        draw,
        frozenset({"parts"}),
        f"parts ({Path(mask.parts).name})",
        schedules={"share of masks that is within parts": alpha_at},
    )


def _check(mask) -> None:
    if mask.parts != SOURCE:
        read(mask.parts)


KIND = MaskerKind(_build, FIELDS, _check)
