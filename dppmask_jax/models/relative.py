"""Attention biases by the relative position of two patches (BEiT, arXiv 2106.08254, and Swin,
arXiv 2103.14030)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np


def relative_index(grid: tuple[int, int]) -> np.ndarray:
    """(1 + N, 1 + N) int32: the row of the table for each query and key, class token first.

    The last three rows of (2 rows - 1) (2 columns - 1) + 3 are: from the class token to patches,
    from patches to the class token, from the class token to itself.
    """
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    down = row[:, None] - row[None] + rows - 1
    right = column[:, None] - column[None] + columns - 1
    between = (2 * rows - 1) * (2 * columns - 1)
    index = np.full((1 + rows * columns, 1 + rows * columns), between + 2, np.int32)
    index[1:, 1:] = down * (2 * columns - 1) + right
    index[0, 1:], index[1:, 0] = between, between + 1
    return index


class RelativeBias(nn.Module):
    """A trained bias for each difference of positions and each head; all start at 0."""

    grid: tuple[int, int]
    heads: int

    @nn.compact
    def __call__(self):
        """(heads, 1 + N, 1 + N) float32: query, then key."""
        rows, columns = self.grid
        shape = ((2 * rows - 1) * (2 * columns - 1) + 3, self.heads)
        table = self.param("table", nn.initializers.zeros, shape, jnp.float32)
        return jnp.moveaxis(table[relative_index(self.grid)], -1, 0)
