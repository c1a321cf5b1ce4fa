"""One writer in a bucket's folder at a time, of whatever machine.

Nothing drops a lock there when its process dies, as the kernel does with flock. So a holder writes
a sign of life into its lock every few seconds, and who finds a lock watches it: one that changes is
held, one that stays the same is that of a dead machine. No clocks are compared. A lock is never
removed and made again; the next holder makes the next number, if no one else has. Who holds the
highest number holds the lock, and the others can see that they lost it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.runs import bucket
from dppmask_jax.runs.bucket import Store

BEAT_SECONDS = 10.0  # between signs of life
DEAD_SECONDS = 60.0  # without one
_POLL_SECONDS = 1.0
LOST = 1  # the exit status of a run that lost its lock
log = logging.getLogger(__name__)


class Lock(NamedTuple):
    """A lock that is held: NAME/NUMBER in the folder."""

    name: str
    number: int


@contextlib.contextmanager
def held(store: Store, name: str, owner: str, say: Callable[[str], Any]) -> Iterator[Lock]:
    """Holds a lock while the context lasts.

    Args:
      name: of the lock, a folder of small files beside those of the run.
      owner: what only one living process can be; a lock of the same owner is that of a dead one.
      say: told what is waited for.

    Raises:
      InputError: another process holds it; it is named. Nothing was changed.
    """
    mine = {
        "by": f"process {os.getpid()} on {socket.gethostname()}",
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "owner": owner,
        "token": uuid.uuid4().hex,
    }
    apart = store.apart()  # else a sign of life waits until a long upload lets a connection go
    lock = _take(store, name, mine, say)
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(apart, lock, mine, stop), daemon=True)
    beats.start()
    try:
        yield lock
    finally:
        stop.set()
        beats.join()
        try:
            if _highest(store, name) == lock.number:
                store.write(_file(lock), _text(mine | {"released": True}))
        except Exception as error:  # what ended the run says more; the next one waits for a sign
            if not bucket.is_of_store(error):
                raise
            log.warning("%s: the lock could not be given back: %s", store.url, error)


def check(store: Store, lock: Lock) -> None:
    """Raises Stopped where another process took the lock, since this one gave no sign of life."""
    if _highest(store, lock.name) > lock.number:
        raise Stopped(
            f"stopped: this process gave {store.url} no sign of life for {DEAD_SECONDS:.0f} s, and "
            "another one goes on there",
            LOST,
        )


def _take(store: Store, name: str, mine: dict, say: Callable[[str], Any]) -> Lock:
    while True:
        number = _highest(store, name)
        if number:
            _wait_for_end(store, Lock(name, number), mine["owner"], say)
        lock = Lock(name, number + 1)
        if store.create(_file(lock), _text(mine)) and _holder(store, lock) == mine:
            break
    if store.create(_file(lock), _text(mine)):
        say(
            f"{store.url}: this store does not create a file only where there is none; two runs "
            "that start there within the same second are not kept apart"
        )
    store.remove(n for n in store.files(name) if n < _file(lock))
    return lock


def _wait_for_end(store: Store, lock: Lock, owner: str, say: Callable[[str], Any]) -> None:
    """Returns once a lock is nobody's; raises InputError at a sign of life."""
    first = _holder(store, lock)
    if first.get("released") or first.get("owner") == owner:
        return
    say(
        f"{store.url} was in use by {_words(first)}; it is watched for {DEAD_SECONDS:.0f} s for a "
        "sign of life"
    )
    ends = time.monotonic() + DEAD_SECONDS
    over = False
    while not over:
        time.sleep(_POLL_SECONDS)
        over = time.monotonic() >= ends  # asked before the last look, however long a look takes
        now = _holder(store, lock)
        if now.get("released"):
            return
        if now != first or _highest(store, lock.name) > lock.number:
            raise InputError(
                f"{store.url} is in use by {_words(now)}; wait until it has ended, stop it, or "
                "name another folder"
            )


def _beat(store: Store, lock: Lock, mine: dict, stop: threading.Event) -> None:
    count = 0
    while not stop.wait(BEAT_SECONDS):
        count += 1
        try:
            if _highest(store, lock.name) > lock.number:
                return  # `check` says so before the next file is written
            store.write(_file(lock), _text(mine | {"beat": count}))
        except Exception as error:  # the network is away; the next beat may come through
            if not bucket.is_of_store(error):
                raise
            log.warning("%s: no sign of life could be written: %s", store.url, error)


def _highest(store: Store, name: str) -> int:
    """The highest number of a lock; 0 where nobody ever held it."""
    numbers = [path.rpartition("/")[2] for path in store.files(name)]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _holder(store: Store, lock: Lock) -> dict[str, Any]:
    try:
        return dict(json.loads(store.read(_file(lock))))
    except (FileNotFoundError, ValueError, TypeError):  # the next holder removed it; or damaged
        return {}


def _file(lock: Lock) -> str:
    return f"{lock.name}/{lock.number:06d}"


def _text(values: dict) -> bytes:
    return json.dumps(values).encode()


def _words(holder: dict) -> str:
    return f"{holder.get('by', 'another process')} since {holder.get('since', 'it started')}"
