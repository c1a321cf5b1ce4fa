import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dppmask_jax import checkpoint, parallel
from dppmask_jax.errors import InputError
from dppmask_jax.methods.base import TrainState


def state_of(value):
    params = {"encoder": {"w": jnp.full((3, 4), value, jnp.float32)}, "decoder": jnp.ones(2)}
    opt_state = optax.adam(0.1).init(params)
    return parallel.replicate(
        TrainState(jnp.int32(value), params, opt_state, {"center": jnp.zeros(3)}, jnp.int32(0))
    )


def save(folder, values, keep=2):
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER, keep=keep)
    for value in values:
        checkpoints.save(value, state_of(value), {"config": {"step": value}})
    checkpoints.close()


def restore(folder):
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
    found = checkpoints.restore(state_of(0))
    checkpoints.close()
    return found


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
    assert restore(tmp_path) is None
    assert checkpoint.newest_meta(tmp_path / "nowhere") is None
    assert not (tmp_path / "nowhere").exists()


def test_damaged_newest_falls_back_to_the_one_before(tmp_path, caplog):
    save(tmp_path, [1, 2])
    for path in (tmp_path / checkpoint.FOLDER / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    state, step = restore(tmp_path)
    assert step == 1 and float(state.params["encoder"]["w"][0, 0]) == 1.0
    assert "checkpoint 2 cannot be read" in caplog.text


def test_all_damaged_stops_instead_of_starting_again(tmp_path):
    save(tmp_path, [1])
    for path in (tmp_path / checkpoint.FOLDER / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the checkpoints"):
        restore(tmp_path)


def test_parameters_alone(tmp_path):
    save(tmp_path, [5])
    meta, state, step = checkpoint.read_newest(tmp_path)
    assert (meta, step) == ({"config": {"step": 5}}, 5)
    assert set(state) == {"params", "extra"}
    np.testing.assert_array_equal(state["params"]["encoder"]["w"], np.full((3, 4), 5.0))


def test_reading_from_a_folder_without_checkpoints_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.read_newest(tmp_path)
