"""Messages of one line where --config, --eval, --study or one of their fields cannot be read."""

from __future__ import annotations

import difflib
import os
import re
import runpy
import traceback
from collections.abc import Iterator

from dppmask_jax import recipes
from dppmask_jax.errors import InputError

_FILE = re.compile(r"--?(config|eval\d?|study)(?:=(.*))?", re.DOTALL)
_FIELD = re.compile(r"--?(?:no)?(config|eval\d?|study)\.([\w.]+)")


def files_first(argv: list[str]) -> list[str]:
    """The words of a command with --config=FILE, --eval=FILE and --study=FILE before their fields,
    as the parser wants them."""
    end = argv.index("--") if "--" in argv else len(argv)
    files, rest, words = [], [], iter(argv[1:end])
    for word in words:
        found = _FILE.fullmatch(word)
        to = files if found else rest
        to.append(word)
        if found and found[2] is None:  # the next word is the file
            to.extend([value] if (value := next(words, None)) is not None else [])
    return [*argv[:1], *files, *rest, *argv[end:]]


def what_is_wrong(error: Exception, argv: list[str]) -> str:
    """The message for an exception that came up while the flags `argv` were parsed."""
    files = files_named(argv)
    for fault in _chain(error):
        if isinstance(fault, InputError):
            return str(fault)  # said for the person who typed the command
        if frames := _frames_in(fault, files):
            return _in_config_file(fault, frames)
    # ml_collections hands on a config file's fault as the text of its traceback.
    last_line = str(error).strip().splitlines()[-1]
    if "has no attribute 'get_config'" in str(error):
        return f"the config file defines no function get_config; copy {recipes.FOLDER / 'mae.py'}"
    if "get_config() takes 0 positional arguments" in last_line:
        return "get_config of the config file takes no argument; leave out what follows the colon"
    known = {flag: _fields(path, flag) for flag, path in files.items()}
    for flag, field in _overrides(argv):
        if flag not in files:
            return f"--{flag}.{field} needs --{flag}=FILE, whose field it changes"
        if known[flag] and (fault := _unknown(flag, field, known[flag])):
            return fault
    value = re.search(r"flag --([\w.]+\.\w+)=(.*?): (.*)", last_line)
    if value:
        return _not_allowed(*value.groups())
    return last_line.removeprefix(
        "Configuration is not available because of an earlier failure to load: "
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from, the outermost first."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def files_named(argv: list[str]) -> dict[str, str]:
    """{"config", "eval", "eval2", ...: FILE[:ARGUMENT]} as given."""
    files = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := _FILE.fullmatch(word):
            files[found[1]] = following if found[2] is None else found[2]
    return files


def _overrides(argv: list[str]) -> list[tuple[str, str]]:
    return [found.groups() for word in argv if (found := _FIELD.match(word))]


def _path(file: str, flag: str) -> str:
    path = file.partition(":")[0]
    try:
        return os.path.abspath(recipes.path_of(path, flag))
    except InputError:  # another flag's, of which something else is said
        return os.path.abspath(path)


# The file.


def _frames_in(fault: BaseException, files: dict[str, str]) -> list[traceback.FrameSummary]:
    """The frames of a fault, from the last line in one of the config files on; [] where none is."""
    named = {_path(file, flag) for flag, file in files.items()}
    frames = traceback.extract_tb(fault.__traceback__)
    inside = [os.path.abspath(frame.filename) in named for frame in frames]
    return list(frames[len(inside) - 1 - inside[::-1].index(True) :]) if any(inside) else []


def _in_config_file(fault: BaseException, frames: list[traceback.FrameSummary]) -> str:
    at, last = frames[0], frames[-1]
    ours = os.path.abspath(last.filename).startswith(str(recipes.FOLDER))
    says_so = (last is at or ours) and (last.line or "").startswith("raise ")
    if isinstance(fault, ValueError) and says_so:
        return str(fault)
    words = " ".join(str(fault).partition("Other fields present")[0].split())
    words = words.strip("'\"") if isinstance(fault, (KeyError, AttributeError)) else words
    words = words if len(words) <= 300 else f"{words[:297]}..."
    hint = ""
    if isinstance(fault, ImportError) and fault.name == "configs":
        hint = "; for the project's recipes write: from dppmask_jax.recipes import mae"
    return f"{at.filename}, line {at.lineno}: {type(fault).__name__}: {words}{hint}"


# A field.


def _fields(file: str, flag: str) -> list[str]:
    """The fields of a config; [] where it cannot be read."""
    argument = file.partition(":")[2]
    try:
        return _names(runpy.run_path(_path(file, flag))["get_config"](*filter(None, [argument])))
    except Exception:
        return []


def _names(config) -> list[str]:
    names = []
    for name, value in config.items():
        inner = _names(value) if hasattr(value, "items") else None
        names += [f"{name}.{leaf}" for leaf in inner] if inner is not None else [name]
    return names


def _unknown(flag: str, field: str, known: list[str]) -> str | None:
    """The message for a field that the config does not have; None where it has it."""
    parts = field.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    if field in known or any(name.startswith(f"{field}.") for name in known):
        return None
    for outer in above:
        if outer in known:
            return f"{flag}.{outer} is no group of fields; set it with --{flag}.{outer}=VALUE"
    groups = sorted({name.partition(".")[0] for name in known if "." in name})
    group = next(iter(difflib.get_close_matches(parts[0], groups, n=1)), "")
    # A word alone may be a group: `modle` is `model` rather than `parallel.mode`.
    is_group = group and not above and field not in {name.rpartition(".")[2] for name in known}
    near = "" if is_group else _nearest(field, known)
    if near:
        return f"unknown {flag} field {field!r}; did you mean {near}?"
    if not group:
        alone = sorted(name for name in known if "." not in name)
        known_words = ", ".join(alone + [f"{name}.…" for name in groups])
        return f"unknown {flag} field {field!r}; known: {known_words}"
    inner = ", ".join(sorted(name for name in known if name.startswith(f"{group}.")))
    return f"unknown {flag} field {field!r}; did you mean one of {inner}?"


def _nearest(field: str, known: list[str]) -> str:
    """The field that was probably meant, "" where none is near."""
    leaf = field.rpartition(".")[2]
    leaves = {name.rpartition(".")[2]: name for name in known}
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(field, same, n=1, cutoff=0.0)
    near = near or difflib.get_close_matches(field, known, n=1)
    near = near or [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1)]
    return near[0] if near else ""


def _not_allowed(field: str, value: str, reason: str) -> str:
    """The message for a value that is not of its field's type, from the parser's words."""
    if "as a ConfigDict" in reason:
        return (
            f"{field}={value} is not allowed: {field} is a group of fields; set one of them with "
            f"--{field}.FIELD={value}"
        )
    words = {
        "could not convert string to float": "a number",
        "invalid literal for int": "a whole number",
        "Non-boolean argument": "True or False",
        "as tuple": "a list such as '(1, 2)'",
    }
    allowed = next((words[part] for part in words if part in reason), reason)
    return f"{field}={value!r} is not allowed: {allowed}"
