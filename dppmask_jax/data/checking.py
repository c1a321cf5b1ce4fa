"""`dppmask data check SOURCE`: every image of a data set is read and decoded.

What was found is told: counts, sizes, classes, kinds, unreadable images with reasons, and images
that are the same.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dppmask_jax import pixel_format
from dppmask_jax.data.images import decode
from dppmask_jax.data.sources import kept_pixels, opening
from dppmask_jax.data.sources.base import Source, notes_of
from dppmask_jax.data.sources.image_files import NoneReadable, why
from dppmask_jax.errors import one_line
from dppmask_jax.words import count

_THREADS = 4
_SHOWN = 10  # images, classes or groups that a list of the text has
_SHARES = {"smallest": 0, "5 %": 5, "median": 50, "95 %": 95, "largest": 100}
_BITS = {"1": "1 bit", "I": "32 bits", "F": "floats"}  # of Pillow's modes; others have 8


class Seen(NamedTuple):
    """What is known of an image that was read.

    Attributes:
      height, width: in pixels, upright.
      kind: of file and pixels, such as "JPEG, 3 channels (RGB), 8 bits".
      frames: that the file has, of which the first counts.
      data, pixels: digests of its bytes, b"" where they are not known, and of its size and pixels.
    """

    height: int
    width: int
    kind: str
    frames: int
    data: bytes
    pixels: bytes


def looked_at(
    spec: str, *, most: int | None, channels: int | None, **options
) -> tuple[dict[str, Source], dict[str, dict[int, Seen | str]]]:
    """(splits as of `splits_of`, {split: what `look` returns of it}).

    Images that are refused, since none of a sample can be read, are one split, called "refused", of
    which those are told that cannot be read.
    """
    try:
        splits = splits_of(spec, channels=channels, **options)
    except NoneReadable as error:
        return _refused(error, most)
    return splits, {name: look(split, most, channels) for name, split in splits.items()}


def _refused(error: NoneReadable, most: int | None):
    source = Source(
        size=error.count,
        read=error.try_one,  # nothing of it is kept
        name=error.name,
        unlabelled_because="they were not looked for",
        notes=(f"training refuses this: {error}",),
    )
    tried = _tried(source, most, error.try_one)
    return {"refused": source}, {"refused": {i: told for i, told in tried.items() if told}}


def splits_of(spec: str, *, channels: int | None, **options) -> dict[str, Source]:
    """{"train", and "val" where there is one: the images as their files have them}.

    Args:
      channels: as data.channels; None: each image is one that 8-bit RGB is made of.
      options: of `opening.open_splits`.

    Raises:
      InputError: see `opening.open_splits`.
    """
    if channels:
        splits = opening.open_splits(spec, pixels=pixel_format.ANY, **options)
    else:
        splits = opening.encoded_splits(spec, **options)
    return {name: split for name, split in zip(("train", "val"), splits, strict=True) if split}


def look(source: Source, most: int | None, channels: int | None) -> dict[int, Seen | str]:
    """{row: what was seen, or why the image is unreadable} of all images, or of `most`, evenly
    spread."""

    def see(i: int) -> Seen:
        data = source.read(i)[0]
        return _of_values(data, channels) if channels else _of_bytes(data)

    return _tried(source, most, see)


def _tried(source: Source, most: int | None, see: Callable[[int], Seen | None]) -> dict:
    rows = range(len(source)) if most is None else kept_pixels.sampled(source, most)

    def seen_or_why(i: int) -> Seen | str | None:
        try:
            return see(i)
        except (OSError, decode.DecodeError) as error:
            return one_line(why(error))

    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(rows, threads.map(seen_or_why, rows), strict=True))


def _of_bytes(data: bytes) -> Seen:
    pixels = decode.decode(data)
    image = decode.open_image(data)
    kind, frames = _kind(image), _frames(image)
    return Seen(*pixels.shape[:2], kind, frames, _digest(data), _digest_of_pixels(pixels))


def _frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # the first frame can be read, and others are broken
        return 1


def _kind(image: Image.Image) -> str:
    mode = image.mode
    channels = len(image.getbands())
    bits = "16 bits" if "16" in mode else _BITS.get(mode, "8 bits")
    return f"{image.format}, {count(channels, 'channel')} ({mode}), {bits}"


def _of_values(values: np.ndarray, channels: int) -> Seen:
    """Of pixels (h, w, C); raises decode.DecodeError where C is another number."""
    found = values.shape[-1]
    if found != channels:
        raise decode.DecodeError(f"it has {count(found, 'channel')}, not {channels}")
    kind = f"{count(found, 'channel')}, {values.dtype}"
    return Seen(*values.shape[:2], kind, 1, b"", _digest_of_pixels(values))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _digest_of_pixels(pixels: np.ndarray) -> bytes:
    about = f"{pixels.shape} {pixels.dtype}".encode()
    return _digest(about + np.ascontiguousarray(pixels).tobytes())


def report(spec: str, splits: dict[str, Source], looked: dict[str, dict]) -> dict[str, Any]:
    """All that was found, for JSON.

    Args:
      looked: what `look` returned of each split.
    """
    found = {name: _of_split(split, looked[name]) for name, split in splits.items()}
    return {
        "source": spec,
        "notes": list(notes_of(*splits.values())),
        "splits": found,
        "broken": sum(len(split["unreadable"]) for split in found.values()),
        "duplicates": _duplicates(splits, looked),
    }


def _of_split(source: Source, looked: dict[int, Seen | str]) -> dict[str, Any]:
    seen = {i: one for i, one in looked.items() if isinstance(one, Seen)}
    several = [i for i, one in seen.items() if one.frames > 1]
    sides = {
        name: {share: float(np.percentile([getattr(one, name) for one in seen.values()], at))
               for share, at in _SHARES.items()}
        for name in ("height", "width") if seen
    }  # fmt: skip
    classes, without = None, 0
    if source.labels is not None:
        labels = source.labels()
        counts = np.bincount(labels[labels >= 0], minlength=source.num_classes).tolist()
        without = int((labels < 0).sum())
        classes = dict(zip(source.class_names, counts, strict=True))
    return {
        "images": len(source),
        "looked_at": len(looked),
        "classes": classes,
        "without_label": without,
        "unlabelled_because": source.unlabelled_because,
        "kinds": dict(collections.Counter(one.kind for one in seen.values()).most_common()),
        "sides": sides,
        "smallest": _smallest(source, seen),
        "several_frames": [source.name(i) for i in several],
        "unreadable": [
            {"name": source.name(i), "reason": one}
            for i, one in looked.items() if isinstance(one, str)
        ],
    }  # fmt: skip


def _smallest(source: Source, seen: dict[int, Seen]) -> dict[str, Any] | None:
    if not seen:
        return None
    row = min(seen, key=lambda i: (min(seen[i].height, seen[i].width), i))
    return {"name": source.name(row), "height": seen[row].height, "width": seen[row].width}


def _duplicates(splits: dict[str, Source], looked: dict[str, dict]) -> list[dict[str, Any]]:
    """Groups of images of the same pixels, those across splits first."""
    groups = collections.defaultdict(list)
    for name, rows in looked.items():
        for i, one in rows.items():
            if isinstance(one, Seen):
                groups[one.pixels].append((name, i, one.data))
    found = [
        {
            "across_splits": len({name for name, _, _ in group}) > 1,
            "same_bytes": bool(group[0][2]) and len({data for _, _, data in group}) == 1,
            "images": [splits[name].name(i) for name, i, _ in group],
        }
        for group in groups.values()
        if len(group) > 1
    ]
    return sorted(found, key=lambda group: not group["across_splits"])


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The report as text; names of files and classes may hold anything, see `one_line`."""
    yield from map(one_line, _lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for name, split in found["splits"].items():
        yield from _lines_of_split(name, split)
    for across in (True, False):
        groups = [group for group in found["duplicates"] if group["across_splits"] == across]
        if groups:
            where = "across splits" if across else "within a split"
            images = sum(len(group["images"]) for group in groups)
            within = count(len(groups), "group")
            yield f"the same pixels {where}: {count(images, 'image')} in {within}"
            yield from _some([_same(group) for group in groups])
    for note in found["notes"]:
        yield f"note: {note}"
    broken = found["broken"]
    yield f"{count(broken, 'image')} cannot be read" if broken else "all images can be read"


def _same(group: dict[str, Any]) -> str:
    return " = ".join(group["images"]) + " (other bytes)" * (not group["same_bytes"])


def _lines_of_split(name: str, split: dict[str, Any]) -> Iterator[str]:
    some = f", {split['looked_at']:,} looked at" * (split["looked_at"] < split["images"])
    yield f"{name}: {count(split['images'], 'image')}{some}"
    if split["classes"] is None:
        yield f"  no labels: {split['unlabelled_because']}"
    else:
        counts = sorted(split["classes"].items(), key=lambda item: item[1])
        least, most = counts[0], counts[-1]
        yield (
            f"  {count(len(counts), 'class', 'classes')}, of {least[1]:,} ({least[0]}) to "
            f"{most[1]:,} images ({most[0]})"
        )
        if len(counts) <= _SHOWN:
            yield "  " + ", ".join(f"{label} {n:,}" for label, n in split["classes"].items())
    if split["without_label"]:
        yield f"  {count(split['without_label'], 'image')} without a label"
    for side, shares in split["sides"].items():
        numbers = ", ".join(f"{share} {value:g}" for share, value in shares.items())
        yield f"  {side}: {numbers}"
    if small := split["smallest"]:
        yield f"  smallest: {small['name']}, {small['width']} x {small['height']}"
    for kind, number in split["kinds"].items():
        yield f"  {number:>9,} {kind}"
    for words, names in (
        ("of several frames or pages, the first counts", split["several_frames"]),
        ("unreadable", [f"{one['name']}: {one['reason']}" for one in split["unreadable"]]),
    ):
        if names:
            yield f"  {count(len(names), 'image')} {words}"
            yield from _some(names)


def _some(texts: list[str]) -> Iterator[str]:
    yield from (f"    {text}" for text in texts[:_SHOWN])
    if len(texts) > _SHOWN:
        yield f"    and {len(texts) - _SHOWN:,} more; --json=FILE names all"
