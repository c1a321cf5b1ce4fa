"""The training step through the TPU compiler; libtpu stands in an environment of its own."""

import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny
from ml_collections import config_dict

from benchmarks import hlo, hlo_findings
from configs import ibot, mae
from dppmask_jax import parallel

SELECTION = """HloModule jit_step, is_scheduled=true

%body (carried: (s32[], f32[8])) -> (s32[], f32[8]) {
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[8] get-tuple-element(%carried), index=1
  %y = f32[8] negate(%x), metadata={op_name="jit(f)/jvp(selection)/while/body/neg"}, COST(100)
  ROOT %out = (s32[], f32[8]) tuple(%next, %y)
}
%condition (carried: (s32[], f32[8])) -> pred[] {
  %carried = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %most = s32[] constant(49)
  %less = pred[] compare(%i, %most), direction=LT
  %x = f32[8] get-tuple-element(%carried), index=1
  %any = pred[] custom-call(%x), custom_call_target="any"
  ROOT %both = pred[] and(%less, %any)
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8] parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[], f32[8]) tuple(%zero, %x)
  %loop = (s32[], f32[8]) while(%init), condition=%condition, body=%body, \
metadata={op_name="jit(f)/jvp(selection)/while"}
  %kept = f32[8] get-tuple-element(%loop), index=1
  %e = f32[8] negate(%kept), metadata={op_name="jit(f)/jvp(MAE.predict)/encoder/add"}, COST(7)
  %d = f32[8] negate(%e), metadata={op_name="transpose(jvp(MAE.predict))/decoder/add"}, COST(11)
  %h = f32[8] negate(%d), metadata={op_name="jit(f)/jvp(ProjectionHead.project)/dot"}, COST(13)
  %o = f32[8] negate(%h), metadata={op_name="jit(f)/optimizer/mul"}, COST(17)
  ROOT %rest = f32[8] negate(%o), COST(19)
}
"""


@pytest.fixture
def tpu():
    # Sets the environment of the process, so not at the top: other tests import this file's row.
    from benchmarks import tpu

    return tpu


def fitting(**changes):
    """A report without problems, and what is changed in it."""
    return {
        "chips": 8,
        "parameter_bytes": 100.0,
        "memory": {"peak": 10, "room": 16},
        "mode": "pmap",
        "collectives": [{"kind": "all-reduce", "times": 2, "sent": 175.0}],
        "host_transfers": [],
    } | changes


def rings(scattered, gathered):
    """The exchanges of shares, by what a chip sends."""
    kinds = {"reduce-scatter": scattered, "all-gather": gathered}
    return {"collectives": [{"kind": kind, "times": 1, "sent": kinds[kind]} for kind in kinds]}


def test_cycles_go_to_the_parts_of_the_step_and_loops_to_their_trips(tpu):
    text = SELECTION
    for cycles in (100, 7, 11, 13, 17, 19):
        text = text.replace(f"COST({cycles})", f'backend_config={{"estimated_cycles":"{cycles}"}}')
    case = tpu.Case(mae.get_config("dataset=imagenet1k"), "MAE", "v5e:4x4")
    found = tpu.read(text, case)
    rest = {"encoder": 7, "decoder": 11, "heads": 13, "optimiser": 17, "other": 19}
    assert found["parts"] == {"augmentation": 0, "selection": 600, **rest}
    assert found["parts_at_worst"] == {"augmentation": 0, "selection": 4900, **rest}
    assert found["cycles"] == 667 and found["cycles_at_worst"] == 4967
    assert tpu.read(text, case, trips=2)["cycles"] == 267
    assert found["milliseconds"] == pytest.approx(1e3 * 667 / tpu.CHIPS["v5e"].clock)


