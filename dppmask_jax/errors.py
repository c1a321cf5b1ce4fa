"""Ends of a command that are one line: the user can mend it, or the run was stopped."""


class InputError(ValueError):
    """Bad input: a flag, a config field, a file or a folder.

    The message is one line that says what is wrong, where, and how to mend it. The commands print
    it without a traceback and end with status 2.
    """


class NotServed(InputError):
    """The images or the encoder lack what a task needs, such as masks, labels or attention, or what
    a projection could change; no field of its config is wrong by itself.

    A task that consists of others leaves out the one that says so.
    """


class Stopped(Exception):
    """A run that ended early and in good order.

    The message is one line that says why, and how to go on. The commands print it without a
    traceback and end with `status`.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def one_line(text: str) -> str:
    """The text with everything that does not print, line breaks too, written as an escape.

    File names can hold any of it, and would move the cursor of a terminal or start a line of their
    own in a log.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
