"""Numbers with their nouns."""

from __future__ import annotations


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
