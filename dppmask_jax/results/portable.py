"""Records of results without the paths of the machine that they were made on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

# What a flag's path is called on a page for others.
_RUN_FLAGS = ("checkpoint", "workdir", "init_from")
_IMAGE_FLAGS = ("source", "dir", "root", "images", "projection")
# A path that begins where a word does, or after the kind of a data source.
_PATH = re.compile(r"(?<![\w/.)])~?/[^\s,;'\"()|`/][^\s,;'\"()|`]*")


def portable(record: dict[str, Any]) -> dict[str, Any]:
    """A copy of an eval_TASK.json or a sweep.json without the paths of its files.

    Workdirs and files are named by the last part of their path, data sources as in
    "folder:imagenette128"; in commands RUN and IMAGES stand for them. What is portable already
    stays as it is.
    """
    # The longest first: a path may begin with another.
    known = sorted(set(_paths(record)), key=lambda path: (-len(path), path))
    return _stripped(record, known)


def last_part(path: str) -> str:
    """The last part of a path, or of a data source's; names of TFDS data sets stay whole, and a CSV
    file keeps the folder that tells whose it is."""
    kind, rest = re.fullmatch(r"(\w+:)?(.*)", path, re.DOTALL).groups(default="")
    if kind == "tfds:" and not rest.startswith(("/", "~")):
        return path
    if kind == "csv:":
        return kind + "/".join(rest.split("/")[-2:])
    return kind + (rest.rstrip("/").rpartition("/")[2] or rest)


def _paths(value, field: str = "") -> Iterator[str]:
    """The paths in configs, grids and checkpoints, also without the kind of a data source, as
    messages name them."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, name.rpartition(".")[2])
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, field)
    elif isinstance(value, str) and field in (*_IMAGE_FLAGS, *_RUN_FLAGS, "classes"):
        for path in value.split(",") if field == "images" else [value]:
            if last_part(path) != path:
                yield path
                yield re.sub(r"^\w+:", "", path)


def _stripped(value, known: list[str], field: str = ""):
    if isinstance(value, dict):
        return {name: _stripped(inner, known, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_stripped(inner, known, field) for inner in value]
    if not isinstance(value, str):
        return value
    return _generic_command(value) if field == "command" else _without_paths(value, known)


def _without_paths(text: str, known: list[str]) -> str:
    for path in known:
        pattern = rf"(?<![\w/]){re.escape(path)}(?!\w)"
        text = re.sub(pattern, lambda match: last_part(match[0]), text)
    return _PATH.sub(lambda match: last_part(match[0]), text)


def _generic_command(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:  # of no shell
        return _PATH.sub("PATH", command)
    joined: list[str] = []
    for word in words:
        bare = joined and re.fullmatch(r"--[\w.]+", joined[-1])
        if bare and not word.startswith("-"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    if joined and joined[0].endswith(".py"):
        joined = ["python", joined[0].rpartition("/")[2], *joined[1:]]
    return " ".join(map(_quoted, map(_generic_word, joined)))


def _generic_word(word: str) -> str:
    name, separator, value = word.partition("=")
    leaf = name.rpartition(".")[2].lstrip("-")
    if not separator or not value:
        return _PATH.sub(lambda match: last_part(match[0]), word)
    if leaf in _RUN_FLAGS:
        return f"{name}=RUN"
    if leaf in _IMAGE_FLAGS:
        kind, colon, _ = value.partition(":")
        if kind in ("shapes", "tfds"):
            return word
        return f"{name}={kind}:IMAGES" if colon else f"{name}=IMAGES"
    if re.fullmatch(r"--(config|eval\d?)", name):
        path, colon, arguments = value.partition(":")
        start = path.rfind("configs/")
        path = path[start:] if start >= 0 else last_part(path)
        return f"{name}={path}{colon}{arguments}"
    return f"{name}={_PATH.sub(lambda match: last_part(match[0]), value)}"


def _quoted(word: str) -> str:
    """Quotes after the flag's name, where a reader expects them."""
    name, separator, value = word.partition("=")
    if separator and name.startswith("--"):
        return f"{name}={shlex.quote(value)}"
    return shlex.quote(word)
