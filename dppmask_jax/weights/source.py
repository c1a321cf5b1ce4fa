"""What is imported: a file's tensors by the names of its format, and how to take them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.weights import files, names, sizes
from dppmask_jax.words import count

PARTS = ("decoder", "head", "norm")
_MOST_VALUES = 2**32  # thrice those of the largest, an iBOT with two ViT-H


class Options(NamedTuple):
    """How to take a file.

    Attributes:
      known: what its tensors do not say.
      allow_missing: of PARTS, what the file may lack altogether; it starts fresh.
      drop: tensors whose names start so are left aside.
      resize_positions: (height, width) of the images that the run is for, where the file is for
        others; None keeps the file's.
      mean, std: how the file's model wants pixels from 0 to 1 normalised; None is as here.
    """

    known: sizes.Known = sizes.Known()
    allow_missing: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    resize_positions: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class File(NamedTuple):
    """An open file.

    Attributes:
      path, form: the file and its format.
      entries: its tensors, by the names of the format.
      stated: config.json beside it.
      left_aside: what else it holds.
    """

    path: Path
    form: names.Format
    entries: dict[str, files.Entry]
    stated: dict[str, Any]
    left_aside: tuple[str, ...]

    def name_of(self, name: str) -> str:
        """The format's name of the first tensor that MAE calls so."""
        prefix = "student.module." if self.form.holds == "both" else ""
        return prefix + self.form.spell(name)[0]


@contextlib.contextmanager
def opened(path: str | Path, format_name: str, drop: tuple[str, ...]) -> Iterator[File]:
    """The file of a path while it is open.

    Args:
      format_name: of `names.FORMATS`.
      drop: see `Options`.

    Raises:
      InputError: see `files.opened`; or the file is of another format, or absurdly large.
    """
    form, path = names.FORMATS[format_name], files.find(path)
    stated = files.read_config(path)
    with files.opened(path, form.containers) as (entries, beside):
        for name in (*entries, *beside):
            if not name.isprintable():  # nor does a terminal get to see it
                raise InputError(f"{path} has a tensor called {name!r}; it is no such file")
        entries, dropped = _without(entries, drop)
        entries = _respelled(path, entries, form, format_name)
        num_values = sum(math.prod(entry.shape) for entry in entries.values())
        if num_values > _MOST_VALUES:
            raise InputError(
                f"{path} holds {num_values:.1e} numbers, more than any model here (at most "
                f"{_MOST_VALUES:.1e} are read)"
            )
        yield File(path, form, entries, stated, (*dropped, *beside))


def matched(file: File, template) -> dict[str, np.ndarray]:
    """The tensors of a file, once all of them were found to be what the template wants.

    Raises:
      InputError: what is missing, left over, of another shape or not finite, all of it.
    """
    wanted = jax.eval_shape(lambda tree: names.write(tree, file.form.spell), template)
    faults = [f"missing {name} {array.shape}" for name, array in wanted.items()
              if name not in file.entries]  # fmt: skip
    for name, entry in file.entries.items():
        if name not in wanted:
            faults.append(f"unmatched {name} {entry.shape}")
        elif entry.shape != wanted[name].shape:
            faults.append(f"{name} has shape {entry.shape}, wanted {wanted[name].shape}")
    if not faults:
        tensors = {name: file.entries[name].load() for name in wanted}
        faults = [
            f"{name} is not finite" for name, x in tensors.items() if not np.isfinite(x).all()
        ]
    if faults:
        raise InputError(
            f"{file.path}: {count(len(faults), 'tensor')} out of place: {'; '.join(faults)} "
            "(--drop=PREFIX leaves unmatched ones aside)"
        )
    return tensors


def _without(entries, prefixes):
    """(the entries that are kept, the names of the others)."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in entries):
            raise InputError(f"--drop={prefix}: no tensor of the file starts so")
    dropped = [name for name in entries if name.startswith(prefixes)] if prefixes else []
    return {name: entry for name, entry in entries.items() if name not in dropped}, dropped


def _respelled(path, entries, form, format_name):
    spelled = form.respell(entries)
    cls_token = _cls_token(form)
    if cls_token not in spelled.values():
        fitting = [
            name
            for name, other in names.FORMATS.items()
            if _cls_token(other) in other.respell(entries).values()
        ]
        hint = f"it looks like {' or '.join(fitting)}" if fitting else "no format fits it"
        some = ", ".join(list(entries)[:4])
        raise InputError(
            f"{path} is not of --format={format_name}: it has no {cls_token}, but {some}, …; {hint}"
        )
    found: dict[str, files.Entry] = {}
    for name, new in spelled.items():
        if new in found:
            raise InputError(f"{path} has {new} twice, in two spellings")
        found[new] = entries[name]
    return found


def _cls_token(form) -> str:
    return ("student.module." if form.holds == "both" else "") + form.spell("cls_token")[0]
