"""Runs a command: bad input is one line and status 2, an early end one line and its own status; any
other fault keeps its traceback."""

from __future__ import annotations

import argparse
import difflib
import errno
import re
import runpy
import sys

from absl import app, flags, logging

from dppmask_jax.errors import InputError, Stopped

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


def fail(message) -> None:
    """Ends the command with one line on stderr and status 2."""
    _end("error: " + " ".join(str(message).split()), 2)


def _parse_flags(argv):
    # A config file is Python and raises what it likes while it is read as a flag.
    try:
        rest = flags.FLAGS(argv)
        for value in flags.FLAGS.flag_values_dict().values():
            if hasattr(value, "items"):
                value.items()  # a config file that is not there is an error only now
        return rest
    except (KeyError, AttributeError) as error:
        # The field is the first word; ml_collections may add a guess of its own.
        leaf = re.search(r"\w+|$", str(error))[0]
        return fail(_unknown_field(argv, leaf) or error)
    except (flags.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        # ml_collections hands on a config file's fault as the text of its traceback.
        last_line = str(error).strip().splitlines()[-1]
        missing = re.search(r"No such file or directory: '(.*)'", last_line)
        if missing:
            return fail(f"there is no config file {missing[1]}; name one with --config=FILE")
        return fail(last_line.removeprefix("ValueError: "))


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
    print(message, file=sys.stderr, flush=True)
    sys.exit(status)
