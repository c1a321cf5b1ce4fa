"""SIGTERM and SIGINT while a run trains: noted, so that the loop can end it well."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

_NOTED = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """Notes signals while the context lasts, and puts the handlers before it back.

    The first SIGTERM or SIGINT is noted; a SIGINT after it ends the process at once. In another
    thread than the main one, which is never sent signals, nothing is noted.

    Yields:
      A function that returns the exit status asked for: 143 after SIGTERM, 130 after SIGINT, 0
      before.
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
            os.write(2, f"\n{name(status)}: saving, then stopping; Ctrl-C stops at once\n".encode())

    before = {number: signal.getsignal(number) for number in _NOTED}
    for number in _NOTED:
        signal.signal(number, note)
    try:
        yield lambda: status
    finally:
        for number, handler in before.items():
            # None: set by another library, in C; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def name(status: int) -> str:
    """SIGTERM or SIGINT, from the exit status that they ask for."""
    return signal.Signals(status - 128).name
