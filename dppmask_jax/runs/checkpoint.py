"""Checkpoints with orbax: written in the background, checked file by file when they are read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dppmask_jax.errors import InputError, Stopped
from dppmask_jax.runs import bucket, bucket_copy, integrity

FOLDER = "checkpoints"
_STATE, _META = "state", "meta"
_PARTIAL = ".orbax-checkpoint-tmp"
_LAST_WRITES_SECONDS = 60.0  # to wait for each part of a failed checkpoint
log = logging.getLogger(__name__)


class SaveFailed(OSError):
    """A checkpoint could not be written; `step` and `reason` say which and why."""

    def __init__(self, step: int, number: int, reason: str = ""):
        self.step, self.reason = step, reason or os.strerror(number)
        super().__init__(number, f"checkpoint {step} could not be written: {self.reason}")


class _AllWritten(ocp.type_handlers.NumpyHandler):
    """A handler that waits for the writes of all arrays, also where one of them fails.

    Orbax raises at the first failure, and closes the event loop that the other writes report to:
    they make the removed folder anew, and print tracebacks on stderr.
    """

    async def _background_serialize(self, *args, **kwargs):
        try:
            await super()._background_serialize(*args, **kwargs)
        finally:
            # The loop was made for this one call, so there are no tasks but its writes.
            writes = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*writes, return_exceptions=True)


_WRITERS = ocp.type_handlers.create_type_handler_registry(
    # Copied: the caller may change the arrays, and a CPU's buffer with a view cannot be donated.
    (np.ndarray, _AllWritten(deepcopy_host_arrays=True)),
    (jax.Array, ocp.type_handlers.ArrayHandler()),  # never used; orbax warns where it is missing
)


def _noting(commits: list[ocp.future.Future], handler: ocp.AsyncCheckpointHandler):
    """The handler, which adds to `commits` the futures of all that it writes in the background."""
    begin = handler.async_save

    async def begin_and_note(*args, **kwargs):
        begun = await begin(*args, **kwargs) or []
        commits.extend(begun)
        return begun

    handler.async_save = begin_and_note
    return handler


class Checkpoints:
    """Writes the checkpoints of one run under WORKDIR/checkpoints (or any path that orbax takes).

    For one process only: of several, all but this one write nothing. A checkpoint holds the
    training state, `meta`, a JSON object, and a manifest of their files; it appears under its
    name once all of it is written. What an earlier process left half written is removed. Where the
    folder is the copy of one in a bucket, a checkpoint is written once the bucket has it.
    """

    def __init__(self, directory, *, keep: int = 2):
        self._directory = epath.Path(directory).resolve()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._remove_partial()
        self._keep = keep
        self._copy = bucket_copy.of(self._directory)
        self._saving: int | None = None
        self._commits: list[ocp.future.Future] = []
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._directory,
            item_names=(_STATE, _META),
            item_handlers={
                _STATE: _noting(
                    self._commits, ocp.PyTreeCheckpointHandler(type_handler_registry=_WRITERS)
                ),
                _META: _noting(self._commits, ocp.JsonCheckpointHandler()),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.LatestN(self._keep),
                enable_async_checkpointing=True,
                create=False,
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._write_manifest,
                    # Else threads wait ten minutes for a folder that could not be made.
                    create_directories_asynchronously=False,
                ),
                # The state is the same in all processes: none needs to wait for another here.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}, barrier_sync_key_prefix="writer"
                ),
            ),
        )

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint that is written."""
        if self._copy:
            return bucket_copy.newest(self._copy, self._directory)
        return max(ocp.utils.checkpoint_steps(self._directory), default=None)

    def save(self, step: int, state, meta: dict[str, Any]) -> None:
        """Begins to write a checkpoint; `wait` says how it ended.

        Args:
          state: arrays that this process holds whole; they are copied before this returns.

        Raises:
          SaveFailed: as for `wait`.
        """
        self.wait()
        self._saving = step
        self._commits.clear()
        args = ocp.args.Composite(
            **{
                _STATE: ocp.args.PyTreeSave(jax.tree.map(np.asarray, state)),
                _META: ocp.args.JsonSave(meta),
            }
        )
        try:
            self._remove_partial()  # left by a save that timed out and wrote on
            self._manager.save(step, args=args)
        except (OSError, ValueError) as error:
            self._give_up(error)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, if there is one.

        Raises:
          SaveFailed: the disk is full, say. The checkpoints before are as they were, and what was
            written of this one is removed.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            self._give_up(error)
        step, self._saving = self._saving, None
        if self._copy:
            self._upload(step)

    def _upload(self, step: int) -> None:
        try:
            bucket_copy.push(self._copy, self._directory, self._keep)
        except Stopped:
            raise
        except Exception as error:  # whatever the library of the store raises
            if not bucket.is_of_store(error):
                raise
            words = " ".join(f"{type(error).__name__}: {error}".split()).strip(": ")
            raise SaveFailed(step, errno.EIO, f"{self._copy.store.url}: {words}") from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()
            with contextlib.suppress(OSError):
                self._remove_partial()

    def _give_up(self, error: OSError | ValueError) -> None:
        number = _error_number(error)
        if number is None:
            raise error
        step, self._saving = self._saving, None
        # The manager keeps other errors of this save for the next, and has forgotten the
        # checkpoints that this one was to replace.
        with contextlib.suppress(OSError, ValueError):
            self._manager.close()
        # The manager raised the first error, while other parts are still being written.
        for commit in [] if isinstance(error, TimeoutError) else self._commits:
            with contextlib.suppress(OSError, ValueError):
                commit.result(_LAST_WRITES_SECONDS)
        self._commits.clear()  # their errors keep the arrays alive
        with contextlib.suppress(OSError):  # the disk is read-only now: the next start removes it
            self._remove_partial()
        self._manager = self._open()
        raise SaveFailed(step, number) from error

    def _write_manifest(self) -> None:
        folder = self._directory / f"{self._saving}{_PARTIAL}"
        if not folder.exists():  # object stores have no renaming, so nothing temporary
            folder = self._directory / str(self._saving)
        integrity.write_manifest(folder, (_STATE, _META))

    def _remove_partial(self) -> None:
        for path in self._directory.glob(f"*{_PARTIAL}*"):
            path.rmtree()


