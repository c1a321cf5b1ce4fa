"""Positions in files: a table always, even where the model here computes them."""

from __future__ import annotations

import numpy as np

from dppmask_jax import patches
from dppmask_jax.errors import InputError

_TOLERANCE = 1e-4  # published tables were computed in other precisions


def check_fixed(positions, wanted, grid, name: str, spacing: float, label: str) -> None:
    """Raises InputError unless positions are the fixed ones, up to rounding.

    Args:
      positions, wanted: (1, 1 + N, D), of a file and the fixed ones of its grid.
      grid: (rows, columns).
      name: in the file.
      spacing: between the numbers of the file's type at 1.
      label: of the method that has the fixed ones, with its article.
    """
    if not positions.any():
        raise InputError(
            f"{name} is all zero, as in a model of transformers that was made and never trained: "
            f"take its weights after training, or leave {name} out of the file (the positions of "
            f"{label} are fixed)"
        )
    difference = float(np.abs(positions - wanted).max())
    if not difference <= max(_TOLERANCE, spacing):
        rows, columns = grid
        raise InputError(
            f"{name} is not the sine-cosine table that {label} has for a grid of {rows}x{columns} "
            f"patches (it differs by up to {difference:.3g}): if the grid is another, add "
            "--image_size=HEIGHT,WIDTH; if the positions were learned, add "
            "--config=ibot --allow_missing=head, whose encoder learns its own"
        )


def resized(positions, image_size, new_image_size, patch_size: int) -> np.ndarray:
    """(1, 1 + N, D) for images of another size, by PyTorch's bicubic interpolation; the class
    token's stays."""
    old, new = (patches.grid_shape(size, patch_size) for size in (image_size, new_image_size))
    return np.asarray(patches.resize_positions(positions, old, new, 0.0), np.float32)
