"""What black and white are, in greyscale of more than 8 bits.

Such files (16 and 32 bits, floats) do not say which of their values is white. It is decided once
for a data set, for both splits, from a sample of its files, never for each image: else an image's
brightness would depend on its own brightest pixel. Values up to a tenth beyond the range, such as a
filter's overshoot, do not change the decision; values outside of the range are cut to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dppmask_jax.pixel_format import Pair

_UNIT, _BYTE, _WORD = (0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)
_SLACK = 0.1  # of the range, that values may lie outside of it


class Range(NamedTuple):
    """What is black and what is white, in files of whole numbers and in files of floats."""

    whole: Pair = _WORD
    floats: Pair = _UNIT

    def of(self, floats: bool) -> Pair:
        """(black, white) of a file, by whether it holds floats."""
        return self.floats if floats else self.whole


def of_one(extent: Pair, floats: bool) -> Range:
    """The range of an image by itself, which belongs to no data set.

    Args:
      extent: its (smallest, largest) value.
      floats: whether it holds floats.

    Returns:
      0 to 1, 0 to 255 or full 16 bits, where the values look like one of them; else full 16 bits
      for whole numbers and 0 to 255 for floats.
    """
    pair = _known(extent, floats) or (_BYTE if floats else _WORD)
    return Range(pair, pair)


def of_sample(extents: Sequence[tuple[Pair, bool]]) -> tuple[Range, tuple[str, ...]]:
    """The range of a data set.

    Args:
      extents: of each file in a sample that has more than 8 bits, what `of_one` takes.

    Returns:
      The range: 0 to 1, 0 to 255 or full 16 bits, where all values look like it; else what they
      span, for whole numbers up to the next power of two, and a line that says so. Where the sample
      has none, whole numbers are taken for 16 bits, and floats for 0 to 1.
    """
    found, lines = {}, []
    for floats in (False, True):
        pairs = [pair for pair, kind in extents if kind == floats]
        if not pairs:
            continue
        extent = min(low for low, _ in pairs), max(high for _, high in pairs)
        found[floats] = _known(extent, floats)
        if found[floats] is None:
            found[floats] = _spanned(extent, floats)
            black, white = found[floats]
            lines.append(
                f"warning: grey values of {len(pairs)} files lie from {extent[0]:g} to "
                f"{extent[1]:g}, which is not 0 to 1, 0 to 255 or 16 bits: {black:g} is taken for "
                f"black, {white:g} for white; say what they are with config.data.range=BLACK,WHITE"
            )
    return Range(found.get(False, _WORD), found.get(True, _UNIT)), tuple(lines)


def _known(extent: Pair, floats: bool) -> Pair | None:
    low, high = extent
    if not floats and low >= 0:
        if high <= 1:
            return _UNIT
        if high <= 255:
            return _BYTE
        return _WORD if 2**15 <= high <= 65535 else None
    for (_, white), least in ((_UNIT, 0.0), (_BYTE, 128.0), (_WORD, 2.0**15)):
        if least <= high <= (1 + _SLACK) * white and low >= -_SLACK * white:
            return 0.0, white
    return None


def _spanned(extent: Pair, floats: bool) -> Pair:
    low, high = min(extent[0], 0.0), extent[1]
    if not floats and high > 0:
        high = 2.0 ** math.ceil(math.log2(high + 1)) - 1  # 10, 12 or 14 bits
    return low, max(high, low + 1e-6 * max(1.0, abs(low)))
