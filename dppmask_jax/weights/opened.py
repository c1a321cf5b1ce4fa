"""What is imported: a file's tensors by the names of its format, and how to take them."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from dppmask_jax.errors import InputError
from dppmask_jax.weights import architecture, canonical, files, names, prefixes, sizes
from dppmask_jax.weights.families import FAMILIES
from dppmask_jax.words import count

PARTS = ("decoder", "head", "norm")
_MOST_VALUES = 2**32  # thrice those of the largest, an iBOT with two ViT-H


class Options(NamedTuple):
    """How to take a file.

    Attributes:
      known: what its tensors do not say.
      allow_missing: of PARTS, what the file may lack altogether; it starts fresh.
      drop: tensors of heads whose names start so are left aside.
      strip_prefix: what the names of the wanted tensors start with; it is taken off, and all others
        are left aside. "" finds out.
      asked: fields of the config that were asked for by name, which the file does not change.
      resize_positions: (height, width) of the images that the run is for, where the file is for
        others; None keeps the file's.
      mean, std: how the file's model wants pixels from 0 to 1 normalised; None is as here.
    """

    known: sizes.Known = sizes.Known()
    allow_missing: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    strip_prefix: str = ""
    asked: frozenset[str] = frozenset()
    resize_positions: tuple[int, int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class File(NamedTuple):
    """An open file.

    Attributes:
      path, form: the file and its format.
      entries: its tensors, by the names of the format.
      stated: config.json beside it, with "image_mean" and "image_std" of preprocessor_config.json.
      left_aside: what else it holds.
      prefix: what was taken off all names.
      spelled: of a published encoder, {name of `families.base`: name in the file}.
    """

    path: Path
    form: names.Format
    entries: dict[str, files.Entry]
    stated: dict[str, Any]
    left_aside: tuple[str, ...]
    prefix: str = ""
    spelled: Mapping[str, str] = MappingProxyType({})

    def name_of(self, name: str) -> str:
        """The format's name of the first tensor that MAE calls so."""
        prefix = "student.module." if self.form.holds == "both" else ""
        return prefix + self.form.spell(name)[0]


@contextlib.contextmanager
def opened(path: str | Path, format_name: str, options: Options) -> Iterator[File]:
    """The file of a path while it is open.

    Args:
      format_name: of `names.FORMATS`.

    Raises:
      InputError: see `files.opened`; or the file is of another format, has another architecture, or
        is absurdly large.
    """
    form, path = names.FORMATS[format_name], files.find(path)
    stated = _stated(path)
    with files.opened(path, form.containers, options.strip_prefix) as (entries, beside):
        _check_names(path, (*entries, *beside))
        entries, prefix, others = prefixes.stripped(
            path, entries, form, format_name, options.strip_prefix
        )
        entries, dropped = _without(path, entries, form, options.drop)
        entries = _respelled(path, entries, form, format_name)
        shapes = {name: entry.shape for name, entry in entries.items()}
        architecture.check(path, shapes, _spellings(form), stated)
        _check_values(path, entries)
        yield File(path, form, entries, stated, (*dropped, *others, *beside), prefix)


@contextlib.contextmanager
def opened_family(path: str | Path, format_name: str, options: Options) -> Iterator[File]:
    """The file of a published encoder while it is open; its form is what this file's names are.

    Args:
      format_name: of `families.FAMILIES`.

    Raises:
      InputError: as `opened`.
    """
    family, path = FAMILIES[format_name], files.find(path)
    stated = _stated(path)
    with files.opened(path, family.containers, options.strip_prefix) as (entries, beside):
        _check_names(path, (*entries, *beside))
        entries, prefix, others = prefixes.stripped(
            path, entries, family, format_name, options.strip_prefix
        )
        entries, dropped = _without(path, entries, family, options.drop)
        aside = [name for name in entries if re.fullmatch(family.aside, name)]
        entries = {name: entry for name, entry in entries.items() if name not in aside}
        spelled = canonical.spelled(path, entries, family, format_name)
        _check_values(path, entries, canonical.INDICES)
        form = names.Format(
            "encoder", canonical.speller(spelled), family.respell, family.containers
        )
        aside += dropped
        aside = [prefixes.beginnings(aside)] if aside else []
        yield File(path, form, entries, stated, (*aside, *others, *beside), prefix, spelled)


