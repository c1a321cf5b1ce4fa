"""Sizes of transformers: the usual ones by name, and any other."""

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

_PARTS = ("width", "depth", "heads", "mlp")


def size_of(model) -> Size:
    """The size that `config.model` asks for: that of its name, but for what is set beside it."""
    given = {part: model.get(part) for part in _PARTS}
    return SIZES[model["size"]]._replace(**{k: v for k, v in given.items() if v is not None})


def set_size(model, size: Size) -> None:
    """Sets the fields of `config.model` that ask for a size: the name of a usual one of that width,
    or of "B", and what differs from it."""
    near = [name for name, usual in SIZES.items() if usual.width == size.width]
    model.size = next((name for name in near if SIZES[name] == size), (near or ["B"])[0])
    usual = SIZES[model.size]
    for part in _PARTS:
        value = getattr(size, part)
        model[part] = None if value == getattr(usual, part) else value


def name_of(model) -> str:
    """The name of a usual size, such as "B"; of another "768x6x12" (width, blocks, heads), and
    "768x6x12h1024" where the hidden layer is not 4 times the width."""
    size = size_of(model)
    name = next((name for name, usual in SIZES.items() if usual == size), None)
    hidden = "" if size.mlp in (None, 4 * size.width) else f"h{size.mlp}"
    return name or f"{size.width}x{size.depth}x{size.heads}{hidden}"
