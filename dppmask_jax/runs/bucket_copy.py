"""The local copy of a run whose folder is in a bucket.

Object stores have no rename and no append, and orbax writes to none but Google's. So a run works in
a local folder, with all that is promised there, and its files are copied: from the bucket when it
starts, into it after each checkpoint and at the end. What is in the bucket counts; a copy that a
killed process left is thrown away. A checkpoint's manifest is copied last, and removed first:
without it there is no checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dppmask_jax import parallel, terminal, whole_files
from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.runs import bucket, bucket_download, bucket_lock, integrity, lock
from dppmask_jax.runs.bucket import Store

_NOTE = ".bucket.json"  # in a copy: whose it is, and which of its files the bucket has
_LEFT_OUT = re.compile(r"(?:.*/)?(?:\.lock[^/]*|\.bucket\.json|[^/]*\.part)(?:/|$)")
_SET_ASIDE = re.compile(r"(?:.*/)?checkpoints-damaged-[^/]*/")
log = logging.getLogger(__name__)


class Copy(NamedTuple):
    """The folder of a copy, the bucket's, and the lock that lets write there; None: of a process
    that only reads."""

    folder: Path
    store: Store
    lock: bucket_lock.Lock | None


@contextlib.contextmanager
def opened(
    where: str | Path,
    name: str = ".lock",
    reads: Callable[[str], bool] = bucket_download.of_run,
) -> Iterator[Path]:
    """The folder of a run to write in: `where` itself, or the local copy of one in a bucket.

    The main process locks the bucket's folder, all processes copy what is read of it, each for
    itself, and at the end the main one copies what has changed back.

    Args:
      name: of the lock.
      reads: whether a file of the folder is read, by its name; the others are not copied here.

    Raises:
      InputError: in every process; the bucket cannot be used, or another run holds the lock.
    """
    if not bucket.is_one(where):
        yield Path(where)
        return
    store = bucket.opened(where)
    folder = _place(store, name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder.parent}, where {store.url} is copied to, cannot be made ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can"
        ) from error
    with contextlib.ExitStack() as stack:
        found = []

        def take() -> int:
            found.append(_lock(stack, store, folder, name))
            return 0

        parallel.decided_by_main(take)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        copy = Copy(folder, store, found[0] if found else None)
        _begin(copy, reads, alone=name == ".lock")
        try:
            with _named(copy):
                yield folder
        except BaseException:
            with contextlib.suppress(Stopped):  # what comes next says more
                _end(copy)
            raise
        _end(copy)


def of(folder: str | Path) -> Copy | None:
    """The copy that a folder lies in; None where it lies in none."""
    folder = Path(os.path.abspath(folder))
    for above in (folder, *folder.parents):
        if (above / _NOTE).exists():
            note = json.loads((above / _NOTE).read_text())
            held = note["lock"] and bucket_lock.Lock(*note["lock"])
            return Copy(above, bucket.opened(note["url"]), held)
    return None


def named(path: str | Path) -> str:
    """What to call a path: where it lies in the bucket, if it lies in a copy."""
    if bucket.is_one(path):
        return bucket.url_of(path)
    if (copy := of(path)) is None:
        return str(path)
    inside = Path(os.path.abspath(path)).relative_to(copy.folder).as_posix()
    return copy.store.url if inside == "." else f"{copy.store.url}/{inside}"


def push(copy: Copy, checkpoints: Path | None = None, keep: int = 0) -> None:
    """Copies what is new or changed into the bucket, and removes there what was removed here.

    Args:
      checkpoints: a folder of checkpoints of the copy, of which `keep` stay in the bucket as well.

    Raises:
      OSError or what the store's library raises: some of it could not be copied. The checkpoints in
        the bucket are as they were, or there is one more.
      Stopped: another process has taken the lock.
    """
    there, here = _known(copy), _files(copy.folder)
    changed = [name for name in here if there.get(name) != here[name]]
    files = [n for n in changed if not bucket_download.CHECKPOINT.match(n)]
    arrays = [n for n in changed if n not in files and not n.endswith(f"/{integrity.MANIFEST}")]
    manifests = [n for n in changed if n not in files and n not in arrays]
    for names in (arrays, files, manifests):
        bucket_lock.check(copy.store, copy.lock)
        copy.store.upload(copy.folder, names)
        there |= {name: here[name] for name in names}
        _note(copy, there)
    gone = [name for name in there if name not in here]
    if checkpoints is not None:
        gone += _beyond(copy.store, _inside(copy, checkpoints), here, keep)
    bucket_lock.check(copy.store, copy.lock)
    _remove(copy.store, gone)
    _note(copy, here)


def newest(copy: Copy, checkpoints: Path) -> int | None:
    """The step of the newest checkpoint that the bucket has, of a folder of the copy."""
    return max(bucket_download.steps(_known(copy), _inside(copy, checkpoints)), default=None)


@contextlib.contextmanager
def readable(where: str | Path, step: int | None = None) -> Iterator[Path]:
    """A folder to read a checkpoint from: `where` itself, or, for a run in a bucket, a temporary
    one with its newest whole checkpoint, or that of a step.

    Raises:
      InputError: the bucket cannot be used.
    """
    if not bucket.is_one(where):
        yield Path(where)
        return
    store = bucket.opened(where)
    with tempfile.TemporaryDirectory(prefix="dppmask-") as name:
        folder = Path(name).resolve()
        with _asked(store):
            bucket_download.checkpoints(store, folder, store.files("checkpoints"), step)
        with _named(Copy(folder, store, None)):
            yield folder


def steps(where: str | Path) -> list[int]:
    """The steps of the checkpoints in a bucket's folder, the oldest first; they are not compared
    with their manifests."""
    store = bucket.opened(where)
    with _asked(store):
        return sorted(bucket_download.steps(store.files("checkpoints"), "checkpoints/"))


@contextlib.contextmanager
def _asked(store: Store) -> Iterator[None]:
    """Makes one line of what the store's library raises."""
    try:
        yield
    except (InputError, Stopped):
        raise
    except Exception as error:
        if not bucket.is_of_store(error):
            raise
        raise bucket.refused(store.url, error) from error


