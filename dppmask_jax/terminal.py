"""Lines for whoever watches a run, which goes on where the terminal is closed or a `tee` ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

_GONE = (errno.EIO, errno.EPIPE)


def show(line: str, file: TextIO) -> None:
    """Prints a line at once. Where the reader is gone, this line and all later ones are dropped.

    Raises:
      OSError: it cannot be written for another reason, such as a full disk.
    """
    with _heard(file):
        print(line, file=file, flush=True)


def write_above(bar: tqdm, line: str) -> None:
    """Prints a line on stdout above a progress bar, as `show`."""
    with _heard(sys.stdout):
        bar.write(line, file=sys.stdout)


def flush(file: TextIO) -> None:
    """Prints what still waits, as `show`."""
    with _heard(file):
        file.flush()


@contextlib.contextmanager
def _heard(file: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _GONE:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())  # what waits in the file goes there as well
        os.close(nowhere)
