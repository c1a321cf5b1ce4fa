"""One writer in a folder at a time: a lock that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dppmask_jax.errors import InputError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Holds `folder`/`name` while the context lasts; makes the folder if it is not there.

    The lock is flock's: the kernel gives it up with the process, so that a file left by a killed
    one is in nobody's way. On NFS it reaches as far as the server's locks do. Afterwards the file
    is removed, and so is a folder made here that is still empty.

    Raises:
      InputError: another process holds it; it is named, and nothing was changed.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    try:
        file = _take(path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a disk that became read-only
                path.unlink()
            os.close(file)
    finally:
        with contextlib.suppress(OSError):  # not empty: the run has written something
            for path in made:
                path.rmdir()


def _take(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 1000).decode(errors="replace") or "another process"
            os.close(file)
            raise InputError(
                f"{path.parent} is in use by {holder}; wait until it has ended, stop it, or name "
                "another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                os.close(file)
                raise
            log.warning("%s: no locks on this file system; keep other runs out yourself", path)
        # The holder before may have removed the file between the two calls above.
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            break
        os.close(file)
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the words
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode(), 0)
    return file
