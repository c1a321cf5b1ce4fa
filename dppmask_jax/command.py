"""Runs a command: bad input is one line and status 2, an early end one line and its own status; any
other fault keeps its traceback."""

from __future__ import annotations

import argparse
import errno
import sys

from absl import app, flags, logging

from dppmask_jax import config_faults, terminal
from dppmask_jax.errors import InputError, Stopped, one_line

_HELP = ("help", "?", "helpshort", "helpfull", "helpxml", "only_check_args")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run(main) -> None:
    """Parses the flags and calls `main(argv)`. Does not return."""
    if str(config_faults.PROJECT) not in sys.path:
        sys.path.append(str(config_faults.PROJECT))  # config files import from configs/
    # In place, because ml_collections reads the overrides of fields from sys.argv.
    sys.argv[:] = config_faults.files_first(["--help" if w == "-h" else w for w in sys.argv])
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
    except SystemExit:
        if any(word.lstrip("-") in _HELP for word in argv):
            sys.exit(0)  # absl's status after a help is 1
        return fail("the config file calls sys.exit; get_config has to return a config")
    except Exception as error:
        return fail(config_faults.what_is_wrong(error, argv))


def _answering_bad_input(main):
    def answered(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_logger().addFilter(_is_news)
        return _answering(lambda: main(argv))

    return answered


def _is_news(record) -> bool:
    """False where orbax logs an exception that it then raises, or a wait that is intended."""
    known = record.exc_info or "Waiting for previous save" in str(record.msg)
    return not (known and "/orbax/" in record.pathname)


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
    terminal.show(one_line(str(message)), sys.stderr)
    terminal.flush(sys.stdout)  # a failing flush at the exit would change the status
    sys.exit(status)
