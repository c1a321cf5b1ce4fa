"""One writer in a folder at a time: a lock that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from dppmask_jax.errors import InputError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Holds `folder`/`name` while the context lasts; makes the folder if it is not there.

    The lock is flock's: the kernel drops it when the process ends, so the file that a killed
    process leaves blocks nobody. On NFS it keeps other hosts out where the server locks files.
    Afterwards the file is removed, and so is a folder made here that is still empty.

    Raises:
      InputError: another process holds it; it is named, and nothing was changed.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # filelock's substitute for flock is a file that a killed process leaves behind, locked.
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        _take(lock, path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a disk that became read-only
                path.unlink()
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # not empty: the run has written something
            for path in made:
                path.rmdir()


def _take(lock: filelock.FileLock, path: Path) -> None:
    try:
        lock.acquire()
    except filelock.Timeout:
        holder = path.read_text(errors="replace") if path.exists() else ""
        raise InputError(
            f"{path.parent} is in use by {holder or 'another process'}; wait until it has ended, "
            "stop it, or name another folder"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        log.warning("%s: no locks on this file system; keep other runs out yourself", path)
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with contextlib.suppress(OSError):  # a full disk: the lock holds without the words
        path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}")
