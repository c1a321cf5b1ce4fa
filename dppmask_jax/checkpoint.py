"""Checkpoints with orbax: written in the background, restored from the newest good one."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dppmask_jax.errors import InputError

FOLDER = "checkpoints"
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run under WORKDIR/checkpoints (or any path that orbax takes).

    A checkpoint holds the training state and `meta`, a JSON object. `save` returns before the
    files are written; `close` waits for them. `damaged` lists the steps that `restore` could not
    read.
    """

    def __init__(self, directory, *, keep: int = 2):
        self.damaged: list[int] = []
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).resolve(),
            item_names=tuple(_handlers()),
            item_handlers=_handlers(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.LatestN(keep),
                enable_async_checkpointing=True,
                create=True,
            ),
        )

    def save(self, step: int, state, meta: dict[str, Any]) -> None:
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, like):
        """The state of the newest checkpoint that can be read.

        What cannot be read is named in the log and listed in `damaged`.

        Args:
          like: a state of the same structure, shapes, dtypes and shardings.

        Raises:
          InputError: there is no checkpoint that can be read, or the newest that can holds another
            training state.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                _meta(self._manager, step)
                saved = self._manager.item_metadata(step)["state"].tree
                if _shapes(saved) == _shapes(like):
                    restored = self._manager.restore(
                        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
                    )
                    return restored["state"]
            except Exception:
                log.exception("checkpoint %d cannot be read; trying the one before it", step)
                self.damaged.append(step)
            else:
                raise InputError(
                    f"checkpoint {step} in {self._manager.directory} holds another training state "
                    "than this config has; go back to its model and optimiser, or name another "
                    "workdir"
                )
        raise InputError(
            f"none of the checkpoints in {self._manager.directory} can be read; "
            "move that folder away to start again"
        )

    def set_damaged_aside(self) -> None:
        """Moves what `restore` could not read out of the folder, so that new ones can be saved."""
        folder = self._manager.directory
        for step in self.damaged:
            number = 0
            while (aside := folder.parent / f"{folder.name}-damaged-{step}-{number}").exists():
                number += 1
            (folder / str(step)).rename(aside)
            log.warning("checkpoint %d was moved to %s", step, aside)

    def reload(self) -> None:
        """Looks again at which checkpoints there are."""
        self._manager.reload()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def newest_meta(workdir) -> dict[str, Any] | None:
    """The `meta` of the newest checkpoint that can be read, or None if there is no checkpoint.

    Raises:
      InputError: there are checkpoints, and the `meta` of none can be read.
    """
    with _reading(workdir) as manager:
        if manager is None or not manager.all_steps():
            return None
        return _newest_good(manager, workdir, lambda step: _meta(manager, step))


def read_newest(workdir, parts: tuple[str, ...] = ("params", "extra")):
    """Reads parts of the training state of a finished or running run, as NumPy arrays.

    Returns:
      (meta, {part: tree}, step) of the newest checkpoint that can be read.

    Raises:
      InputError: there is no checkpoint under `workdir`, or none that can be read.
    """
    with _reading(workdir) as manager:
        if manager is None or not manager.all_steps():
            raise InputError(
                f"there is no checkpoint in {workdir}; name the workdir of a run that saved one"
            )
        return _newest_good(
            manager, workdir, lambda step: (*_read_parts(manager, step, parts), step)
        )


def _read_parts(manager, step, parts):
    tree = manager.item_metadata(step)["state"].tree
    wanted = {part: tree[part] for part in parts if part in tree}
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(
            manager.directory / str(step) / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted, restore_args=restore_args, partial_restore=True
            ),
        )
    return _meta(manager, step), state


def _newest_good(manager, workdir, read):
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return read(step)
        except Exception:
            log.exception("checkpoint %d cannot be read; trying the one before it", step)
    raise InputError(f"none of the checkpoints in {workdir} can be read")


def _shapes(tree) -> list[tuple[int, ...]]:
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))


def _handlers():
    return {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}


@contextlib.contextmanager
def _reading(workdir):
    folder = epath.Path(workdir) / FOLDER
    if not folder.exists():
        yield None
        return
    with ocp.CheckpointManager(
        folder.resolve(),
        item_names=tuple(_handlers()),
        item_handlers=_handlers(),
    ) as manager:
        yield manager


def _meta(manager, step):
    return dict(manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