def _check_names(path, found: Iterable[str]) -> None:
    for name in found:
        if not name.isprintable():  # shown by its repr: it could move a terminal's cursor
            raise InputError(f"{path} has a tensor called {name!r}; it is no such file")


def _check_values(path, entries, allowed: str = "") -> None:
    """Raises InputError where tensors hold no floats, unless their names end in `allowed`, or where
    all hold too many values."""
    whole = [name for name, entry in entries.items() if entry.spacing is None]
    whole = [name for name in whole if not allowed or not name.endswith(allowed)]
    if whole:
        raise InputError(f"{path}: tensors that are not of floats: {', '.join(whole)}")
    num_values = sum(math.prod(entry.shape) for entry in entries.values())
    if num_values > _MOST_VALUES:
        raise InputError(
            f"{path} holds {num_values:.1e} numbers, more than any model here (at most "
            f"{_MOST_VALUES:.1e} are read)"
        )


def matched(file: File, template, patch_size) -> dict[str, np.ndarray]:
    """The tensors of a file, once all of them were found to be what the template wants.

    Raises:
      InputError: what is missing, left over, of another shape or not finite, all of it.
    """
    wanted = jax.eval_shape(lambda tree: names.write(tree, file.form.spell, patch_size), template)
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
            f"{file.path}: {count(len(faults), 'tensor')} out of place: {'; '.join(faults)}"
            + _hint(file.form, [name for name in file.entries if name not in wanted])
        )
    return tensors


def _stated(path: Path) -> dict[str, Any]:
    stated = files.read_json(path.parent / "config.json")
    pixels = files.read_json(path.parent / "preprocessor_config.json")
    return stated | {name: pixels[name] for name in ("image_mean", "image_std") if name in pixels}


def _hint(form, unmatched: list[str]) -> str:
    """What to do about the heads among unmatched tensors."""
    heads = [name for name in unmatched if architecture.is_head(name)]
    if not heads:
        return ""
    decoders = any(name.startswith("decoder") for name in heads) and form.holds == "encoder"
    # The tensors of a decoder begin in many ways, all with this word.
    starts = dict.fromkeys("decoder" if "decoder" in name else name.split(".")[0] for name in heads)
    return f" (--drop={','.join(starts)} leaves what is no encoder aside" + (
        "; mae-full and hf are formats with a decoder)" if decoders else ")"
    )


def _without(path, entries, form, starts):
    """(the entries that are kept, the names of the others); the format's names count as well."""
    dropped: list[str] = []
    for start in starts:
        inside = [
            name for name in entries
            if name.startswith(start) or form.respell([name])[name].startswith(start)
        ]  # fmt: skip
        if not inside:
            raise InputError(
                f"--drop={start}: no tensor of {path} starts so; they start with "
                f"{prefixes.beginnings(entries)}"
            )
        for name in inside:
            if not architecture.is_head(name):
                raise InputError(
                    f"--drop={start}: {name} is no head but may take part in the encoder, which "
                    "would be another one without it; --drop leaves aside heads alone, such as "
                    f"{', '.join(architecture.HEADS)}"
                )
        dropped += inside
    return {name: entry for name, entry in entries.items() if name not in dropped}, dropped


def _spellings(form):
    """How the networks of a format are spelled."""
    if form.holds != "both":
        return [form.spell]
    return [
        lambda name, prefix=prefix: tuple(prefix + part for part in form.spell(name))
        for prefix in ("student.module.", "teacher.")
    ]


def _respelled(path, entries, form, format_name):
    spelled = form.respell(entries)
    cls_token = form.anchor
    if cls_token not in spelled.values():
        looks = prefixes.formats_of(entries)
        if not looks and any(
            form.spell("patch_embed.proj.weight")[0] in name for name in spelled.values()
        ):
            raise InputError(
                f"{path} has patch embeddings and no class token ({cls_token}): an encoder of this "
                "architecture is not supported yet"
            )
        raise InputError(
            f"{path} is not of --format={format_name}: it has no {cls_token}; its tensors start "
            f"with {prefixes.beginnings(entries)}; {looks.removesuffix('; ') or 'no format fits'}"
        )
    found: dict[str, files.Entry] = {}
    for name, new in spelled.items():
        if new in found:
            raise InputError(f"{path} has {new} twice, in two spellings")
        found[new] = entries[name]
    return found
