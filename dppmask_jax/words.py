"""Numbers with their nouns."""

from __future__ import annotations


def count(number: float, noun: str, plural: str = "") -> str:
    """Such as "1 epoch", "2,000 epochs" and "0.5 epochs".

    Args:
      plural: where it is not the noun with an s.
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"
