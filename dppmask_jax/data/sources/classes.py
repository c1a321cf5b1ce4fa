"""Classes by the labels of images, and lists of classes to keep of a data set."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, Rule, is_text

IMAGENET100 = "imagenet100"
FIELDS = {
    "data.classes": Field(
        "",
        Rule(
            lambda value: is_text(value) and (value in ("", IMAGENET100) or value.endswith(".txt")),
            "imagenet100, or a FILE.txt with the name of a class on each line; '' for all classes",
        ),
        "the only classes that are taken",
    ),
}


class Labels(NamedTuple):
    """The labels of n images.

    Attributes:
      numbers: (n,) int32; 0 for all where there are no classes.
      names: of the classes.
      because: why there are none, in words; "" where there are some.
    """

    numbers: np.ndarray
    names: tuple[str, ...]
    because: str


def numbered(values: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """((n,) int32, class names): the different values in ascending order, as numbers if all are;
    of the same number (1 and 01) as texts."""
    different = set(values)
    numbers = all(re.fullmatch(r"\d{1,18}", value) for value in different)
    names = sorted(different, key=lambda value: (int(value) if numbers else 0, value))
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of[value] for value in values], np.int32), tuple(names)


def of_splits(
    values: Sequence[str],
    title: str,
    name: Callable[[int], str],
    val: np.ndarray,
    names: tuple[str, ...] = (),
) -> tuple[Labels, Labels]:
    """(labels of the images for training, labels of those for validation), each in their order.

    A split of which an image has no label is without labels; where it is that for validation, the
    images for training keep theirs.

    Args:
      values: what n images have for a label; "" where one has none.
      title: of the data set, for messages.
      name: i -> what to call image i.
      val: (n,) bool, which images are for validation.
      names: of all classes in their order, where the labels for training are some of them; () for
        the different labels in ascending order.

    Raises:
      InputError: a class for validation has no training image.
    """
    of_train, of_val = ([values[i] for i in np.flatnonzero(val == one)] for one in (False, True))
    train = _of_all(of_train, title, lambda i: name(int(np.flatnonzero(~val)[i])), names)
    because = ""
    if train.because:
        because = train.because
        if any(of_val):
            because = f"the training images have no labels: {because}"
    elif "" in of_val:
        because = f"{name(int(np.flatnonzero(val)[of_val.index('')]))} has no label"
    if because:
        return train, Labels(np.zeros(len(of_val), np.int32), (), because)
    untrained = sorted(set(of_val) - set(of_train))
    if untrained:
        raise InputError(
            f"{title}: no training image has the label {untrained[0]!r}, which some for validation "
            "have; add one, or take these out"
        )
    label_of = {one: label for label, one in enumerate(train.names)}
    return train, train._replace(numbers=np.array([label_of[one] for one in of_val], np.int32))


def instead_of_testing(of_val: Labels) -> str:
    """The note of a data set whose images for testing are not used, since they lack labels."""
    return f"a share of the training images is for validation, since {of_val.because}"


def _of_all(
    values: Sequence[str], title: str, name: Callable[[int], str], names: tuple[str, ...] = ()
) -> Labels:
    because = ""
    if not any(values):
        because = f"{title} has no labels"
    elif "" in values:
        because = f"{name(values.index(''))} has no label"
    elif len(names or set(values)) < 2:
        because = f"{title} has one label only"
    if because:
        return Labels(np.zeros(len(values), np.int32), (), because)
    if not names:
        return Labels(*numbered(values), "")
    label_of = {one: label for label, one in enumerate(names)}
    return Labels(np.array([label_of[value] for value in values], np.int32), names, "")


def class_list(chosen: str, field: str = "data.classes") -> tuple[str, ...]:
    """Reads a list of classes.

    Args:
      field: of the config that chooses it, for messages.
      chosen: imagenet100, the 100 classes of ImageNet (WordNet ids, in ascending order) of CMC
        (arXiv 1906.05849), which ADIOS and DPPMask use as well; or a text file in UTF-8 with the
        name of a class on each line.

    Returns:
      The names in the order of the list; blank lines do not count.

    Raises:
      InputError: a missing, unreadable or empty file, or a class listed twice.
    """
    if chosen == IMAGENET100:
        path = importlib.resources.files("dppmask_jax.data.sources") / "imagenet100.txt"
    else:
        path = Path(chosen).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"config.{field}={chosen}: {error.strerror}; give imagenet100 or a text file with "
            "a class on each line"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"config.{field}={chosen} is no text in UTF-8: {error}") from error
    names = tuple(filter(None, map(str.strip, lines)))
    if not names:
        raise InputError(f"config.{field}={chosen} lists no class; write one on each line")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"config.{field}={chosen} lists {twice[0]!r} twice; remove one")
    return names
