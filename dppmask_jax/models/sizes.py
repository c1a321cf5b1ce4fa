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

_PARTS = ("width", "depth", "heads", "mlp")


def size_of(model) -> Size:
    """The size that `config.model` asks for: the usual one, with what is set beside it."""
    given = {part: model.get(part) for part in _PARTS}
    return SIZES[model["size"]]._replace(**{k: v for k, v in given.items() if v is not None})


def set_size(model, size: Size) -> None:
    """Lets `config.model` ask for a size, by the name of the usual one that is nearest to it."""
    near = [name for name, usual in SIZES.items() if usual.width == size.width]
    model.size = next((name for name in near if SIZES[name] == size), (near or ["B"])[0])
    usual = SIZES[model.size]
    for part in _PARTS:
        value = getattr(size, part)
        model[part] = None if value == getattr(usual, part) else value


def name_of(model) -> str:
    """The name of a size, "B", or where it has none what it is: "768x6x12", blocks and heads
    behind the width, and "h1024" behind them for another hidden layer."""
    size = size_of(model)
    name = next((name for name, usual in SIZES.items() if usual == size), None)
    hidden = "" if size.mlp in (None, 4 * size.width) else f"h{size.mlp}"
    return name or f"{size.width}x{size.depth}x{size.heads}{hidden}"
