"""Images as sequences of patches, and where each patch is.

Patches are numbered row by row: patch n of a grid with `columns` columns lies in row n // columns
and column n % columns. A size of
patches is one number of pixels for both sides, or (height, width). Only jax and numpy are imported
here.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

PatchSize = int | tuple[int, int]


def sides(patch_size: PatchSize) -> tuple[int, int]:
    """(height, width) of a patch in pixels.

    Raises:
      ValueError: it is neither a number nor two.
    """
    both = (patch_size, patch_size) if np.ndim(patch_size) == 0 else tuple(patch_size)
    if len(both) != 2 or not all(isinstance(side, (int, np.integer)) for side in both):
        raise ValueError(f"patch size {patch_size!r} must be an int or (height, width) in pixels")
    return int(both[0]), int(both[1])


def size_name(patch_size: PatchSize) -> str:
    """A size of patches in words: "16", or "16x8" for patches 16 high and 8 wide."""
    height, width = sides(patch_size)
    return f"{height}" if height == width else f"{height}x{width}"


def grid_shape(image_size: tuple[int, int], patch_size: PatchSize) -> tuple[int, int]:
    """The (rows, columns) of patches in an image of (height, width) pixels.

    Raises:
      ValueError: the patch size is not positive or does not divide both sides.
    """
    (height, width), (high, wide) = image_size, sides(patch_size)
    if min(high, wide, height, width) < 1 or height % high or width % wide:
        raise ValueError(
            f"image size {height}x{width} is not a multiple of the patch size "
            f"{size_name(patch_size)}; choose a patch size that divides both sides"
        )
    return height // high, width // wide


def patchify(images, patch_size: PatchSize):
    """Cuts images into patches.

    Args:
      images: (B, H, W, C) array of any dtype.
      patch_size: of a patch in pixels; divides H and W.

    Returns:
      (B, N, height * width * C), with those of a patch. Within a patch the order is row, column,
      channel.

    Raises:
      ValueError: `images` is not 4-D, or the patch size does not divide its sides.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (B, H, W, C), got shape {tuple(images.shape)}")
    batch, _, _, channels = images.shape
    rows, columns = grid_shape(images.shape[1:3], patch_size)
    height, width = sides(patch_size)
    blocks = images.reshape(batch, rows, height, columns, width, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, rows * columns, height * width * channels)


def unpatchify(patches, grid: tuple[int, int], patch_size: PatchSize):
    """The inverse of `patchify`.

    Args:
      patches: (B, N, height * width * C), with those of a patch.
      grid: (rows, columns) with rows * columns == N.
      patch_size: of a patch in pixels.

    Returns:
      (B, rows * height, columns * width, C).

    Raises:
      ValueError: the shape of `patches` does not fit the grid and the patch size.
    """
    (rows, columns), (height, width) = grid, sides(patch_size)
    batch, num_patches, values = patches.shape
    if num_patches != rows * columns or values % (height * width):
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} do not fit a {rows}x{columns} grid of "
            f"{height}x{width} patches"
        )
    channels = values // (height * width)
    blocks = patches.reshape(batch, rows, columns, height, width, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, rows * height, columns * width, channels)


def gather(tokens, indices):
    """Picks tokens of each example.

    Args:
      tokens: (B, N, D).
      indices: (B, K) int32 within 0..N-1; jax clamps what lies outside, silently.

    Returns:
      (B, K, D).
    """
    return jnp.take_along_axis(tokens, indices[..., None], axis=1)


