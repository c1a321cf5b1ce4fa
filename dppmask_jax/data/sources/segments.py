"""Maps of classes: the "segments" of a source, a class for each pixel."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import numpy as np

from dppmask_jax.data.images import decode
from dppmask_jax.data.sources.base import Source

IGNORED = 255  # of pixels of no class
TWO_CLASSES = ("background", "foreground")
_LOOKED_AT = 8  # images that are searched for extras


def of_mask(mask: np.ndarray) -> np.ndarray:
    """A foreground mask (H, W) uint8 as two classes: 0 up to 63, 1 from 192 on. What lies between
    is a border that belongs to neither and becomes IGNORED."""
    classes = np.full(mask.shape, IGNORED, np.uint8)
    classes[mask < 64] = 0
    classes[mask >= 192] = 1
    return classes


def segmented(source: Source) -> Source | None:
    """A source whose images have "segments": those that it has, or two classes made of its
    foreground masks; None where it has neither.

    Raises:
      InputError: a file of a map is missing.
    """
    source.check_extras()
    known: set[str] = set()
    for i in range(min(len(source), _LOOKED_AT)):
        with contextlib.suppress(OSError, decode.DecodeError):  # named where it is used
            known |= source.extras(i).keys()
    if "segments" in known:
        return source
    if "mask" not in known:
        return None
    return dataclasses.replace(
        source,
        extras=functools.partial(_with_two_classes, source.extras),
        segment_names=TWO_CLASSES,
        ignored_segment=IGNORED,
    )


def _with_two_classes(extras, i: int) -> dict:
    known = extras(i)
    return known | {"segments": of_mask(known["mask"])} if "mask" in known else known