@contextlib.contextmanager
def _named(copy: Copy) -> Iterator[None]:
    """Has messages name the bucket rather than the copy."""
    try:
        yield
    except (InputError, Stopped) as error:
        text = str(error).replace(str(copy.folder), copy.store.url)
        error.args = (text, *error.args[1:])
        raise


def _place(store: Store, name: str) -> Path:
    """The folder of the copy, for this user, this lock and this process."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    what = f"{store.url}\n{name}\n{parallel.process_shard()[0]}"
    place = hashlib.sha256(what.encode()).hexdigest()[:16]
    return Path(cache).resolve() / "dppmask_jax" / "workdirs" / place / store.url.rpartition("/")[2]


def _lock(stack, store: Store, folder: Path, name: str) -> bucket_lock.Lock:
    """Takes the lock of this machine, which tells that an earlier process on it is dead, and that
    of the bucket."""
    try:
        stack.enter_context(lock.held(folder.parent, ".lock"))
    except InputError as error:
        raise InputError(str(error).replace(str(folder.parent), store.url, 1)) from None
    ident = folder.parent / ".owner"
    if not ident.exists():
        whole_files.write_text(ident, uuid.uuid4().hex)
    with _asked(store):
        owner = f"{ident.read_text()} on {socket.gethostname()}"  # a disk may have been cloned
        held = bucket_lock.held(store, name, owner, _say)
        return stack.enter_context(held)


def _say(line: str) -> None:
    terminal.show(line, sys.stdout)


def _begin(copy: Copy, reads: Callable[[str], bool], alone: bool) -> None:
    """Copies what is read of the bucket's folder here.

    Args:
      alone: whether nobody else writes the run's checkpoints: half copied ones are removed.
    """
    with _asked(copy.store):
        names = copy.store.files()
        bucket_download.run(copy.store, copy.folder, names, reads)
        for name in names:
            if found := _SET_ASIDE.match(name):  # no other is set aside under its name
                (copy.folder / found[0]).mkdir(parents=True, exist_ok=True)
        if copy.lock and alone:
            whole = bucket_download.steps(names, "checkpoints/")
            half = (f for f in map(bucket_download.CHECKPOINT.match, names) if f)
            half = (f.string for f in half if int(f[1]) not in whole)
            copy.store.remove(name for name in half if name.startswith("checkpoints/"))
    _note(copy, _files(copy.folder))


def _end(copy: Copy) -> None:
    """Copies what has changed into the bucket, and removes the copy.

    Raises:
      Stopped: it could not be copied, and is kept beside; or another process has taken the lock.
    """
    if copy.lock:
        try:
            push(copy)
        except Stopped:
            raise
        except Exception as error:
            if not bucket.is_of_store(error):
                raise
            kept = _free(copy.folder)
            copy.folder.rename(kept)  # a new start makes its own copy of what the bucket has
            line = f"{kept} could not be copied to {copy.store.url}: {_reason(error)}"
            log.warning(line)
            raise Stopped(f"{line}; the same command goes on with what is there", 1) from error
    shutil.rmtree(copy.folder, ignore_errors=True)


def _free(folder: Path) -> Path:
    """A name for a copy that is kept."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}-not-copied-{number}")).exists():
        number += 1
    return kept


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip(": ")


def _inside(copy: Copy, checkpoints: Path) -> str:
    """How the names of checkpoints begin."""
    return f"{Path(checkpoints).relative_to(copy.folder).as_posix()}/"


def _beyond(store: Store, below: str, here, keep: int) -> list[str]:
    """Files in the bucket of checkpoints that are older than those that are kept."""
    names = store.files(below.rstrip("/"))
    old = sorted(bucket_download.steps(names, below), reverse=True)[keep:]
    return [n for n in names if n not in here and any(n.startswith(f"{below}{o}/") for o in old)]


def _remove(store: Store, names: list[str]) -> None:
    manifests = [name for name in names if name.endswith(f"/{integrity.MANIFEST}")]
    store.remove(manifests)
    store.remove(set(names) - set(manifests))


def _files(folder: Path) -> dict[str, list[int]]:
    """{name: [bytes, time of the last change]} of the files that the bucket is to have."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _LEFT_OUT.match(name) and "orbax-checkpoint-tmp" not in name:
            stat = path.stat()
            found[name] = [stat.st_size, stat.st_mtime_ns]
    return found


def _known(copy: Copy) -> dict[str, list[int]]:
    return json.loads((copy.folder / _NOTE).read_text())["files"]


def _note(copy: Copy, files: dict[str, list[int]]) -> None:
    values = {"url": copy.store.url, "lock": copy.lock, "files": files}
    whole_files.write_json(copy.folder / _NOTE, values)