def _error_number(error: OSError | ValueError) -> int | None:
    """The number of the file system's error, where that is what failed."""
    if isinstance(error, TimeoutError):
        return errno.ETIMEDOUT  # orbax' own has no number
    if isinstance(error, OSError):
        return error.errno
    # The library below orbax raises ValueError for everything.
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return found and int(found[1])


class Newest(NamedTuple):
    """The newest checkpoint that is whole: its step and `meta`, and the steps of newer ones, which
    are damaged."""

    step: int
    meta: dict[str, Any]
    damaged: list[int]


def newest(workdir) -> Newest | None:
    """Looks for the checkpoint to go on from, file by file; None where there is no checkpoint.

    What is damaged is named in the log.

    Raises:
      InputError: there are checkpoints, and none is whole.
    """
    folder = _folder(workdir)
    if not _steps(folder):
        return None
    return Newest(*_newest(folder, _checked_meta))


def check_fits(workdir, step: int, like) -> None:
    """Raises InputError unless a checkpoint that is whole holds a state of the structure and shapes
    of `like`."""
    folder = _folder(workdir)
    if _shapes(_stored_tree(folder / str(step))) != _shapes(like):
        raise InputError(
            f"checkpoint {step} in {folder} holds another training state than this config has; go "
            "back to its model and optimiser, or name another workdir"
        )


def restore(workdir, step: int, like):
    """The state of a checkpoint that is whole.

    Args:
      like: a state of the same structure, shapes, dtypes and shardings.
    """
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(_folder(workdir) / str(step) / _STATE, like)


