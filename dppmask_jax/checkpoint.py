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
    files are written; `close` waits for them.
    """

    def __init__(self, directory, *, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            epath.Path(directory).resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.LatestN(keep),
                enable_async_checkpointing=True,
                create=True,
            ),
        )

    def save(self, step: int, state, meta: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def restore(self, abstract_state):
        """(state, step) from the newest checkpoint that can be read, or None if there is none.

        Args:
          abstract_state: the state's structure, shapes, dtypes and shardings.

        Raises:
          InputError: there are checkpoints, and none of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)),
                )
            except Exception:
                log.exception("checkpoint %d cannot be read; trying the one before it", step)
            else:
                return restored["state"], step
        if steps:
            raise InputError(
                f"none of the checkpoints in {self._manager.directory} can be read; "
                "move that folder away to start again"
            )
        return None

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def newest_meta(workdir) -> dict[str, Any] | None:
    """The `meta` of the newest checkpoint under `workdir`, or None; writes nothing."""
    with _reading(workdir) as manager:
        step = None if manager is None else manager.latest_step()
        return None if step is None else _meta(manager, step)


def read_newest(workdir, parts: tuple[str, ...] = ("params", "extra")):
    """Reads parts of the training state of a finished or running run, as NumPy arrays.

    Returns:
      (meta, {part: tree}, step).

    Raises:
      InputError: there is no checkpoint under `workdir`.
    """
    with _reading(workdir) as manager:
        step = None if manager is None else manager.latest_step()
        if step is None:
            raise InputError(
                f"there is no checkpoint in {workdir}; name the workdir of a run that saved one"
            )
        meta = _meta(manager, step)
        tree = manager.item_metadata(step)["state"].tree
        path = manager.directory / str(step) / "state"
    wanted = {part: tree[part] for part in parts if part in tree}
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    with ocp.PyTreeCheckpointer() as reader:
        state = reader.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=wanted, restore_args=restore_args, partial_restore=True
            ),
        )
    return meta, state, step


@contextlib.contextmanager
def _reading(workdir):
    folder = epath.Path(workdir) / FOLDER
    if not folder.exists():
        yield None
        return
    handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(
        folder.resolve(), item_names=tuple(handlers), item_handlers=handlers
    ) as manager:
        yield manager


def _meta(manager, step):
    return dict(manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
