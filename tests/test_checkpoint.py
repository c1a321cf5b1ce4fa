import asyncio
import errno
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.methods.base import TrainState
from dppmask_jax.runs import checkpoint


def state_of(value):
    params = {"encoder": {"w": jnp.full((3, 4), value, jnp.float32)}, "decoder": jnp.ones(2)}
    opt_state = optax.adam(0.1).init(params)
    return parallel.replicate(
        TrainState(
            jnp.int32(value), params, opt_state, {"center": jnp.zeros(3)}, *2 * [jnp.int32(0)]
        )
    )


def save(folder, values, keep=2):
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=keep)
    for value in values:
        checkpoints.save(value, state_of(value), {"config": {"step": value}})
    checkpoints.close()


def restore(folder):
    step = checkpoint.newest(folder).step
    checkpoint.check_fits(folder, step, state_of(0))
    state = checkpoint.restore(folder, step, state_of(0))
    return state, int(state.step)


def damage(folder, step, part):
    for path in (folder / checkpoint.FOLDER / str(step) / part).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, [3])
    state, step = restore(tmp_path)
    assert step == 3 and isinstance(state, TrainState)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(3))


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4], keep=2)
    kept = sorted(p.name for p in (tmp_path / checkpoint.FOLDER).iterdir() if p.name.isdigit())
    assert kept == ["3", "4"]
    assert restore(tmp_path)[1] == 4


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("part", ["state", "meta"])
def test_every_reader_falls_back_from_a_damaged_checkpoint(tmp_path, caplog, part):
    save(tmp_path, [1, 2])
    damage(tmp_path, 2, part)
    state, step = restore(tmp_path)
    assert step == 1 and float(state.params["encoder"]["w"][0, 0]) == 1.0
    assert f"{tmp_path}/checkpoints is damaged: {part}/" in caplog.text
    meta, state, step = checkpoint.read_newest(tmp_path)
    assert step == 1 and meta == {"config": {"step": 1}}
    assert checkpoint.newest(tmp_path) == (1, {"config": {"step": 1}}, [2])


def test_a_damaged_checkpoint_is_kept_aside_and_its_step_saved_again(tmp_path):
    save(tmp_path, [2, 6])
    damage(tmp_path, 6, "state")
    assert checkpoint.newest(tmp_path).damaged == [6]
    checkpoint.set_aside(tmp_path, [6])
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER)
    for step in (4, 6):
        checkpoints.save(step, state_of(step), {"config": {}})
    checkpoints.close()
    assert restore(tmp_path)[1] == 6
    assert (tmp_path / "checkpoints-damaged-6-0" / "state").exists()


@pytest.mark.parametrize("part", ["state", "meta"])
def test_all_damaged_stops_instead_of_starting_again(tmp_path, part):
    save(tmp_path, [1])
    damage(tmp_path, 1, part)
    with pytest.raises(InputError, match="none of the checkpoints"):
        restore(tmp_path)
    with pytest.raises(InputError, match="none of the checkpoints"):
        checkpoint.read_newest(tmp_path)


def test_another_training_state_is_not_taken_for_damage(tmp_path):
    save(tmp_path, [1])
    other = state_of(0)._replace(extra={"center": jnp.zeros(4)})
    with pytest.raises(InputError, match="another training state"):
        checkpoint.check_fits(tmp_path, 1, other)


def test_parameters_alone(tmp_path):
    save(tmp_path, [5])
    meta, state, step = checkpoint.read_newest(tmp_path)
    assert (meta, step) == ({"config": {"step": 5}}, 5)
    assert set(state) == {"params", "extra"}
    np.testing.assert_array_equal(state["params"]["encoder"]["w"], np.full((3, 4), 5.0))


def test_reading_from_a_folder_without_checkpoints_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.read_newest(tmp_path)


def open_and_write(monkeypatch, write):
    """Has `write(array)` awaited before each array is written."""
    original = ocp.type_handlers.NumpyHandler._open_and_write

    async def patched(self, value, *args):
        await write(value)
        await original(self, value, *args)

    monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "_open_and_write", patched)


TWO = {"params": {"full": np.zeros(3, np.float32), "slow": np.ones(3, np.float32)}}


def test_a_save_fails_when_its_last_write_has_ended(tmp_path, monkeypatch):
    ended = []

    async def write(value):
        if not value.any():
            raise OSError(errno.ENOSPC, "no room")
        await asyncio.sleep(0.3)
        ended.append(value)

    open_and_write(monkeypatch, write)
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER)
    with pytest.raises(checkpoint.SaveFailed, match="No space left"):
        checkpoints.save(1, TWO, {})
        checkpoints.wait()
    assert len(ended) == 1
    assert not list((tmp_path / checkpoint.FOLDER).iterdir())
    checkpoints.close()


def test_a_disk_that_stalls_is_not_waited_for_again(tmp_path, monkeypatch):
    released = threading.Event()

    async def write(value):
        while not released.is_set():
            await asyncio.sleep(0.01)

    def run_out_of_time():
        raise TimeoutError

    open_and_write(monkeypatch, write)
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER)
    checkpoints.save(1, TWO, {})
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", run_out_of_time)
    monkeypatch.setattr(checkpoint, "_LAST_WRITES_SECONDS", "an error, if it were waited")
    with pytest.raises(checkpoint.SaveFailed, match="timed out"):
        checkpoints.wait()
    released.set()
    checkpoints.save(2, TWO, {})
    checkpoints.close()
    assert checkpoint.newest(tmp_path) == (2, {}, [])


def test_what_is_saved_is_what_was_handed_over(tmp_path, monkeypatch):
    changed = threading.Event()

    async def write(value):
        while not changed.is_set():
            await asyncio.sleep(0.01)

    open_and_write(monkeypatch, write)
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER)
    state = {"params": {"w": np.ones(5, np.float32)}}
    checkpoints.save(1, state, {})
    state["params"]["w"][:] = 7
    changed.set()
    checkpoints.close()
    np.testing.assert_array_equal(checkpoint.restore(tmp_path, 1, state)["params"]["w"], 1)
