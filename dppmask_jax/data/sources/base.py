"""One split of a data set: random access to encoded images and what is known about them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dppmask_jax.data.images import decode
from dppmask_jax.data.images.greys import Range
from dppmask_jax.data.sources import identity
from dppmask_jax.errors import InputError, NotServed
from dppmask_jax.pixel_format import RGB, Pixels

_NAMED = 5  # missing classes that a message lists
_LOOKED_AT = 8  # images that are searched for extras


def _no_extras(i: int) -> dict:
    return {}


def _in_no_file(i: int) -> str:
    return ""


def _nothing_missing() -> None:
    pass


def _unknown() -> str:
    return ""


@dataclass(frozen=True)
class Source:
    """One split of a data set. `len(source)` images; can be pickled.

    Attributes:
      size: number of images.
      read: i -> (encoded image, label); the label is an int, -1 where there is none, or an array
        of `label_shape`. Raises OSError where the file cannot be read, and decode.DecodeError
        where it had to be decoded for `grey_range` and could not.
      name: i -> what to call image i in a message.
      path: i -> the path of the file that is image i, or the slices of which are images; "" where
        images are parts of other files.
      class_names: of the labels, in order; empty where there are none.
      extras: i -> what else the data set knows of image i; for shapes "mask" (H, W) uint8 of 0
        and 255, "segments", "attributes" (24,) uint8 and "background" int; for a CSV file with
        masks "mask" (H, W) uint8 of the image's size; where classes of pixels are known "segments"
        (H, W) uint8 or int32 of the image's size. Else an empty dict.
      check_extras: () -> None; raises InputError where a file that `extras` reads is missing. For
        tasks that need them: the others do without.
      unlabelled_because: why there are no labels, in words; "" where there are some.
      labels: () -> (size,) int32, the labels of all images, without decoding any; None where there
        are no labels. May take minutes the first time.
      targets: () -> (size, C) uint8 of 0 and 1, which of `target_names` apply to each image; None
        where the data set does not say.
      target_names: of the C targets.
      segment_names: of the classes 0, 1, … in "segments"; empty where the data set does not say.
      ignored_segment: the value in "segments" of pixels of no class; None where all have one.
      label_shape: of the labels that `read` gives; () for ints.
      grey_range: what is black and white in greyscale of more than 8 bits, in which `read` gives
        such images in 8 bits; None where `read` gives all images as they are kept.
      pixels: of the images. Where they are `kept`, `read` gives (h, w, C) pixels, uint8 or float32
        from 0 to 1, in the place of most encoded images, and raises decode.DecodeError.
      notes: what the user should know of the data, such as files that were ignored; one line each.
      named: names of unreadable images that the user was told of; a set that the splits of a data
        set share, and all sources made of them.
      identity: () -> a text that is the same for the same images in another place, see
        identity.py; "" where the source was made from another one. May take a while.
    """

    size: int
    read: Callable[[int], tuple[bytes | np.ndarray, int | np.ndarray]]
    name: Callable[[int], str]
    path: Callable[[int], str] = _in_no_file
    class_names: tuple[str, ...] = ()
    extras: Callable[[int], dict] = _no_extras
    unlabelled_because: str = ""
    labels: Callable[[], np.ndarray] | None = None
    targets: Callable[[], np.ndarray] | None = None
    target_names: tuple[str, ...] = ()
    segment_names: tuple[str, ...] = ()
    ignored_segment: int | None = None
    label_shape: tuple[int, ...] = ()
    check_extras: Callable[[], None] = _nothing_missing
    grey_range: Range | None = None
    pixels: Pixels = RGB
    notes: tuple[str, ...] = ()
    named: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)
    identity: Callable[[], str] = _unknown

    def __len__(self) -> int:
        return self.size

    @property
    def labelled(self) -> bool:
        """Whether the images have one label each."""
        return bool(self.class_names)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where there are no labels."""
        return len(self.class_names)


def notes_of(*splits: Source | None) -> tuple[str, ...]:
    """The notes of some splits, each once."""
    return tuple(dict.fromkeys(note for split in splits if split for note in split.notes))


