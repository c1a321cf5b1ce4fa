"""Ends of a command that are one line: the user can mend it, or the run was stopped."""


class InputError(ValueError):
    """Bad input: a flag, a config field, a file or a folder.

    The message is one line that says what is wrong, where, and how to mend it. The commands print
    it without a traceback and end with status 2.
    """


class Stopped(Exception):
    """A run that ended early and in good order.

    The message is one line that says why, and where the same command goes on. The commands print
    it without a traceback and end with `status`.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
