"""Files that hold many images each: which ones a pattern names, and which are for validation."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dppmask_jax.data.sources.folder import TEST, TRAIN, VALIDATION
from dppmask_jax.errors import InputError
from dppmask_jax.words import count

_MOST = 1_000_000  # files of a pattern


class Shards(NamedTuple):
    """The files of a data set."""

    root: str  # the folder that all of them are below
    paths: tuple[str, ...]
    val: np.ndarray  # (files,) bool, which are for validation; none where a share is held out
    notes: tuple[str, ...]

    def relative(self) -> tuple[str, ...]:
        """The paths below the root."""
        return tuple(os.path.relpath(path, self.root) for path in self.paths)


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
        if both := sorted(set(paths) & set(val)):
            raise InputError(f"{both[0]} is for training and for validation; name it for one")
        flags = np.arange(len(paths) + len(val)) >= len(paths)
        return Shards(_root((*paths, *val)), (*paths, *val), flags, ())
    root = _root(paths)
    meant = np.array([_meant(os.path.relpath(path, root)) for path in paths])
    kept_back = next((kind for kind in ("val", "test") if (meant == kind).any()), "")
    if not kept_back or not (meant == "train").any():
        return Shards(root, tuple(paths), np.zeros(len(paths), bool), ())
    used = (meant == "train") | (meant == kept_back)
    notes = []
    if not used.all():
        first = paths[int(np.argmin(used))]
        notes = [f"{count(int((~used).sum()), 'file')} not used, such as {first}"]
    chosen = [path for path, use in zip(paths, used, strict=True) if use]
    return Shards(root, tuple(chosen), (meant == kept_back)[used], tuple(notes))


def _matching(kind: str, pattern: str, extension: str) -> list[str]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"{kind}:{pattern}: files are read from disk; copy or mount them")
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), f"*{extension}")
    paths, missing = [], []
    for one in _expanded(pattern):
        matched = sorted(glob.glob(one)) if glob.has_magic(one) else [one]
        paths += matched
        missing += [one] * (not matched or not os.path.exists(matched[0]))
    if missing:
        more = f", the first of {len(missing)}" if len(missing) > 1 else ""
        raise InputError(
            f"{kind}:{pattern}: there is no file {missing[0]}{more}; correct the pattern, or copy "
            "what is missing"
        )
    return list(dict.fromkeys(paths))


def _expanded(pattern: str) -> list[str]:
    """{a,b} and {00..12} as a shell expands them."""
    inside = re.search(r"\{([^{}]*)\}", pattern)
    if not inside:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside[1])
    if span:
        first, last = map(int, span.groups())
        if not 0 <= last - first < _MOST:
            raise InputError(f"{{{inside[1]}}} in {pattern} is no range from low to high")
        width = len(span[1])
        choices: Sequence[str] = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        choices = inside[1].split(",")
    before, after = pattern[: inside.start()], pattern[inside.end() :]
    return [path for choice in choices for path in _expanded(f"{before}{choice}{after}")]


def _root(paths: Sequence[str]) -> str:
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _meant(relative: str) -> str:
    """The split that a file's name or one of its folders is a word for; "" where none is."""
    words = re.split(r"[^A-Za-z0-9]+", relative)
    kinds = {"train": TRAIN, "val": VALIDATION, "test": TEST}
    return next((name for name, kind in kinds.items() if any(map(kind.fullmatch, words))), "")