def known(values: np.ndarray) -> Callable[[], np.ndarray]:
    """`labels` or `targets` that are in memory already; can be pickled."""
    return functools.partial(_itself, values)


def first_extras(source: Source, names: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """What a source knows of its first image that has all that is asked for.

    Args:
      names: of the extras.
      where: what asks for them, for messages.

    Raises:
      NotServed: none of the first images has them.
      InputError: a file with one is missing.
    """
    if not names:
        return {}
    source.check_extras()
    for i in range(min(len(source), _LOOKED_AT)):
        with contextlib.suppress(OSError, decode.DecodeError):  # the stream names and replaces it
            known = source.extras(i)
            if all(name in known for name in names):
                return {name: np.asarray(known[name]) for name in names}
    raise NotServed(
        f"{where} needs the {' and '.join(names)} of each image, and the data set of "
        f"{source.name(0)} has none; set data.source to shapes, or for masks to saliency:ROOT or a "
        "csv:FILE with a column of them"
    )


def with_targets(source: Source) -> Source:
    """The same images with their targets for labels.

    Returns:
      A source whose `read` gives (encoded image, (C,) uint8); its `class_names` are empty, what
      the C numbers mean stands in `target_names`. The targets are read here, once.

    Raises:
      InputError: the source has no targets.
    """
    if source.targets is None:
        raise InputError(
            f"the data set of {source.name(0)} does not have several labels an image; "
            "set data.source to shapes, coco:ROOT, clevr:ROOT or a csv:FILE with 0/1 columns"
        )
    targets = source.targets()
    return dataclasses.replace(
        source,
        read=functools.partial(_read_with, source, targets),
        class_names=(),
        unlabelled_because="its labels are several an image",
        labels=None,
        targets=known(targets),
        label_shape=targets.shape[1:],
    )


def only_classes(source: Source, names: Sequence[str], where: str) -> Source:
    """The images of some classes only.

    Args:
      names: of the classes to keep; label k of the result is names[k].
      where: what asked for these classes, for messages.

    Returns:
      A source of these images, in their order.

    Raises:
      InputError: the source has no labels, lacks some of the classes or has no image of them.
    """
    if source.labels is None:
        raise InputError(f"{where}: the images have no labels: {source.unlabelled_because}")
    there = set(source.class_names)
    missing = [name for name in names if name not in there]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise InputError(
            f"{where}: the data set lacks {len(missing)} of the {len(names)} classes: "
            f"{', '.join(missing[:_NAMED])}{more}; its classes are {source.class_names[0]!r} to "
            f"{source.class_names[-1]!r}"
        )
    new_label = np.full(source.num_classes, -1, np.int32)
    new_label[[source.class_names.index(name) for name in names]] = np.arange(len(names))
    labels = source.labels()
    labels = np.where(labels >= 0, new_label[labels], -1)
    rows = np.flatnonzero(labels >= 0)
    if not rows.size:
        raise InputError(f"{where}: a split of the data set has no image of these classes")
    labels = labels[rows]
    return dataclasses.replace(
        source,
        size=len(rows),
        read=functools.partial(_read_row, source, rows, labels),
        name=functools.partial(_at_row, source.name, rows),
        path=functools.partial(_at_row, source.path, rows),
        class_names=tuple(names),
        extras=functools.partial(_at_row, source.extras, rows),
        labels=known(labels),
        targets=source.targets and functools.partial(_some_rows, source.targets, rows),
        identity=functools.partial(_identity_of_classes, source, tuple(names)),
    )


def _identity_of_classes(source: Source, names: tuple[str, ...]) -> str:
    return identity.of_parts(source.identity(), *names)


def _itself(values):
    return values


def _read_with(source: Source, targets, i: int):
    return source.read(i)[0], targets[i]


def _read_row(source: Source, rows, labels, i: int):
    return source.read(int(rows[i]))[0], int(labels[i])


def _at_row(function, rows, i: int):
    return function(int(rows[i]))


def _some_rows(targets, rows):
    return targets()[rows]
