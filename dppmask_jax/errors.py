"""The one exception that means: the user can mend this."""


class InputError(ValueError):
    """Bad input: a flag, a config field, a file or a folder.

    The message is one line that says what is wrong, where, and how to mend it. The commands print
    it without a traceback and end with status 2.
    """