def test_what_a_step_must_not_do_is_noticed(tpu, monkeypatch):
    monkeypatch.setattr(tpu, "LARGE", 1)
    assert tpu.problems(fitting()) == []
    assert tpu.problems(fitting(mode="shard_map", **rings(87.5, 43.75))) == []
    for changes, words in (
        ({"memory": {"peak": 17, "room": 16}}, "17 bytes of memory"),
        ({"collectives": [{"kind": "all-reduce", "sent": 1.06 * 175}]}, "106.0%"),
        ({"collectives": [{"kind": "all-reduce", "sent": 0.94 * 175}]}, "94.0%"),
        ({"collectives": [{"kind": "all-gather", "sent": 175.0}]}, "all-gather"),
        ({"mode": "shard_map", **rings(87.5, 100)}, "107.1%"),
        ({"mode": "shard_map", **rings(43.75, 120)}, "not exchanged as shares"),
        ({"mode": "shard_map", "collectives": [{"kind": "all-to-all", "sent": 9}]}, "all-to-all"),
        ({"collectives": []}, "missing"),
        ({"host_transfers": ["outfeed.1"]}, "outfeed.1"),
        ({"does_not_fit": "needs 20G"}, "needs 20G"),
    ):
        assert words in " ".join(tpu.problems(fitting(**changes))), words


def test_the_clocks_follow_from_the_published_peaks(tpu):
    clocks = {name: round(chip.clock / 1e6) for name, chip in tpu.CHIPS.items()}
    assert clocks == {"v4": 1049, "v5e": 1503, "v5p": 1751, "v6e": 1751}


class TooLarge:
    def __init__(self, message):
        self.message = message

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_step_that_does_not_fit_says_so_and_other_faults_keep_their_traceback(tpu, monkeypatch):
    case = tpu.Case(mae.get_config("dataset=imagenet1k"), "MAE", "v5e:2x2")
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, 20G exceeds 15.75G.\nmore"
    monkeypatch.setattr(tpu, "devices_of", lambda topology: [None] * 4)
    monkeypatch.setattr(tpu, "lower", lambda case: (TooLarge(message), 4, 4))
    found = tpu.report(case)
    assert found["does_not_fit"] == message.splitlines()[0]
    assert tpu.problems(found) == [found["does_not_fit"]]
    assert "does not fit: RESOURCE_EXHAUSTED" in tpu.show(found)
    monkeypatch.setattr(tpu, "lower", lambda case: (TooLarge("INTERNAL: a fault"), 4, 4))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        tpu.report(case)


@pytest.mark.parametrize("preset", [mae, ibot])
def test_imagenet100_and_imagenet1k_are_one_program(preset):
    """Only what the host does, and schedules, may differ: one compilation stands for both."""

    def program(dataset):
        config = preset.get_config(f"dataset={dataset}").to_dict()
        for field in ("checkpoint", "evaluate", "epochs"):
            del config[field]
        del config["data"]["source"]
        return config_dict.ConfigDict(config)

    assert program("imagenet100") == program("imagenet1k")


