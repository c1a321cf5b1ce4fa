"""Files that hold many images each: which ones a pattern names, and which are for validation."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.sources import classes
from dppmask_jax.data.sources.classes import Labels
from dppmask_jax.data.sources.folder import TEST, TRAIN, VALIDATION
from dppmask_jax.data.sources.holdout import held_out
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

_MOST = 1_000_000  # files of a pattern
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d{1,18}\.\.\d{1,18})\}")


class Shards(NamedTuple):
    """The files of a data set."""

    root: str  # the folder that all of them are below
    paths: tuple[str, ...]
    val: np.ndarray  # (files,) bool, which are for validation; none where a share is held out
    notes: tuple[str, ...]
    kept_back: str = ""  # "val" or "test", by which word in their names they are for validation

    def relative(self) -> tuple[str, ...]:
        """The paths below the root."""
        return tuple(os.path.relpath(path, self.root) for path in self.paths)


class Part(NamedTuple):
    """The images of one split.

    Attributes:
      rows: (m,) int, which of the images of all files they are.
      labels: of these.
    """

    rows: np.ndarray
    labels: Labels


def parted(
    files: Shards,
    val: np.ndarray,
    labels: tuple[Labels, Labels],
    name: Callable[[int], str],
    val_fraction: float,
) -> tuple[Part, Part, tuple[str, ...]]:
    """(images for training, images for validation, which may be none, notes of `files` and more).

    A share is held out where no file is for validation, or those that are for testing lack the
    labels of the others.

    Args:
      val: (n,) bool, which of n images are in files for validation.
      labels: of those for training and of those for validation, see classes.of_splits.
      name: i -> what tells image i from the others; by it a share is held out.
    """
    train, of_val = (
        Part(np.flatnonzero(val == one), of_it)
        for one, of_it in zip((False, True), labels, strict=True)
    )
    untold = files.kept_back == "test" and train.labels.names and not of_val.labels.names
    notes = files.notes + (classes.instead_of_testing(of_val.labels),) * bool(untold)
    if untold or not len(of_val.rows):
        keys = [os.fsencode(name(i)) for i in train.rows.tolist()]
        out = held_out(keys, train.labels.numbers, val_fraction)
        train, of_val = (
            Part(train.rows[some], train.labels._replace(numbers=train.labels.numbers[some]))
            for some in (~out, out)
        )
    return train, of_val, notes


def found(kind: str, pattern: str, val_pattern: str, extension: str) -> Shards:
    """The files of `kind:pattern`.

    Args:
      pattern: a path with braces ({000..012}, {a,b}), with * and ? as in a shell, or a folder.
      val_pattern: of the files for validation; "" decides by their names: if some have a word such
        as train in them and others one for validation or testing, these are the splits.
      extension: of the files in a folder.

    Raises:
      InputError: there is no such file, one is missing, or one is for both splits.
    """
    paths = _matching(kind, pattern, extension)
    if val_pattern:
        val = _matching(kind, os.path.expanduser(val_pattern), extension)
        return _both(paths, val, ())
    root = _root(paths)
    meant = np.array([_meant(os.path.relpath(path, root)) for path in paths])
    kept_back = next((kind for kind in ("val", "test") if (meant == kind).any()), "")
    if not kept_back or not (meant == "train").any():
        return _both(paths, [], ())
    used = (meant == "train") | (meant == kept_back)
    notes = []
    if not used.all():
        first = paths[int(np.argmin(used))]
        notes = [f"{count(int((~used).sum()), 'file')} not used, such as {first}"]
    train, val = (
        [path for path, of_it in zip(paths, meant, strict=True) if of_it == word]
        for word in ("train", kept_back)
    )
    return _both(train, val, tuple(notes))._replace(kept_back=kept_back)


def _both(train: Sequence[str], val: Sequence[str], notes: tuple[str, ...]) -> Shards:
    """Each file once, whatever names it has: one image for both splits would tell nothing."""
    by_file = {os.path.realpath(path): path for path in reversed(train)}
    others = {os.path.realpath(path): path for path in reversed(val)}
    if twice := sorted(by_file.keys() & others.keys()):
        names = " and ".join(dict.fromkeys((by_file[twice[0]], others[twice[0]])))
        raise InputError(f"{names} is for training and for validation; name it for one")
    paths = (*reversed(by_file.values()), *reversed(others.values()))
    return Shards(_root(paths), paths, np.arange(len(paths)) >= len(by_file), notes)


def _matching(kind: str, pattern: str, extension: str) -> list[str]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"{kind}:{pattern}: files are read from disk; copy or mount them")
    if os.path.isdir(pattern):
        inside = os.path.join(pattern, f"*{extension}")
        paths = sorted(glob.glob(os.path.join(glob.escape(pattern), f"*{extension}")))
        missing = [] if paths else [inside]
    elif os.path.exists(pattern):  # whatever characters are in its name
        return [pattern]
    else:
        paths, missing = [], []
        for one in _expanded(pattern):
            matched = _globbed(one)
            paths += matched
            missing += [one] * (not matched)
    if missing:
        more = f", the first of {len(missing)}" if len(missing) > 1 else ""
        raise InputError(
            f"{kind}:{pattern}: there is no file {missing[0]}{more}; correct the pattern, or copy "
            "what is missing"
        )
    return paths


def _globbed(pattern: str) -> list[str]:
    """The files of a pattern with * and ?; what exists by its name is meant as it stands."""
    there = pattern
    while there and not os.path.exists(there):
        there = os.path.dirname(there)
    return sorted(glob.glob(glob.escape(there) + pattern[len(there) :]))


def _expanded(pattern: str) -> list[str]:
    """{a,b} and {00..12} as a shell expands them; other braces stand for themselves."""
    paths = [pattern]
    while inside := _BRACES.search(paths[0]):  # all have the same ones
        choices = _choices(pattern, inside[1])
        if len(paths) * len(choices) > _MOST:
            raise InputError(f"{pattern} names more than {_MOST:,} files; name fewer")
        parts = [(path[: found.start()], path[found.end() :])
                 for path in paths if (found := _BRACES.search(path))]  # fmt: skip
        paths = [f"{before}{choice}{after}" for before, after in parts for choice in choices]
    return paths


def _choices(pattern: str, inside: str) -> Sequence[str]:
    span = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside)
    if not span:
        return inside.split(",")
    first, last = map(int, span.groups())
    if not 0 <= last - first < _MOST:
        raise InputError(
            f"{{{inside}}} in {pattern} is no range from low to high of at most {_MOST:,} numbers"
        )
    return [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]


def _root(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _meant(relative: str) -> str:
    """The split that a file's name or one of its folders is a word for; "" where none is."""
    words = re.split(r"[^A-Za-z0-9]+", relative)
    kinds = {"train": TRAIN, "val": VALIDATION, "test": TEST}
    return next((name for name, kind in kinds.items() if any(map(kind.fullmatch, words))), "")
