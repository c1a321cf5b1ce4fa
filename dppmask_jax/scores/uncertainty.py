"""How far a measured share may be from that of all images like those it was measured on."""

from __future__ import annotations

import math


def standard_error(share: float, count: int) -> float:
    """Of a share of `count` independent images that are right: sqrt(p (1 - p) / n).

    It says how far another sample of images would move the share; not how far another training
    would.

    Args:
      share: 0 to 1.
      count: at least 1.
    """
    return math.sqrt(share * (1 - share) / count)