def compiled(tmp_path, *flags, effort="-1"):
    """The report that the command writes, in the environment of a user.

    Args:
      effort: of the compiler for the step's time. At the least it is done in a fifth of the time.
        What is computed and exchanged stays; cycles and temporaries are not those of the fastest
        step.
    """
    path = tmp_path / "report.json"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "benchmarks/tpu.py", f"--json={path}", *flags],
        cwd=tiny.ROOT,
        env=environment | {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": effort},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    (found,) = json.loads(path.read_text())["cases"]
    return found


def flags_of(recipe, mode, images):
    """Of the documented step of a recipe on eight chips, with so many images each."""
    config = f"--config=configs/{recipe}.py:dataset=imagenet1k,mask=dpp"
    mode = f"--config.parallel.mode={mode}"
    return config, mode, "--topology=v5e:2x4", f"--images_per_chip={images}"


def check_step(tpu, found):
    assert tpu.problems(found) == []
    assert found["chips"] == 8
    # Parameters, two moments and a teacher of some: whole, or an eighth of that beside the images.
    held = found["memory"]["arguments"]
    if found["mode"] == "shard_map":
        images = found["images_per_chip"] * found["input_bytes_per_image"]
        assert held < 4.5 * found["parameter_bytes"] / 8 + 1.2 * images
    else:
        assert held > 3 * found["parameter_bytes"]
    assert found["memory"]["temporaries"] > 0
    assert 0 < found["cycles"] < found["cycles_at_worst"]
    for part in ("selection", "encoder", "optimiser"):
        assert found["parts"][part] > 0, part
    assert found["parts_at_worst"]["selection"] > found["parts"]["selection"]
    assert any(each["kind"].startswith("all-reduce") for each in found["without_estimate"])


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("mode", "effort"),
    [("pmap", "0"), ("shard_map", "-1"), pytest.param("shard_map", "0", marks=pytest.mark.slow)],
)
def test_the_mae_step_compiles_for_a_tpu(tpu, tmp_path, mode, effort):
    found = compiled(tmp_path, *flags_of("mae", mode, 256), effort=effort)
    check_step(tpu, found)
    assert found["parts"]["decoder"] > 0 and found["parts"]["heads"] == 0


# In shares all effort is needed: with the least, what iBOT gathers travels in float32.
@pytest.mark.tpu
@pytest.mark.parametrize(
    ("mode", "effort"),
    [
        ("pmap", "-1"),
        pytest.param("pmap", "0", marks=pytest.mark.slow),
        pytest.param("shard_map", "0", marks=pytest.mark.slow),
    ],
)
def test_the_ibot_step_compiles_for_a_tpu(tpu, tmp_path, mode, effort):
    found = compiled(tmp_path, *flags_of("ibot", mode, 64), effort=effort)
    check_step(tpu, found)
    assert found["parts"]["heads"] > 0 and found["parts"]["decoder"] == 0


@pytest.mark.tpu
def test_a_small_ibot_step_compiles_with_all_effort(tpu, tmp_path):
    config = "--config=configs/ibot.py:dataset=shapes,mask=dpp"
    flags = (config, "--topology=v5e:2x4", "--images_per_chip=16")
    check_step(tpu, compiled(tmp_path, *flags, effort="0"))


# ViT-S and iBOT's head: 256 parts are cut along one axis of some, along two of others.
SHAPES = [(384, 384), (384, 1152), (384, 1536), (1536, 384), (2048, 2048), (256, 8192), (384,)]


@pytest.mark.tpu
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5e:16x16"])
def test_gradients_are_exchanged_as_shares(tpu, topology):
    """What the compiler makes a sum for everybody of would be sent twice."""
    devices = tpu.devices_of(topology)

    def step(state, batch, shared, over):
        def gradients(batch, state):
            return jax.tree.map(lambda x: x * batch.sum(), state), ()

        found, _ = over.mean(gradients, state)(batch, state)
        return jax.tree.map(jnp.subtract, state, found), {}

    update = parallel.data_parallel_update(step, devices, "shard_map")
    state = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in SHAPES]
    batch = jax.ShapeDtypeStruct((len(devices), 4), jnp.float32)
    compiled = update.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    whole = 4 * sum(math.prod(shape) for shape in SHAPES)
    assert compiled.memory_analysis().argument_size_in_bytes < 1.1 * whole / len(devices) + 1e5
    module = hlo.parse(compiled.as_text())
    exchanged = hlo_findings.collectives(module, list(hlo.executions(module)))
    sent = {kind: 0.0 for kind in ("reduce-scatter", "all-gather", "all-reduce")}
    for each in exchanged:
        sent[each.kind] += each.sent
    one_way = (len(devices) - 1) / len(devices) * whole
    assert sent["reduce-scatter"] == pytest.approx(one_way, rel=0.04)  # whole tiles
    assert sent["all-gather"] == pytest.approx(one_way, rel=0.02)
    assert sent["all-reduce"] < 0.01 * one_way
