"""What values a config field may take, in words that an error can print."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from dppmask_jax.errors import InputError


class Rule(NamedTuple):
    """Whether a value is allowed, and the words that say what is."""

    holds: Callable[[Any], bool]
    allowed: str


def is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value) -> bool:
    return (is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def whole(low: int, high: int = 2**31 - 1) -> Rule:
    words = f"a whole number from {low}" + (f" to {high}" if high < 2**31 - 1 else " up")
    return Rule(lambda value: is_whole(value) and low <= value <= high, words)


def number(low: float, high: float = math.inf) -> Rule:
    words = f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else " up")
    return Rule(lambda value: is_number(value) and low <= value <= high, words)


def above(low: float, below: float = math.inf) -> Rule:
    words = f"a number above {low:g}" + (f" and below {below:g}" if below < math.inf else "")
    return Rule(lambda value: is_number(value) and low < value < below, words)


def one_of(*choices: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value in choices, " | ".join(choices))


def pair(each: Rule, words: str, ordered: bool = False) -> Rule:
    def holds(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) == 2
            and all(each.holds(part) for part in value)
            and (not ordered or value[0] <= value[1])
        )

    return Rule(holds, words)


def several(each: Rule, words: str, different: bool = False) -> Rule:
    def holds(value):
        return (
            isinstance(value, (tuple, list))
            and len(value) > 0
            and all(map(each.holds, value))
            and (not different or len(set(value)) == len(value))
        )

    return Rule(holds, words)


TEXT = Rule(lambda value: isinstance(value, str), "a text")
FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
fraction_below_1 = Rule(lambda v: is_number(v) and 0 <= v < 1, "a number from 0 to below 1")


def flatten(config) -> dict[str, Any]:
    """{"a.b": value} of a nested config."""
    flat = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def check_fields(values: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Raises InputError, in one line, for the first field of `flatten` that has no rule, is missing
    or breaks its rule."""
    for field in values:
        if field not in rules:
            near = difflib.get_close_matches(field, rules, n=1)
            hint = f"did you mean config.{near[0]}?" if near else "remove it"
            raise InputError(f"unknown config field config.{field}; {hint}")
    for field, rule in rules.items():
        if field not in values:
            raise InputError(f"config.{field} is missing; it takes {rule.allowed}")
        if not rule.holds(values[field]):
            raise InputError(f"config.{field}={values[field]!r} is not allowed: {rule.allowed}")
