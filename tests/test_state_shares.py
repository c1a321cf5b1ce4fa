"""`parallel.mode=shard_map`: devices hold shares of the state, and the steps are the same."""

import functools
import gc
import io
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import Mesh, PartitionSpec
from PIL import Image

from benchmarks import hlo, hlo_findings
from dppmask_jax import optim, parallel, pretrain
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.parallel import shares
from dppmask_jax.parallel.devices import in_order, mesh_of
from dppmask_jax.training import loop
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(5)
SIZE = 8  # images of a batch
PLAN = Plan(4, 8, 1, 4, 1e-3)
STEPS = 3
ROUNDING = 1e-5


def adamw():
    # Adam makes whole steps of the rounding errors that are the gradient of the keys' biases.
    return optim.adamw(
        learning_rate=lambda step: 1e-2, weight_decay=lambda step: 0.05, b1=0.9, b2=0.95,
        epsilon=1e-3, clip=optax.clip_by_global_norm(0.5),
    )  # fmt: skip


def lars():
    return optim.lars(learning_rate=lambda step: 1.0, weight_decay=lambda step: 0.05)


def built(name, optimizer=adamw, **changes):
    method = METHODS[name].build(tiny.config(name, model__depth=1, **changes), PLAN)
    turns = [turn._replace(optimizer=optimizer()) for turn in method.turns]
    return method._replace(turns=tuple(turns))


def batch_of(method, number):
    rng = np.random.default_rng(number)

    def example(index):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
        rest = {"label": np.int32(0), "index": np.int32(index), "row": np.int32(index)}
        return method.example(file.getvalue(), rng) | rest | {"bad": np.bool_(index == 3)}

    examples = [example(number * SIZE + i) for i in range(SIZE)]
    return {name: np.stack([one[name] for one in examples]) for name in examples[0]}


def steps_of(method, mode, devices, **options):
    """(losses and all other metrics of some steps, the state after them)."""
    devices = jax.devices()[:devices]
    step = make_step(method, devices=devices, mode=mode, **options)
    whole = parallel.replicate(init_state(method, jax.random.key(0)), mesh_of(devices))
    state = parallel.place(whole, mode)
    logged = []
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state)]
    for i in range(STEPS):
        split = lambda x: x.reshape(len(devices), -1, *x.shape[1:])  # noqa: E731
        state, metrics = step(state, jax.tree.map(split, batch_of(method, i)), KEY)
        for leaf, sharding in zip(jax.tree.leaves(state), shardings, strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        logged.append({name: np.asarray(value) for name, value in metrics.items()})
    return logged, state


def leaves_of(state):
    return jax.tree_util.tree_leaves_with_path(parallel.to_host(state))


# Colours of views take long to compile, and iBOT has them.
AS_THEY_ARE = {
    "data__jitter_prob": 0.0,
    "data__grey_prob": 0.0,
    "data__blur_prob": (0.0,) * 3,
    "data__solarize_prob": 0.0,
}
CASES = {
    "mae": ("mae", {}),
    "mae with LARS": ("mae", {"optimizer": lars}),
    "ibot": ("ibot", {}),  # a teacher, and centres
    "adios": ("adios", {}),  # two turns
    "moco": ("moco", AS_THEY_ARE),  # negatives of all devices, batch norms over them
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "devices"),
    [
        ("mae", 1),
        ("mae", 4),
        ("ibot", 1),
        ("ibot", 4),
        ("moco", 4),
        # Others prove little that these do not.
        pytest.param("mae with LARS", 4, marks=pytest.mark.long),
        pytest.param("adios", 4, marks=pytest.mark.long),
    ],
)
def test_a_step_of_shares_is_that_of_whole_states(case, devices):
    name, options = CASES[case]
    method = built(name, **options)
    (logged, state), (expected, whole) = (
        steps_of(method, mode, devices) for mode in ("shard_map", "pmap")
    )
    error = ROUNDING if devices > 1 else 0
    for found, right in zip(logged, expected, strict=True):
        assert found.keys() == right.keys()
        assert right["bad_steps"] == 0
        for metric, value in right.items():
            # A cosine near 0 is as exact as one near 1.
            least = error if metric.endswith("cosine") else error / 10
            np.testing.assert_allclose(found[metric], value, rtol=error, atol=least, err_msg=metric)
    assert expected[-1]["bad_images"] == 1
    for (path, x), (_, y) in zip(leaves_of(state), leaves_of(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=10 * error, atol=error, err_msg=str(path))


@pytest.mark.long
def test_micro_batches_of_shares_are_those_of_whole_states():
    method = built("mae")
    found, right = (steps_of(method, mode, 2, accum_steps=2)[0] for mode in ("shard_map", "pmap"))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=ROUNDING)