def set_aside(workdir, steps: list[int]) -> None:
    """Moves checkpoints out of the folder, so that their steps can be saved again."""
    folder = _folder(workdir)
    for step in steps:
        number = 0
        while (aside := folder.parent / f"{folder.name}-damaged-{step}-{number}").exists():
            number += 1
        (folder / str(step)).rename(aside)
        log.warning("checkpoint %d was moved to %s", step, aside)


def read_newest(workdir, parts: tuple[str, ...] = ("params", "extra")):
    """Reads parts of the training state of a finished or running run, as NumPy arrays.

    Args:
      workdir: a local folder, or the URL of one in a bucket.

    Returns:
      (meta, {part: tree}, step) of the newest checkpoint that is whole.

    Raises:
      InputError: there is no checkpoint under `workdir`, or none that is whole.
    """
    with bucket_copy.readable(workdir) as local:
        folder = _folder(local)
        if not _steps(folder):
            raise InputError(
                f"there is no checkpoint in {local}; name the workdir of a run that saved one"
            )
        step, (meta, state), _ = _newest(folder, lambda path: _read_parts(path, parts))
    return meta, state, step


def whole_steps(workdir) -> list[int]:
    """The steps of the checkpoints under `workdir` that are whole, the oldest first; of those in a
    bucket that are there, which are compared when they are read."""
    if bucket.is_one(workdir):
        return bucket_copy.steps(workdir)
    folder = _folder(workdir)
    return [step for step in reversed(_steps(folder)) if _is_whole(folder / str(step))]


def read(workdir, step: int, parts: tuple[str, ...] = ("params", "extra")):
    """(meta, {part: tree}, step), as `read_newest`, of the checkpoint of a step.

    Raises:
      InputError: there is none, or it is damaged.
    """
    with bucket_copy.readable(workdir, step) as local:
        path = _folder(local) / str(step)
        try:
            meta, state = _read_parts(path, parts)
        except (integrity.Damaged, FileNotFoundError) as error:
            raise InputError(f"there is no whole checkpoint {path}: {error}") from error
    return meta, state, step


def _is_whole(path) -> bool:
    try:
        integrity.check(path)
    except integrity.Damaged:
        return False
    return True


def _folder(workdir):
    return (epath.Path(workdir) / FOLDER).resolve()


def _steps(folder) -> list[int]:
    """Newest first."""
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.exists() else []


def _newest(folder, read):
    """(step, what `read` makes of its path, the newer steps) of the newest that is whole."""
    steps, damaged = _steps(folder), {}
    for step in steps:
        path = folder / str(step)
        try:
            return step, read(path), list(damaged)
        except integrity.Damaged as reason:
            if path.exists():  # or the run that is writing here has replaced it
                log.warning("checkpoint %d in %s is damaged: %s", step, folder, reason)
                log.debug("checkpoint %d", step, exc_info=True)
            damaged[step] = reason
    if _steps(folder) != steps:
        return _newest(folder, read)
    reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
    raise InputError(
        f"none of the checkpoints in {folder} is whole ({reasons}); restore them from a copy, or "
        "move that folder away to start again"
    )


def _checked_meta(path):
    integrity.check(path)
    return _meta(path)


def _read_parts(path, parts):
    integrity.check(path)
    try:
        tree = _stored_tree(path)
        return _meta(path), _load(path, {part: tree[part] for part in parts if part in tree})
    except (OSError, ValueError):
        integrity.check(path)  # a run that is writing here may have removed it meanwhile
        raise


def _stored_tree(path):
    return ocp.StandardCheckpointHandler().metadata(path / _STATE).tree


def _load(path, tree):
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore(
            path / _STATE,
            args=ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=True),
        )


def _meta(path) -> dict[str, Any]:
    return json.loads((path / _META / "metadata").read_text())


def _shapes(tree) -> list[tuple[int, ...]]:
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
