"""Config fields: the default, the meaning, and what values are allowed, in words for errors.

The fields stand in the files that read them, as literal dicts of `Field`, and `config` collects
them. This file needs the standard library alone, as `masking` has fields too.
"""

from __future__ import annotations

import difflib
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dppmask_jax.errors import InputError

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_SMALLEST = 2.0**-126  # of float32; devices flush smaller numbers to 0


class Rule(NamedTuple):
    """Which values are allowed, as a test and in words, and the type of a flag's value."""

    holds: Callable[[Any], bool]
    allowed: str
    type: type | None = None  # None: that of the default


class Field(NamedTuple):
    """A field of a config; its full dotted name is its key in the dict of its owner.

    Attributes:
      default: the value where no recipe and no flag says otherwise. That of a field that comes
        later does what was done without it, as configs that were kept before do not have it.
      rule: the values that are allowed.
      note: the meaning, in one short line.
      fixed: whether it is part of the model's shape, and so never changes in a run.
      free: why it may change while a run goes on. "": it may not, as steps depend on it. "carried
        out": how the work is done and written down. "spaced": when a run is measured. "measured":
        what the measures mean. "regrouped": how a mean is split up, which rounding alone shows.
      in_epochs: whether it counts epochs: at most those of the run, and scaled by the argument
        `epochs` of a config file.
    """

    default: Any
    rule: Rule
    note: str
    fixed: bool = False
    free: str = ""
    in_epochs: bool = False


def is_whole(value) -> bool:
    """Whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is an int or float that float32 can hold."""
    return (is_whole(value) or isinstance(value, float)) and abs(value) <= _LARGEST


def _as_float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    """An int from `low` to `high`."""
    words = f"a whole number from {low}" + (f" to {high}" if high < 2**31 - 1 else " up")
    return Rule(lambda value: is_whole(value) and low <= value <= high, words, int)


def number(low: float, high: float = math.inf) -> Rule:
    """An int or float from `low` to `high`."""
    words = f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else " up")
    return Rule(lambda value: is_number(value) and low <= value <= high, words, float)


def above(low: float, below: float = math.inf) -> Rule:
    """An int or float above `low` and below `below`, also as float32."""
    words = f"a number above {low:g}" + (f" and below {below:g}" if below < math.inf else "")
    return Rule(
        lambda value: is_number(value) and low + _SMALLEST <= value < below,
        f"{words} (float32)",
        float,
    )


def above_to(low: float, high: float) -> Rule:
    """An int or float above `low`, also as float32, and at most `high`."""
    return Rule(
        lambda value: is_number(value) and low + _SMALLEST <= value <= high,
        f"a number above {low:g} to {high:g} (float32)",
        float,
    )


def one_of(*choices: str) -> Rule:
    """One of some words."""
    return Rule(lambda value: isinstance(value, str) and value in choices, " | ".join(choices))


def pair(each: Rule, words: str, ordered: bool = False) -> Rule:
    """Two values of a rule, the first not above the second where they are `ordered`."""

    def holds(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(each.holds(part) for part in value)
            and (not ordered or value[0] <= value[1])
        )

    return Rule(holds, words, tuple)


def sides(each: Rule) -> Rule:
    """One value for both sides of an area, or (height, width)."""
    both = pair(each, "")
    return Rule(
        lambda value: each.holds(value) or (isinstance(value, tuple) and both.holds(value)),
        f"{each.allowed}, or two such as (16, 8)",
        object,  # of flags: a number or a tuple
    )


def several(each: Rule, words: str, different: bool = False) -> Rule:
    """One or more values of a rule, each once where they are to be `different`."""

    def holds(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) > 0
            and all(map(each.holds, value))
            and (not different or len(set(value)) == len(value))
        )

    return Rule(holds, words, tuple)


def optional(rule: Rule) -> Rule:
    """What a rule allows, or None."""
    return rule._replace(
        holds=lambda value: value is None or rule.holds(value), allowed=f"{rule.allowed}, or None"
    )


def is_text(value) -> bool:
    """Whether a value is a string that can be a path and printed on one line."""
    return isinstance(value, str) and not any(c < " " or c == "\x7f" for c in value)