def from_neighbours(values, order, num_keep: int, grid: tuple[int, int]):
    """Values of all patches, estimated from those of the visible ones: their mean weighted by
    1 / distance^4 (Shepard's interpolation), distances in patches.

    Args:
      values: (B, N, D), finite; those of hidden patches do not enter.
      order: (B, N) int32, visible patches first.
      num_keep: how many are visible, at least 1.
      grid: (rows, columns) with rows * columns == N.

    Returns:
      (B, N, D) float32; a visible patch nearly keeps its own.
    """
    index = np.arange(grid[0] * grid[1])
    places = jnp.asarray(np.stack([index // grid[1], index % grid[1]], axis=1), jnp.float32)
    visible = order[:, :num_keep]
    away = places[None, :, None] - places[visible][:, None]  # (B, N, K, 2)
    weights = 1.0 / jnp.square(jnp.maximum(jnp.sum(jnp.square(away), axis=-1), 1e-3))
    known = gather(values.astype(jnp.float32), visible)
    total = jnp.einsum("bnk,bkd->bnd", weights, known, precision="highest")
    return total / jnp.sum(weights, axis=-1, keepdims=True)


def sincos_positions(grid: tuple[int, int], width: int, first_axis: str = "column") -> np.ndarray:
    """Fixed 2-D sine-cosine positions.

    One half of the channels encodes the column and the other the row; each half is
    [sin(position * w), cos(position * w)] with w_t = 10000 ** (-t / (width / 4)).

    Args:
      grid: (rows, columns).
      width: number of channels, a multiple of 4.
      first_axis: what the first half encodes: "column" in MAE (arXiv 2111.06377, appendix A.1),
        "row" in the code of MoCo v3 (arXiv 2104.02057).

    Returns:
      (rows * columns, width) float32, computed in float64. Every row has norm sqrt(width / 2).

    Raises:
      ValueError: `width` is not a positive multiple of 4.
    """
    if width < 4 or width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {width}")
    rows, columns = grid
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)

    def encode(positions):
        angles = positions[:, None] * frequencies[None, :]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row_of_patch, column_of_patch = np.divmod(np.arange(rows * columns), columns)
    halves = {"column": encode(column_of_patch), "row": encode(row_of_patch)}
    first = halves.pop(first_axis)
    return np.concatenate([first, *halves.values()], axis=1).astype(np.float32)


def lone_positions(grid: tuple[int, int]) -> np.ndarray:
    """(rows * columns, 768) float32: `sincos_positions` where nothing is added to them, of ViT-B's
    width, whatever the encoder."""
    return sincos_positions(grid, 768)


def fixed_positions(grid: tuple[int, int], width: int, first_axis: str = "column") -> np.ndarray:
    """(1, 1 + N, D) float32: zeros for the class token, then `sincos_positions`."""
    table = sincos_positions(grid, width, first_axis)
    return np.concatenate([np.zeros((1, width), np.float32), table])[None]


def resize_positions(
    positions, old_grid: tuple[int, int], new_grid: tuple[int, int], excess: float = 0.1
):
    """Positions for another number of patches, by PyTorch's bicubic interpolation:
    a = -0.75, no antialiasing, borders repeated.

    Args:
      positions: (1, P + N, D), those of P other tokens first, then row by row. P is 1 with a class
        token's, or 0.
      old_grid: (rows, columns) with rows * columns == N.
      new_grid: (rows, columns) wanted.
      excess: the scale between the grids is (new + excess) / old along each axis. 0.1 is DINO's and
        iBOT's, for local crops; 0 is interpolation to a size.

    Returns:
      (1, P + rows * columns, D); the first P are unchanged. The positions themselves where the
      grids are the same.
    """
    if tuple(old_grid) == tuple(new_grid):
        return positions
    rows, columns = (
        jnp.asarray(_bicubic_weights(old, new, excess), positions.dtype)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    others = positions.shape[1] - math.prod(old_grid)
    on_grid = positions[0, others:].reshape(*old_grid, -1)
    resized = jnp.einsum("ir,jc,rcd->ijd", rows, columns, on_grid, precision="highest")
    width = positions.shape[-1]
    return jnp.concatenate([positions[:, :others], resized.reshape(1, -1, width)], axis=1)


def _bicubic_weights(old: int, new: int, excess: float) -> np.ndarray:
    """(new, old) float64: how much of each old position goes into each new one."""
    a = -0.75
    source = (np.arange(new) + 0.5) * old / (new + excess) - 0.5
    first = np.floor(source).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        t = np.abs(source - (first + tap))
        near = ((a + 2) * t - (a + 3)) * t**2 + 1
        far = ((t - 5) * t + 8) * t * a - 4 * a
        column = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), column), np.where(t <= 1, near, far))
    return weights
