"""Numbers with their nouns, and who says what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def count(number: float, noun: str, plural: str = "") -> str:
    """Such as "1 epoch", "2,000 epochs" and "0.5 epochs".

    Args:
      plural: where it is not the noun with an s.
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"


def with_article(name: str) -> str:
    """Such as "a classifier" and "an iBOT"; of "an MAE" the letters are said one by one."""
    spelled = name[0] in "FHLMNRSX" and name[:2].isupper()
    return f"{'an' if spelled or name[0] in 'aeiouAEIOU' else 'a'} {name}"


def by_whom(lines: Mapping[str, Iterable[str]]) -> list[str]:
    """{who: lines} as lines, each once: those of all, then the others behind those who have them,
    such as "a, b: a line"."""
    told: dict[str, list[str]] = {}
    for who, own in lines.items():
        for line in dict.fromkeys(own):
            told.setdefault(line, []).append(who)
    of_all = [line for line, whose in told.items() if len(whose) == len(lines)]
    return of_all + [
        f"{', '.join(whose)}: {line}" for line, whose in told.items() if line not in of_all
    ]
