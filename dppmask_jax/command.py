"""Runs a command: bad input is one line and status 2, an early end one line and its own status; any
other fault keeps its traceback."""

from __future__ import annotations

import argparse
import errno
import sys
import textwrap

from absl import app, flags, logging
from ml_collections import config_flags

from dppmask_jax import config_faults, recipes, terminal
from dppmask_jax.errors import InputError, Stopped, one_line

_HELP = ("help", "?", "helpshort", "helpfull", "helpxml", "only_check_args")
_OURS = ("--help", "-help", "-h", "--helpshort")  # answered here, the others by absl
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run(main, usual: str, about: str, hint: str | None = "flags start with --") -> None:
    """Parses the flags and calls `main(argv)`. Does not return.

    Args:
      usual: see `words`.
      about: what --help says above the flags.
      hint: what to do about a word that is no flag, which is refused; None: `main` takes them.
    """
    if recipes.CHECKOUT and str(recipes.CHECKOUT) not in sys.path:
        sys.path.append(str(recipes.CHECKOUT))  # config files may import from configs/
    # In place, because ml_collections reads the overrides of fields from sys.argv.
    sys.argv[:] = config_faults.files_first(sys.argv)
    if any(word in _OURS for word in _before_dashes(sys.argv[1:])):
        _show_help(called(usual), about)
        sys.exit(0)
    app.run(_answering_bad_input(main, hint), flags_parser=_parse_flags)


def run_parsed(main) -> None:
    """Calls `main()` of a command that reads its arguments with an `ArgumentParser`."""
    _answering(main)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a wrong argument is one line and status 2."""

    def error(self, message):
        fail(message)


def words(usual: str) -> list[str]:
    """The command as it was typed, word by word, for records and for what is to be typed next.

    Args:
      usual: the words that start it where it was not a subcommand of `dppmask`, such as
        "python -m dppmask_jax.sweep".
    """
    return [*called(usual).split(), *sys.argv[1:]]


def called(usual: str) -> str:
    """How the command is called, for its help: "dppmask figures", or what is usual."""
    return sys.argv[0] if sys.argv[0].startswith("dppmask ") else usual


def define_config_flag(name: str, note: str, flag_values=flags.FLAGS, **more):
    """Defines a flag that takes FILE[:ARGUMENTS], a recipe's name or the path of a config file.

    Args:
      more: of ml_collections' `DEFINE_config_file`.

    Returns:
      absl's holder of the flag, whose value is the config.
    """
    holder = config_flags.DEFINE_config_file(
        name, None, note, lock_config=True, flag_values=flag_values, **more
    )
    parser = flag_values[name].parser
    load = parser.parse

    def parse(word):
        file, colon, arguments = word.partition(":")
        return load(f"{recipes.path_of(file, name)}{colon}{arguments}")

    parser.parse = parse  # sys.argv keeps what was typed, which is recorded
    return holder


def define_show_flag():
    """Defines --show_config; returns absl's holder of it."""
    return flags.DEFINE_boolean(
        "show_config",
        False,
        "Print every field of the config: value, default, meaning; nothing else.",
    )


def missing_config(flag: str, example: str) -> str:
    """The message where a flag of `define_config_flag` is not given."""
    return f"--{flag} is missing: name a recipe, such as --{flag}={example}, or a config file"


def define_process_flags():
    """Defines the flags that make several processes one run.

    Returns:
      () -> (coordinator, number of processes, this one's), as parsed, for `joining.initialize`.
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


def _before_dashes(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _show_help(program: str, about: str) -> None:
    """Prints what the command does and its flags; those of libraries are in --helpfull."""
    lines = [f"usage: {program} [flags]", "", about.strip(), "", "flags:"]
    for name in flags.FLAGS:
        module = flags.FLAGS.find_module_defining_flag(name)
        if module == sys.argv[0] or module.startswith("dppmask_jax"):
            indent = " " * 6
            note = textwrap.wrap(flags.FLAGS[name].help, 94, initial_indent=indent,
                                 subsequent_indent=indent)  # fmt: skip
            lines += [f"  --{name}", *note]
    terminal.show("\n".join(lines), sys.stdout)


def _parse_flags(argv):
    # A config file is Python and raises what it likes while it is read as a flag.
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(argv)
        for value in flags.FLAGS.flag_values_dict().values():
            if hasattr(value, "items"):
                value.items()  # a config file that is not there is an error only now
        for flag, file in config_faults.files_named(argv).items():
            if note := recipes.shadowed(file.partition(":")[0], flag):
                terminal.show(note, sys.stderr)
        return rest
    except SystemExit:
        if any(word.lstrip("-") in _HELP for word in argv):
            sys.exit(0)  # absl's status after a help is 1
        return fail("the config file calls sys.exit; get_config has to return a config")
    except Exception as error:
        return fail(config_faults.what_is_wrong(error, argv))


def _answering_bad_input(main, hint: str | None):
    def checked(argv):
        if hint is not None and len(argv) > 1:
            raise InputError(f"unexpected argument {argv[1]!r}; {hint}")
        return main(argv)

    def answered(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            logging.get_absl_logger().addFilter(_is_news)
        return _answering(lambda: checked(argv))

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
