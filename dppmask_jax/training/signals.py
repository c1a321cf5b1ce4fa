"""SIGTERM, SIGINT and SIGHUP while a run trains: noted, so that the loop can end it well."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Notes signals while the context lasts, and puts the handlers before it back.

    The first of them is noted; a SIGINT after it ends the process at once. A SIGHUP that nohup made
    the process ignore stays ignored. Only the main thread receives signals: in others, nothing is
    noted.

    Yields:
      A function that returns the exit status asked for: 143 after SIGTERM, 130 after SIGINT, 129
      after SIGHUP, 0 before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    status = 0

    def note(number, frame):
        nonlocal status
        if not status:
            status = 128 + number
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            # A handler may not print: it can interrupt a print.
            line = f"\n{name(status)}: saving, then stopping; Ctrl-C stops at once\n"
            with contextlib.suppress(OSError):  # the terminal is what SIGHUP says is gone
                os.write(2, line.encode())

    before = {number: signal.getsignal(number) for number in _NOTED}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: status
    except BaseException:
        status = 0
        raise
    finally:
        for number, handler in before.items():
            # None: set by another library, in C; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if status:
            signal.raise_signal(status - 128)


def name(status: int) -> str:
    """SIGTERM, SIGINT or SIGHUP, from the exit status that they ask for."""
    return signal.Signals(status - 128).name
