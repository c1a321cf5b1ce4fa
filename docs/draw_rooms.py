"""Draws docs/architecture.svg: the rooms of dppmask_jax and who imports whom, from the imports.

    python docs/draw_rooms.py

A room stands one row below the highest room that imports it. An arrow that follows from others is
left out: what it says, they say.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dppmask_jax"
BOX, GAP, ROW, MARGIN = (132, 46), 14, 88, 20  # pixels
# Errors, numbers with nouns and the like: everything imports them, which would say nothing.
EVERYWHERE = {"__init__", "__main__", "errors", "extras", "paths", "terminal", "words"}


def rooms() -> dict[str, list[Path]]:
    """The files of each room: a folder of the package, or a file beside them."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in EVERYWHERE:
            found.setdefault(room, []).append(path)
    return found


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dppmask_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dppmask_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("dppmask_jax.")
            )


def graph() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    files = rooms()
    return {
        room: {
            other
            for path in paths
            for other in imported_rooms(path)
            if other in files and other != room
        }
        for room, paths in files.items()
    }


def reachable(uses: dict[str, set[str]], room: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(uses[room])
    while waiting:
        other = waiting.pop()
        if other not in seen:
            seen.add(other)
            waiting += uses[other]
    return seen


def without_shortcuts(uses: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph less each edge that another path implies."""
    return {
        room: {
            other
            for other in others
            if not any(other in reachable(uses, way) for way in others - {other})
        }
        for room, others in uses.items()
    }


def rows(uses: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by the longest way down, the ones that import nothing last."""
    height: dict[str, int] = {}

    def height_of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max(map(height_of, uses[room]), default=-1)
        return height[room]

    highest = max(map(height_of, uses))
    return [sorted(r for r in uses if height[r] == level) for level in range(highest, -1, -1)]


def places(levels: list[list[str]], edges: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """The middle of each box; in a row, by where the rooms that import it stand."""
    widest = max(map(len, levels))
    middle = MARGIN + widest * (BOX[0] + GAP) / 2
    place: dict[str, tuple[float, float]] = {}
    for number, level in enumerate(levels):

        def above(room):
            users = [place[user][0] for user in edges if room in edges[user] and user in place]
            return (sum(users) / len(users) if users else middle, room)

        for i, room in enumerate(sorted(level, key=above)):
            x = middle + (i - (len(level) - 1) / 2) * (BOX[0] + GAP)
            place[room] = (x, MARGIN + BOX[1] / 2 + number * ROW)
    return place


def svg() -> str:
    uses = graph()
    edges, levels = without_shortcuts(uses), rows(uses)
    place = places(levels, edges)
    folders = {room for room, paths in rooms().items() if len(paths) > 1}
    width = max(x for x, _ in place.values()) + BOX[0] / 2 + MARGIN
    height = MARGIN * 2 + BOX[1] + (len(levels) - 1) * ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="sans-serif" font-size="14">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for room, others in sorted(edges.items()):
        for other in sorted(others):
            (x0, y0), (x1, y1) = place[room], place[other]
            top, bottom = y0 + BOX[1] / 2, y1 - BOX[1] / 2
            lines.append(
                f'<path d="M{x0:.0f} {top:.0f} C{x0:.0f} {top + 24:.0f} {x1:.0f} {bottom - 24:.0f} '
                f'{x1:.0f} {bottom:.0f}" fill="none" stroke="#8a94a6" stroke-width="1.2"/>'
            )
    for room, (x, y) in sorted(place.items()):
        fill = "#dbe7f6" if room in folders else "#f3f3f0"
        name = f"{room}/" if room in folders else f"{room}.py"
        lines += [
            f'<rect x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" '
            f'height="{BOX[1]}" rx="6" fill="{fill}" stroke="#44546a"/>',
            f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{escape(name)}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs" / "architecture.svg").write_text(svg(), encoding="utf-8")
