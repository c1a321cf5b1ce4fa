"""Runs a command: bad input is one line and status 2, an early end one line and its own status; any
other fault keeps its traceback."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import runpy
import sys
import traceback

from absl import app, flags, logging

from dppmask_jax.errors import InputError, Stopped, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run(main) -> None:
    """Parses the flags and calls `main(argv)`. Does not return."""
    app.run(_answering_bad_input(main), flags_parser=_parse_flags)


def run_parsed(main) -> None:
    """Calls `main()` of a command that reads its arguments with an `ArgumentParser`."""
    _answering(main)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a wrong argument is one line and status 2."""

    def error(self, message):
        fail(message)


def define_process_flags():
    """Defines the flags that make several processes one run.

    Returns:
      () -> (coordinator, number of processes, this one's), as parsed, for `parallel.initialize`.
    """
    coordinator = flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 (not on TPU pods)."
    )
    num_processes = flags.DEFINE_integer("num_processes", None, "Processes in all.", lower_bound=1)
    process_id = flags.DEFINE_integer("process_id", None, "This process, from 0.", lower_bound=0)
    return lambda: (coordinator.value, num_processes.value, process_id.value)


def fail(message, status: int = 2) -> None:
    """Ends the command with one line on stderr."""
    _end("error: " + " ".join(str(message).split()), status)


def _parse_flags(argv):
    # A config file is Python and raises what it likes while it is read as a flag.
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(argv)
        for value in flags.FLAGS.flag_values_dict().values():
            if hasattr(value, "items"):
                value.items()  # a config file that is not there is an error only now
        return rest
    except Exception as error:
        return fail(_what_is_wrong(error, argv))


def _what_is_wrong(error: Exception, argv) -> str:
    """What to say of an exception that came up while the flags were parsed."""
    fault = error
    while fault.__cause__ or fault.__context__:
        fault = fault.__cause__ or fault.__context__
    line = _line_in_config_file(fault, argv)
    if line and isinstance(fault, ValueError):
        return str(fault)  # said for the person who typed the command
    if line:
        return f"{line}: {type(fault).__name__}: {fault}"
    if isinstance(error, (KeyError, AttributeError)):
        if "has no attribute 'get_config'" in str(error):
            return "the config file defines no function get_config; take configs/mae.py for a model"
        # The field is the first word; ml_collections may add a guess of its own.
        leaf = re.search(r"\w+|$", str(error))[0]
        return _unknown_field(argv, leaf) or str(error)
    # ml_collections hands on a config file's fault as the text of its traceback.
    last_line = str(error).strip().splitlines()[-1]
    missing = re.search(r"No such file or directory: '(.*)'", last_line)
    if missing:
        return f"there is no config file {missing[1]}; name one with --config=FILE"
    value = re.search(r"flag --([\w.]+\.\w+)=(.*?): (.*)", last_line)
    if value:
        return _not_allowed(*value.groups())
    return last_line.removeprefix(
        "Configuration is not available because of an earlier failure to load: "
    )


def _line_in_config_file(fault: Exception, argv) -> str:
    """ "FILE, line N" of the config file that raised an exception; "" where none did."""
    named = {os.path.abspath(re.sub(r"^--\w+=", "", word).partition(":")[0]) for word in argv[1:]}
    frames = traceback.extract_tb(fault.__traceback__)
    lines = [
        f"{frame.filename}, line {frame.lineno}"
        for frame in frames
        if os.path.abspath(frame.filename) in named
    ]
    return lines[-1] if lines else ""


def _not_allowed(field: str, value: str, reason: str) -> str:
    """What to say of a value that is not of its field's type, by the parser's own words."""
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


def _unknown_field(argv, leaf: str) -> str | None:
    """What to say if `leaf` ends the name of a --config.… (or --eval.…) flag among `argv`."""
    overrides = re.findall(r"(?:^| )--(\w+)\.([\w.]+)", " ".join(argv))
    flag, unknown = next(
        ((flag, name) for flag, name in overrides if name.split(".")[-1] == leaf), ("", "")
    )
    given = re.search(rf"(?:^| )--{flag}[= ](\S+)", " ".join(argv))
    if not unknown or not given:
        return None
    path, _, argument = given[1].partition(":")
    known = _field_names(runpy.run_path(path)["get_config"](*filter(None, [argument])))
    leaves = {field.split(".")[-1]: field for field in known}
    near = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, n=1)]
    near = near or difflib.get_close_matches(unknown, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown {flag} field {unknown!r}; {hint}"


def _field_names(config) -> list[str]:
    names = []
    for name, value in config.items():
        inner = _field_names(value) if hasattr(value, "items") else None
        names += [f"{name}.{leaf}" for leaf in inner] if inner is not None else [name]
    return names


def _answering_bad_input(main):
    def answered(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_logger().addFilter(_is_news)
            sys.unraisablehook = _print_news
        return _answering(lambda: main(argv))

    return answered


def _is_news(record) -> bool:
    """False where orbax logs an exception that it then raises, or waiting that was meant."""
    known = record.exc_info or "Waiting for previous save" in str(record.msg)
    return not (known and "/orbax/" in record.pathname)


def _print_news(fault) -> None:
    # When a write of a save fails, the others under way find the loop closed that they report to.
    if str(fault.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(fault)


def _answering(main):
    try:
        return main()
    except InputError as error:
        fail(error)
    except Stopped as end:
        _end(end, end.status)
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = f": {error.filename}" if error.filename else ""
        _end(f"error: {error.strerror}{where}; make room there and run the same command again", 1)


def _end(message, status: int) -> None:
    print(one_line(str(message)), file=sys.stderr, flush=True)
    sys.exit(status)
