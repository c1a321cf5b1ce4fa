"""How large transformers are: the usual sizes of encoders by name, and any other."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Width D, number of blocks, number of attention heads, and width of the MLPs' hidden layer;
    `mlp` None is 4 D."""

    width: int
    depth: int
    heads: int
    mlp: int | None = None

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer."""
        return 4 * self.width if self.mlp is None else self.mlp


SIZES = {
    "Pi": Size(96, 4, 3),
    "Mu": Size(128, 6, 4),
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
