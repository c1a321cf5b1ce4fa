"""What others put before the names of tensors: `module.`, `backbone.`, `model.encoder.`, …"""

from __future__ import annotations

import collections
import re
from typing import TypeVar

from dppmask_jax.errors import InputError
from dppmask_jax.weights import architecture
from dppmask_jax.weights.families.base import Family
from dppmask_jax.weights.names import FORMATS, Format

_Entry = TypeVar("_Entry")


def stripped(
    path, entries: dict[str, _Entry], form: Format | Family, format_name: str, asked: str
) -> tuple[dict[str, _Entry], str, list[str]]:
    """(tensors without the prefix, the prefix, in words which tensors do not start so).

    A prefix that the format does not know is taken off where all tensors have it; where only some
    do, it has to be asked for, and the others are left aside. A family knows the prefixes of its
    network, and which others may be left aside.

    Args:
      asked: the prefix of --strip_prefix, "" where there is none.

    Raises:
      InputError: no tensor starts with the prefix that was asked for; some tensors do with one
        that was not; or what would be left aside takes part in the encoder.
    """
    if asked:
        prefix = asked.removesuffix(".") + "."
        if not any(name.startswith(prefix) for name in entries):
            raise InputError(
                f"--strip_prefix={asked}: no tensor of {path} starts so; they start with "
                f"{beginnings(entries)}"
            )
    else:
        found = [] if fits(entries, form) else _networks(entries, form)
        if not found:
            return entries, "", []
        prefix = found[0]
        if not all(name.startswith(prefix) or _is_aside(name, form) for name in entries):
            flags = " or ".join(f"--strip_prefix={prefix}" for prefix in found)
            raise InputError(
                f"{path} is not of --format={format_name} as it is: its tensors start with "
                f"{beginnings(entries)}; {formats_of(entries)}add {flags} to take those and leave "
                "the others aside"
            )
    kept = {name.removeprefix(prefix): entry for name, entry in entries.items()
            if name.startswith(prefix)}  # fmt: skip
    others = [name for name in entries if not name.startswith(prefix)]
    architecture.check_left_aside(path, prefix, others)
    aside = [beginnings(others)] if others else []
    if asked:  # it may be a part of the whole prefix
        kept, rest, more = stripped(path, kept, form, format_name, "")
        prefix, aside = prefix + rest, aside + more
    return kept, prefix, aside


def fits(entries, form: Format) -> bool:
    """Whether the names are of a format or family, as far as one of them tells."""
    return form.anchor in form.respell(entries).values()


def formats_of(entries) -> str:
    """In words of which formats names are, with a semicolon behind; "" where of none."""
    fitting = [name for name, form in FORMATS.items() if fits(entries, form)]
    return f"it looks like {' or '.join(fitting)}; " if fitting else ""


def beginnings(names) -> str:
    """How names start and how many do, the most frequent first."""
    counts = collections.Counter(
        first + dot for first, dot, _ in (name.partition(".") for name in names)
    )
    words = [f"{start} ({count})" for start, count in counts.most_common(6)]
    return ", ".join(words) + (", …" if len(counts) > 6 else "")


def _networks(entries, form: Format | Family) -> list[str]:
    """The prefixes that names of a network may have, the most wanted first."""
    if isinstance(form, Format):
        return _candidates(entries, form)
    for prefix in form.networks:
        if fits([name.removeprefix(prefix) for name in entries if name.startswith(prefix)], form):
            return [prefix]
    found = []
    for name in entries:
        words = name.split(".")
        ends = (".".join(words[i:]) for i in range(1, len(words)))
        found += [name.removesuffix(end) for end in ends if fits([end], form)]
    return list(dict.fromkeys(found))


def _is_aside(name: str, form: Format | Family) -> bool:
    return isinstance(form, Family) and bool(re.fullmatch(form.aside, name))


def _candidates(entries, form: Format) -> list[str]:
    """The prefixes without which the format knows the class token and the patch embedding; of one
    token the shortest."""
    found, patches = [], form.spell("patch_embed.proj.weight")[0]
    for name in entries:
        words = name.split(".")
        for i in range(1, len(words) if words[-1] == "cls_token" else 0):
            prefix = ".".join(words[:i]) + "."
            inner = [other.removeprefix(prefix) for other in entries if other.startswith(prefix)]
            # The embeddings of transformers have a class token, and are no whole encoder.
            spelled = form.respell(inner).values()
            if fits(inner, form) and any(name.endswith(patches) for name in spelled):
                found.append(prefix)
                break
    return list(dict.fromkeys(found))
