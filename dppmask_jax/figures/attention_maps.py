"""attention_maps.png: what is attended to in some images, a column a block."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dppmask_jax import patches
from dppmask_jax.figures.panels import (
    SMALL_PANEL,
    attention_legend,
    attention_panel,
    check_rows,
    compose,
    enlarge,
    panel_scale,
)

MAX_BLOCKS = 12  # that are drawn


def draw_maps(
    images: np.ndarray,
    maps: np.ndarray,
    patch_size: patches.PatchSize,
    note: str,
    of: str = "Block",
) -> Figure:
    """One row an image: original, and the map of each block, scaled to its own maximum, which
    stands below it. Of many blocks MAX_BLOCKS are drawn, evenly spread, the first and the last
    among them.

    Args:
      images: (R, H, W, 3) uint8.
      maps: (R, L, N) float, attention to each patch.
      patch_size: of a patch in pixels.
      note: stands below the picture.
      of: what L counts, in the titles.

    Raises:
      ValueError: the arrays do not fit one another.
    """
    check_rows(len(images), maps=maps)
    grid = patches.grid_shape(images.shape[1:3], patch_size)
    if maps.ndim != 3 or maps.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"maps of shape {maps.shape} do not fit {grid[0]}x{grid[1]} patches")
    depth = maps.shape[1]
    blocks = np.linspace(0, depth - 1, min(depth, MAX_BLOCKS)).round().astype(int)
    scale = panel_scale(images.shape[2], SMALL_PANEL)
    height, width = patches.sides(patch_size)
    enlarged = height * scale, width * scale
    panels, captions = [], []
    for image, of_image in zip(images, maps, strict=True):
        of_blocks = [attention_panel(of_image[block], grid, enlarged) for block in blocks]
        panels.append([enlarge(image, scale), *of_blocks])
        captions.append(["", *(f"max {of_image[block].max():.1%}" for block in blocks)])
    titles = ["Original", *(f"{of} {block + 1}" for block in blocks)]
    if len(blocks) < depth:
        note = f"{note}; {len(blocks)} of {depth} {of.lower()}s"
    return compose(panels, titles, captions, attention_legend(), fill=True, note=note)