@pytest.mark.parametrize("devices", [1, 4])
def test_every_device_holds_its_share(devices):
    """On one device that is everything, and nothing is changed by being shared."""
    state = init_state(built("mae"), jax.random.key(0))
    whole = parallel.replicate(state, mesh_of(jax.devices()[:devices]))
    placed = parallel.place(whole, "shard_map")
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed))
    assert held <= 1.02 * sum(leaf.size for leaf in jax.tree.leaves(state)) / devices
    jax.tree.map(np.testing.assert_array_equal, parallel.to_host(placed), jax.device_get(state))
    gathered = parallel.gather(placed)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(gathered))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(gathered), jax.device_get(state))


def test_no_device_holds_more_than_its_share_while_it_trains(tmp_path, monkeypatch, capsys):
    """Neither what the state was made of nor what every device had at the start is left."""
    held = {}

    def run(step_fn, state, *args, **options):
        gc.collect()
        for array in jax.live_arrays():
            for shard in array.addressable_shards:
                held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
        held["state"] = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        raise KeyboardInterrupt

    before = jax.live_arrays()  # of other tests; referenced, so that they stay
    others = {}
    for array in before:
        for shard in array.addressable_shards:
            others[shard.device] = others.get(shard.device, 0) + shard.data.nbytes
    monkeypatch.setattr(loop, "run", run)
    config = tiny.config(
        "mae", model__depth=1, parallel__mode="shard_map", evaluate__every_epochs=0.0
    )
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(config, tmp_path / "run")
    whole = held.pop("state")
    assert len(held) == 4
    (line,) = re.findall(
        r"^state +([\d.]+) of ([\d.]+) MB on each device$", capsys.readouterr().out, re.M
    )
    said, said_whole = (1e6 * float(number) for number in line)
    assert said_whole == pytest.approx(whole, abs=1e5)
    for device, size in held.items():
        assert size - others.get(device, 0) < 1.1 * whole / 4
        assert size - others.get(device, 0) == pytest.approx(said, abs=1e5)


def test_processes_have_their_rows_one_after_the_other():
    class Device(NamedTuple):
        id: int
        process_index: int

    # As on a slice of v5e whose hosts have 2 x 2 chips each.
    devices = [Device(id, int(id in (2, 3, 6, 7))) for id in range(8)]
    order = [device.id for device in in_order(devices)]
    assert order == [0, 1, 4, 5, 2, 3, 6, 7]


