"""What the TPU compiler says of a training step: memory, exchanges, cycles. No TPU is needed.

    pip install '.[train]' 'jax[tpu]'      # in an environment of its own; `make .venv-tpu` does it
    python benchmarks/tpu.py --config=configs/mae.py:dataset=imagenet1k      # 16 chips of v5e
    python benchmarks/tpu.py --config=configs/ibot.py:dataset=imagenet1k --topology=v6e:2x4
    python benchmarks/tpu.py --config=configs/mae.py:dataset=imagenet1k --config.model.remat=True

Compiles the step that train.py runs for chips that are not there. Any option of train.py's
configs can be set. Topologies: v4:2x2x1 to v4:4x8x8, v5e:1x1 to v5e:16x16, v5p:2x2x1 …, v6e:1x1 ….

Cycles are the compiler's own cost model, never a measurement. A loop counts as often as it runs.
How often the greedy picks and the rectangles of block masks run depends on the images: "at worst"
counts all they can make, "cycles" counts --trips of them (TRIPS says what was measured). What
carries no estimate is named. ms are cycles over the clock, without the exchange of gradients.

The settings that let several compilations run at a time, on a machine without a TPU, are made
below: JAX_PLATFORMS=cpu, TPU_SKIP_MDS_QUERY=1, ALLOW_MULTIPLE_LIBTPU_LOAD=1 (libtpu refuses a
second process by a lock file otherwise). A compilation takes up to 400 s of a core and 3 to 6 GB.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import hlo, hlo_findings  # noqa: E402
from dppmask_jax import command  # noqa: E402
from dppmask_jax.config import check  # noqa: E402
from dppmask_jax.errors import InputError  # noqa: E402
from dppmask_jax.training.build import method_from, plan_from  # noqa: E402
from dppmask_jax.training.step import init_state, make_step  # noqa: E402

IMAGES_OF_EPOCH = 1_281_167  # only schedules depend on it
LARGE = 1 << 20  # bytes sent; smaller exchanges are means of metrics, counts and centres
_ALLOWED = {
    "pmap": {"all-reduce"},
    # Permutes bring shares that the compiler cuts otherwise to where they belong.
    "shard_map": {"all-reduce", "reduce-scatter", "all-gather", "collective-permute"},
}

# After how many trips the loops of the selection have done their work for a batch: greedy picks at
# tau 0.9 on photographs, tries of rectangles. Measured by benchmarks/trips.py.
TRIPS = {"dpp": 6, "block": 44}
# The most trips there can be, for N patches: each rectangle covers a patch more, and has ten tries.
# Loops of other masks have bounds of their own.
MOST_TRIPS = {"block": lambda num_patches: 10 * num_patches}


class Chip(NamedTuple):
    """Published figures (cloud.google.com/tpu/docs): multiply-adds of the matrix units a cycle,
    bfloat16 operations a second, bytes a second of the memory, bytes that the compiler has room
    for, and bytes a second that a chip sends in a sum over a whole pod."""

    macs: int
    flops: float
    memory_rate: float
    memory: float
    links: float
    configuration: str = ""  # that the compiler is asked for

    @property
    def clock(self) -> float:
        """Cycles a second: what makes the published peak out of the matrix units."""
        return self.flops / (2 * self.macs)


GIB = 2**30
CHIPS = {
    # Both cores of a chip as one device, as JAX has them on v4 hosts.
    "v4": Chip(8 * 128**2, 275e12, 1200e9, 30.5 * GIB, 268e9, "megacore"),
    "v5e": Chip(4 * 128**2, 197e12, 819e9, 15.75 * GIB, 200e9),
    "v5p": Chip(8 * 128**2, 459e12, 2765e9, 95.74 * GIB, 600e9),
    "v6e": Chip(4 * 256**2, 918e12, 1638e9, 31.25 * GIB, 400e9),
}

# Where an operation belongs: the first whose pattern its name in the program has.
PARTS = (
    ("optimiser", r"\boptimizer\b"),
    ("selection", r"\bselection\b"),
    ("augmentation", r"\baugment\b|flip|normalize"),
    ("heads", r"ProjectionHead|\bhead\b|last_layer"),
    ("decoder", r"\bdecoder\b"),
    ("encoder", r"\bencoder\b|ViT"),
)


class Case(NamedTuple):
    """A step to compile: a config, what is changed in it, where, and images of a chip at a step
    (None: the config's batch, shared out)."""

    config: Any
    title: str
    topology: str
    images: int | None = None

    @property
    def chip(self) -> Chip:
        return CHIPS[self.topology.partition(":")[0]]


def devices_of(topology: str):
    """The devices of a topology such as "v5e:4x4".

    Raises:
      InputError: libtpu is not installed, or knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu is not installed; `make .venv-tpu` makes an environment with it")
    kind = topology.partition(":")[0]
    if kind not in CHIPS:
        raise InputError(f"--topology={topology}: the chip is one of {', '.join(CHIPS)}")
    configuration = CHIPS[kind].configuration
    options = {"chip_config_name": configuration} if configuration else {}
    if topology.endswith(":1x1"):  # a host of one chip, as notebooks are lent; else it has four
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        description = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **options
        )
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(f"--topology={topology}: {str(error).splitlines()[0]}") from error
    return description.devices


def lower(case: Case):
    """(the step of a case, lowered for abstract arguments, bytes of the parameters, of a batch)."""
    config = case.config
    devices = devices_of(case.topology)
    with config.unlocked():
        if not config.data.source:
            config.data.source = "shapes"  # no image is read
        if case.images is not None:
            config.batch_size = case.images * len(devices)
    check(config)
    if config.batch_size % (len(devices) * config.optim.accum_steps):
        raise InputError(
            f"{config.batch_size} images are not a multiple of {len(devices)} chips x "
            f"{config.optim.accum_steps} accumulation steps"
        )
    plan = plan_from(config, IMAGES_OF_EPOCH)
    method = method_from(config, plan)
    accum_steps, mode = config.optim.accum_steps, config.parallel.mode
    step = make_step(method, accum_steps=accum_steps, devices=devices, mode=mode)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: init_state(method, key), key)
    batch = _abstract_batch(method, config, len(devices))
    return step.lower(state, batch, key), _num_bytes(state.params), _num_bytes(batch)


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _abstract_batch(method, config, devices: int):
    """The shapes of a batch, from what the method makes of an image."""
    file = io.BytesIO()
    Image.new("RGB", (config.image_size[1], config.image_size[0])).save(file, "PNG")
    example = method.example(file.getvalue(), np.random.default_rng(0))
    example |= dict.fromkeys(("label", "index", "row"), np.int32(0)) | {"bad": np.bool_(False)}
    share = config.batch_size // devices
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((devices, share, *x.shape), x.dtype), example
    )


def report(case: Case, trips: int | None = None, text_file: Path | None = None) -> dict[str, Any]:
    """What the compiler says of a case, as plain values; bytes and cycles are of one chip."""
    start = time.perf_counter()
    lowered, parameters, batch = lower(case)
    config = case.config
    chips = len(devices_of(case.topology))
    found = {
        "title": case.title,
        "topology": case.topology,
        "chips": chips,
        "images_per_chip": config.batch_size // chips,
        "batch": config.batch_size,
        "accum_steps": config.optim.accum_steps,
        "mode": config.parallel.mode,
        "mask": config.mask.strategy,
        "parameter_bytes": parameters,
        "input_bytes_per_image": batch / config.batch_size,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return found | {"does_not_fit": str(error).splitlines()[0]}
    found["seconds_to_compile"] = round(time.perf_counter() - start, 1)
    text = compiled.as_text()
    if text_file:
        text_file.write_text(text)
    memory = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found["memory"] = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "new_outputs": outputs,
        "peak": memory.argument_size_in_bytes + memory.temp_size_in_bytes + outputs,
        "room": case.chip.memory,
    }
    return found | read(text, case, trips)


def read(text: str, case: Case, trips: int | None = None) -> dict[str, Any]:
    """What stands in the compiled program of a case."""
    module = hlo.parse(text)
    strategy = case.config.mask.strategy
    trips = TRIPS.get(strategy) if trips is None else trips
    rows, columns = (side // case.config.model.patch_size for side in case.config.image_size)
    most = MOST_TRIPS.get(strategy, lambda num_patches: None)(rows * columns)

    def worst(op):
        return most if "selection" in op.op_name else None

    def measured(op):
        return trips if "selection" in op.op_name else None

    ran = list(hlo.executions(module, measured))
    at_worst = list(hlo.executions(module, worst))
    exchanged = hlo_findings.collectives(module, ran)
    cycles = hlo.total_cycles(ran)
    chip = case.chip
    return {
        "trips": trips,
        "cycles": cycles,
        "cycles_at_worst": hlo.total_cycles(at_worst),
        "parts": _parts(ran),
        "parts_at_worst": _parts(at_worst),
        "milliseconds": 1e3 * cycles / chip.clock,
        "collectives": _by_kind(exchanged),
        "host_transfers": hlo_findings.host_transfers(module),
        "without_estimate": [each._asdict() for each in hlo_findings.without_estimate(module, ran)],
        "bounds": bounds_by_hand(module, ran, chip),
    }


def _by_kind(exchanged: list[hlo_findings.Collective]) -> list[dict[str, Any]]:
    """How often there is an exchange of a kind, and the bytes that a chip sends for all of them."""
    found = {}
    for each in exchanged:
        times, sent = found.get(each.kind, (0, 0))
        found[each.kind] = times + each.times, sent + each.sent
    return [
        {"kind": kind, "times": times, "sent": sent}
        for kind, (times, sent) in sorted(found.items())
    ]


def sent(found: dict[str, Any]) -> tuple[float, float]:
    """Bytes that a chip sends in a step, and those as a share of what it sends for a sum of all
    gradients over all chips; 0 where there is one chip."""
    total = sum(each["sent"] for each in found["collectives"])
    of_sum = 2 * found["parameter_bytes"] * (found["chips"] - 1) / found["chips"]
    return total, total / of_sum if of_sum else 0.0


def _parts(ran: list[hlo.Execution]) -> dict[str, float]:
    """Estimated cycles of each part; a fusion belongs where its last operation does."""
    cycles = dict.fromkeys([name for name, _ in PARTS] + ["other"], 0.0)
    for op, times in ran:
        name = op.op_name
        part = next((part for part, pattern in PARTS if re.search(pattern, name)), "other")
        cycles[part] += (op.cycles or 0) * times
    return cycles


def bounds_by_hand(module, ran, chip: Chip) -> dict[str, float]:
    """Cycles, bounded by hand, of what the estimate leaves out or prices low.

    "moved": what has no estimate and is no asynchronous copy, exchange, sort or custom call, with
    its result read and written once at the memory's rate. "gathers": their results likewise.
    "sorts": a bitonic network, whose every stage takes ten vector operations a word.
    """
    bytes_a_cycle = chip.memory_rate / chip.clock
    moved = sum(
        each.bytes
        for each in hlo_findings.without_estimate(module, ran)
        if not each.kind.endswith("-start")
        and not each.kind.startswith(("custom-call", "sort", *hlo_findings.COLLECTIVES))
    )
    sorts = 0.0
    for op, times in ran:
        if op.opcode == "sort":
            words = hlo.num_bytes(op.shape) / 4
            along = int(re.search(r"dimensions=\{(\d+)\}", op.attributes)[1])
            first = re.search(r"\[([\d,]+)\]", op.shape)[1].split(",")
            rounds = (int(first[along]) - 1).bit_length()
            sorts += times * 10 * words * rounds * (rounds + 1) / 2 / 1024
    gathers = hlo_findings.gathers(module, ran)
    return {
        "moved": 2 * moved / bytes_a_cycle,
        "gathers": 2 * gathers.bytes / bytes_a_cycle,
        "gathers_as_estimated": gathers.cycles,
        "sorts": sorts,
    }


def problems(found: dict[str, Any]) -> list[str]:
    """What a step must not do: exceed its chip's memory, send more than a sum of the gradients
    takes, or talk to the host."""
    if "does_not_fit" in found:
        return [found["does_not_fit"]]
    wrong = []
    memory = found["memory"]
    if memory["peak"] > memory["room"]:
        wrong.append(f"{memory['peak']:.3g} bytes of memory, and there are {memory['room']:.3g}")
    kinds = {each["kind"] for each in found["collectives"] if each["sent"] >= LARGE}
    share = sent(found)[1]
    if found["chips"] > 1 and (not kinds or kinds - _ALLOWED[found["mode"]]):
        wrong.append(f"large exchanges are {', '.join(sorted(kinds)) or 'missing'}")
    least = 0.95 * (found["chips"] > 1)
    if found["mode"] == "shard_map":  # parameters may travel in fewer bits than gradients
        scattered = sum(
            each["sent"] for each in found["collectives"] if each["kind"] == "reduce-scatter"
        )
        least = 0.45 * (found["chips"] > 1)
        if scattered < least * sent(found)[0] / max(share, 1e-9):
            wrong.append("gradients are not exchanged as shares")
    if share > 1.05 or share < least:
        wrong.append(f"sends {share:.1%} of what a sum of the gradients takes")
    if found["host_transfers"]:
        wrong.append(f"talks to the host: {', '.join(found['host_transfers'])}")
    return wrong


def show(found: dict[str, Any]) -> str:
    """A report as text."""
    head = (
        f"{found['title']}\n  {found['topology']}: {found['chips']} chips, "
        f"{found['images_per_chip']} images each"
    )
    if "does_not_fit" in found:
        return f"{head}\n  does not fit: {found['does_not_fit']}"
    memory = {name: f"{size / GIB:.2f}" for name, size in found["memory"].items()}
    exchanged, share = sent(found)
    kinds = ", ".join(each["kind"] for each in found["collectives"])
    bounds = found["bounds"]
    lines = [
        f"{head}, compiled in {found['seconds_to_compile']:.0f} s",
        f"  memory     {memory['peak']} of {memory['room']} GiB: arguments {memory['arguments']}, "
        f"temporaries {memory['temporaries']}, new outputs {memory['new_outputs']}",
        f"  cycles     {_millions(found['cycles'])} M"
        + (f" at {found['trips']} trips" if found["trips"] is not None else "")
        + f", {_millions(found['cycles_at_worst'])} M at worst; {found['milliseconds']:.1f} ms",
        "  parts      " + _listed(found["parts"]),
        "  at worst   " + _listed(found["parts_at_worst"]),
        f"  exchanges  {sum(each['times'] for each in found['collectives']):g} ({kinds}), "
        f"{exchanged / 1e6:.1f} MB sent, {share:.1%} of a sum of the gradients",
        f"  host       {', '.join(found['host_transfers']) or 'nothing'}",
        "  left out   "
        + ", ".join(
            f"{each['times']:g} {each['kind']} ({each['bytes'] / 1e6:.2f} MB)"
            for each in found["without_estimate"]
        ),
        f"  by hand    at most {_millions(bounds['moved'])} M cycles of that moved, "
        f"{_millions(bounds['sorts'])} M sorts; gathers {_millions(bounds['gathers'])} M (the "
        f"estimate has {_millions(bounds['gathers_as_estimated'])} M)",
    ]
    return "\n".join(lines + [f"  WRONG      {each}" for each in problems(found)])


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {_millions(cycles)}" for name, cycles in parts.items() if cycles)


def _millions(cycles: float) -> str:
    return f"{cycles / 1e6:.2f}" if cycles < 1e8 else f"{cycles / 1e6:.0f}"


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax", "optax")}


def _main(_):
    config = _CONFIG.value
    if config is None:
        raise InputError("--config is missing: name a config file, such as configs/mae.py")
    changed = [word.removeprefix("--config.") for word in sys.argv if word.startswith("--config.")]
    title = " ".join([flags.FLAGS["config"].config_filename, *changed])
    case = Case(config, title, _TOPOLOGY.value, _IMAGES.value)
    text_file = Path(_TEXT.value) if _TEXT.value else None
    found = report(case, _TRIPS.value, text_file)
    print(show(found))
    if _JSON.value:
        Path(_JSON.value).write_text(
            json.dumps({"versions": versions(), "cases": [found]}, indent=1) + "\n"
        )
    if problems(found):
        sys.exit(1)


if __name__ == "__main__":
    _CONFIG = command.define_config_flag("config", "RECIPE[:key=value,...], or FILE[:...].")
    _TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Chips, such as v4:2x2x1 or v5e:16x16.")
    _IMAGES = flags.DEFINE_integer(
        "images_per_chip", None, "Images of a chip at a step; else the config's batch, shared out."
    )
    _TRIPS = flags.DEFINE_integer("trips", None, "Trips of the selection's loops.", lower_bound=0)
    _JSON = flags.DEFINE_string("json", None, "Also write the report there.")
    _TEXT = flags.DEFINE_string("hlo", None, "Also write the compiled program there, as text.")
    command.run(_main, "python benchmarks/tpu.py", __doc__)
