"""The exceptions whose message is all that a person needs: the commands print no traceback."""


class InputError(ValueError):
    """Bad input: a flag, a config field, a file or a folder.

    The message is one line that says what is wrong, where, and how to mend it. The commands print
    it without a traceback and end with status 2.
    """


class RunStopped(RuntimeError):
    """A run that was given everything it needs cannot go on; its checkpoints are kept.

    The message is one line that says why and what to try. The commands print it without a traceback
    and end with status 3, which tells a script that starting again by itself will not help.
    """