TEXT = Rule(is_text, "a text on one line")
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
fraction_below_1 = Rule(
    lambda value: is_number(value) and value >= 0 and _as_float32(value) < 1,
    "a number from 0 to below 1 (float32)",
    float,
)


# Why a field may change while a run goes on: the values of `Field.free`.
FREE = ("carried out", "spaced", "measured", "regrouped")


def free(fields: Mapping[str, Field], *groups: str) -> dict[str, str]:
    """{name: group} of the fields that may change while a run goes on, for one of some reasons."""
    return {name: field.free for name, field in fields.items() if field.free in groups}


def fixed(fields: Mapping[str, Field]) -> frozenset[str]:
    """The names of the fields that are part of the model's shape."""
    return frozenset(name for name, field in fields.items() if field.fixed)


def with_defaults(fields: dict[str, Field], defaults: dict[str, Any]) -> dict[str, Field]:
    """The fields, some of them with other defaults."""
    return fields | {name: fields[name]._replace(default=value) for name, value in defaults.items()}


def grouped(group: str, fields: Mapping[str, Field]) -> dict[str, Field]:
    """The fields a second time, within a group: "optim.kind" becomes "GROUP.optim.kind"."""
    return {f"{group}.{name}": field for name, field in fields.items()}


def flatten(config) -> dict[str, Any]:
    """{"a.b": value} of a nested config."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def with_later(kept: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """A config that was kept, as JSON, with the fields that came later at their defaults."""
    full = json.loads(json.dumps(kept))
    for name, field in fields.items():
        *groups, leaf = name.split(".")
        node = full
        for group in groups:
            node = node.setdefault(group, {})
        node.setdefault(leaf, json.loads(json.dumps(field.default)))
    return full


def check_fields(values: dict[str, Any], fields: dict[str, Field]) -> None:
    """Raises InputError, in one line, for the first value of `flatten` that has no field or breaks
    its rule, or a field that is missing."""
    for name, value in values.items():
        if name not in fields:
            raise InputError(_no_such_field(name, value, fields))
    for name, field in fields.items():
        allowed = field.rule.allowed
        if name not in values:
            raise InputError(f"config.{name} is missing; it takes {allowed}")
        if not field.rule.holds(values[name]):
            raise InputError(f"config.{name}={shown(values[name])} is not allowed: {allowed}")


def _no_such_field(field: str, value, fields: dict[str, Field]) -> str:
    inner = [name for name in fields if name.startswith(f"{field}.")]
    if inner:
        return (
            f"config.{field}={shown(value)} is not allowed: config.{field} is a group of fields: "
            + ", ".join(name.removeprefix(f"{field}.") for name in inner)
        )
    parts = field.split(".")
    for outer in (".".join(parts[:n]) for n in range(1, len(parts))):
        if outer in fields:
            allowed = fields[outer].rule.allowed
            return f"config.{outer} is a group of fields, not allowed: {allowed}"
    near = difflib.get_close_matches(field, fields, n=1)
    hint = f"did you mean config.{near[0]}?" if near else "remove it"
    return f"unknown config field config.{field}; {hint}"


def check_lengths(
    epochs: float, lengths: dict[str, float], *, below: bool = False, scaled_by: str = ""
) -> None:
    """Raises InputError where a field that counts epochs does not fit into those of the run.

    Args:
      lengths: {field: epochs, up to those of the run, or `below` them}.
      scaled_by: the value of --config whose argument `epochs` scales these fields; "": none does.
    """
    too_long = [
        field for field, value in lengths.items() if value > epochs or (below and value == epochs)
    ]
    if too_long:
        given = ", ".join(f"config.{field}={lengths[field]:g}" for field in too_long)
        shorter = " ".join(f"--config.{field}={epochs / 10:g}" for field in too_long)
        raise InputError(
            f"{given}: too long for config.epochs={epochs:g}; add {shorter}"
            + (f", or write --config={scaled_by} instead of --config.epochs" if scaled_by else "")
        )


def shown(value) -> str:
    """A value on one short line."""
    if is_whole(value) and abs(value) > 10**30:
        return f"<a whole number of {value.bit_length()} bits>"  # Python refuses to write some
    words = " ".join(repr(value).split())
    return words if len(words) <= 80 else f"{words[:77]}..."
