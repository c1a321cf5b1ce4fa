"""The points of a grid, from --grid."""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import itertools
import re
from typing import Any, NamedTuple

from dppmask_jax.errors import InputError
from dppmask_jax.fields import flatten


class Point(NamedTuple):
    """One point of a grid: its folder's name, {field: value} and the config to pre-train with."""

    name: str
    values: dict[str, Any]
    config: Any


def grid_points(config, grid: str) -> list[Point]:
    """Every combination of a grid's values, the last field varying fastest.

    Args:
      config: the config that the points differ from.
      grid: "FIELD=VALUE,VALUE FIELD=VALUE,..."; a value is a Python literal or a bare word.

    Raises:
      InputError: a field is unknown, comes twice or has no value, a value is of the wrong type or
        comes twice.
    """
    fields: dict[str, list[str]] = {}
    for part in filter(None, _split(grid, " \t\n")):
        field, separator, values = part.partition("=")
        if field in fields:
            raise InputError(f"--grid gives {field} twice; write all its values after one {field}=")
        fields[field] = [value.strip() for value in _split(values, ",")]
        if not separator or not all(fields[field]):
            raise InputError(f"--grid: {part!r} lacks a value; write {field}=VALUE,VALUE")
    if not fields:
        raise InputError('--grid is empty; write for example --grid="mask.ratio=0.5,0.75"')
    _check_known(config, fields)

    points = []
    for values in itertools.product(*fields.values()):
        changed = copy.deepcopy(config)  # which keeps what the fields take
        for field, value in zip(fields, values, strict=True):
            _set(changed, field, value)
        flat = flatten(changed)
        chosen = {field: flat[field] for field in fields}
        points.append(Point(_folder_name(chosen), chosen, changed))
    names = [point.name for point in points]
    for point in points:
        if names.count(point.name) > 1:
            raise InputError(f"--grid has two points that would be {point.name}; name each once")
    return points


def _split(text: str, separators: str) -> list[str]:
    """The parts of a text between separators that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char in separators and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _check_known(config, fields) -> None:
    known = flatten(config)
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "dppmask show-config lists them"
            raise InputError(f"--grid: unknown config field {field!r}; {hint}")


def _set(config, field: str, text: str) -> None:
    *path, leaf = field.split(".")
    node = config
    for part in path:
        node = node[part]
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text  # a bare word
    old = node[leaf]
    if isinstance(old, str) and not isinstance(value, str):
        value = text
    try:
        with node.ignore_type() if old is None else contextlib.nullcontext():
            node[leaf] = value  # where None is the default, the field's rule tells more
    except TypeError as error:
        raise InputError(
            f"--grid: {field}={text} is of the wrong type; the config has {old!r}"
        ) from error


def _folder_name(values: dict[str, Any]) -> str:
    leaves = [field.split(".")[-1] for field in values]

    def part(field, value):
        leaf = field.split(".")[-1]
        several = value if isinstance(value, (tuple, list)) else (value,)
        words = "-".join(str(each).rstrip("/").split("/")[-1] for each in several)
        return f"{leaf if leaves.count(leaf) == 1 else field}-{words}"

    name = "_".join(part(field, value) for field, value in values.items())
    return re.sub(r"[^\w.+-]+", "-", name)


def words(values: dict[str, Any]) -> str:
    """The values of a point, such as "mask.ratio=0.5, mask.tau=0.9"."""
    return ", ".join(f"{field}={plain(value)}" for field, value in values.items())


def plain(value) -> str:
    """A value as tables and legends show it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