@pytest.mark.parametrize("mode", ["pmap", "shard_map"])
def test_rows_of_all_devices_roll_in_any_mode(mode):
    def step(state, batch, places, over):
        def rolled(batch, places):
            return parallel.roll(batch, places), ()

        def mean(batch, weights):
            return {"sum": jnp.sum(batch["rows"] * weights)}, ()

        batch, _ = over.each(rolled)(batch, places)
        found, _ = over.mean(mean, {"sum": jnp.float32(0)})(batch, jnp.arange(2.0))
        return state, {"mean": found["sum"]}

    devices = jax.devices()[:4]
    update = parallel.data_parallel_update(step, devices, mode)
    rows = np.random.default_rng(0).normal(size=8).astype(np.float32)
    for places in range(8):
        state = parallel.place(parallel.replicate({"x": jnp.zeros(4)}, mesh_of(devices)), mode)
        _, metrics = update(state, {"rows": rows.reshape(4, 2)}, jnp.int32(places))
        expected = np.roll(rows, places).reshape(4, 2) @ np.arange(2.0) / 4
        np.testing.assert_allclose(metrics["mean"], expected.sum(), rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_is_exchanged_as_shares_and_the_old_state_donated():
    method, devices = built("mae"), jax.devices()[:4]
    step = make_step(method, devices=devices, mode="shard_map")
    shapes = jax.eval_shape(functools.partial(init_state, method), jax.random.key(0))
    batch = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), batch_of(method, 0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    compiled = step.lower(shapes, abstract, jax.eval_shape(lambda: KEY)).compile()
    bytes_of_state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pytest.approx(bytes_of_state / 4, rel=0.05)
    module = hlo.parse(compiled.as_text())
    exchanged = hlo_findings.collectives(module, list(hlo.executions(module, lambda loop: 1)))
    sent = dict.fromkeys(("reduce-scatter", "all-gather", "all-reduce"), 0.0)
    for each in exchanged:
        sent[each.kind] += each.sent
    one_way = 3 / 4 * sum(4 * x.size for x in jax.tree.leaves(shapes.params))
    assert sent["reduce-scatter"] == pytest.approx(one_way, rel=0.05)
    assert sent["all-gather"] == pytest.approx(one_way, rel=0.05)
    assert sent["all-reduce"] < 0.05 * one_way


def mesh_of_four(rows):
    return Mesh(np.asarray(jax.devices()[:4]).reshape(rows, -1), shares.NAMES)


# Along the first axis that splits over four, another, two axes that split over two, or none.
SHAPES = [(8, 3), (3, 4), (3, 5, 12), (6, 5, 10), (10, 2), (), (6,), (2, 400, 129), (16, 0)]


def test_arrays_are_cut_along_one_axis_or_two():
    one_row, two_rows = (
        [shares.cut_of(shape, *rows) for shape in SHAPES] for rows in ((1, 4), (2, 2))
    )
    assert one_row == [(0, 0), (1, 1), (2, 2), None, None, None, None, (1, 1), None]
    assert two_rows == [(0, 0), (1, 1), (2, 2), (0, 2), (0, 1), None, None, (1, 1), None]
    assert shares.cut_of((384, 1152), 16, 16) == (0, 1)
    assert shares.cut_of((3, 2), 2, 3) == (1, 0)
    assert shares.cut_of((2, 3), 2, 3) == (0, 1)
    assert shares.cut_of((8, 8), 1, 1) is None


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_each_device_gets_its_shares_of_the_means(rows):
    rng = np.random.default_rng(0)
    of_devices = [rng.normal(size=(4, *shape)).astype(np.float32) for shape in SHAPES]
    of_one, mesh = [x[0] for x in of_devices], mesh_of_four(rows)
    shared = shares.Shared(of_one, mesh)

    def on_one(arrays):
        return shared.mean([x[0] for x in arrays])

    means = jax.shard_map(
        on_one,
        mesh=mesh_of(jax.devices()[:4]),
        in_specs=PartitionSpec(parallel.AXIS),
        out_specs=shared.specs,
        check_vma=False,
    )
    found = jax.jit(
        lambda x: shared.arrays(means(x)), out_shardings=shares.shardings_of(of_one, mesh)
    )(of_devices)
    for one, given in zip(found, of_devices, strict=True):
        np.testing.assert_allclose(one, given.astype(np.float64).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_each_device_has_the_whole_of_what_is_shared(rows):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    mesh = mesh_of_four(rows)
    shared = shares.Shared(arrays, mesh)
    wholes = jax.shard_map(
        lambda pieces: [x[None] for x in shared.whole(pieces)],
        mesh=mesh_of(jax.devices()[:4]),
        in_specs=(shared.specs,),
        out_specs=PartitionSpec(parallel.AXIS),
        check_vma=False,
    )
    held = jax.device_put(arrays, shares.shardings_of(arrays, mesh))
    for one, right in zip(jax.jit(lambda x: wholes(shared.pieces(x)))(held), arrays, strict=True):
        for device in range(4):
            np.testing.assert_array_equal(one[device], right)


@pytest.mark.slow
def test_a_step_over_rows_and_columns_is_that_of_whole_states(monkeypatch):
    """As on TPUs, all that can be cut along two axes."""
    monkeypatch.setattr(shares, "on_tpu", lambda devices: True)
    assert shares.mesh_of_shares(np.asarray(jax.devices()[:4])).devices.shape == (2, 2)
    cut_of = shares.cut_of

    def along_two(shape, rows, columns):
        even = [axis for axis, size in enumerate(shape) if size % 2 == 0]
        return shares.Cut(*even[:2]) if len(even) > 1 else cut_of(shape, rows, columns)

    monkeypatch.setattr(shares, "cut_of", along_two)
    (found, state), (right, whole) = (
        steps_of(built("mae"), mode, 4) for mode in ("shard_map", "pmap")
    )
    assert any(
        leaf.sharding.spec == PartitionSpec(*shares.NAMES) for leaf in jax.tree.leaves(state.params)
    )
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=ROUNDING)
    for (path, x), (_, y) in zip(leaves_of(state), leaves_of(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5, err_msg=str(path))
