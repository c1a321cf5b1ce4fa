"""What an optimised HLO module shows: exchanges between devices and with the host, gathers, and
what the compiler's estimate of cycles leaves out."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from benchmarks.hlo import Execution, Module, Op, inside, num_bytes, split

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
HOST_OPCODES = ("infeed", "outfeed", "send", "recv")
HOST_MARKS = ("callback", "is_host_transfer=true", "MoveToHost", "MoveToDevice")
GATHERS = ("gather", "scatter", "dynamic-slice", "dynamic-update-slice")
# Names of values, not work.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
)


class Collective(NamedTuple):
    """An exchange between devices: how often, bytes of a device's result in all its runs, and how
    many devices exchange with each other; 0 where the program does not say."""

    kind: str
    times: float
    bytes: float
    devices: int = 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends to the next one of a ring, which takes the fewest.

        Raises:
          ValueError: the program does not say how many exchange with each other.
        """
        if self.kind not in ("all-reduce", "all-gather", "reduce-scatter"):
            return self.bytes
        if not self.devices:
            raise ValueError(f"an {self.kind} does not say who exchanges with whom")
        others = self.devices - 1
        if self.kind == "reduce-scatter":  # the result is a share
            return self.bytes * others
        return self.bytes * others / self.devices * (2 if self.kind == "all-reduce" else 1)


def collectives(module: Module, ran: list[Execution]) -> list[Collective]:
    """All exchanges; an asynchronous one counts once, where it starts."""
    found = []
    for op, times in ran:
        if _goes_on(op):
            continue
        for one in (op, *inside(module, op)):
            kind = one.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            size = num_bytes(_result(one))
            # A fusion of a sum with the choice of a share of it, which the TPU compiler names so.
            if any(name.startswith("all-reduce-scatter") for name in op.called("calls")):
                kind, size = "reduce-scatter", num_bytes(op.shape)
            found.append(Collective(kind, times, times * size, _group(one)))
    return found


def _goes_on(op: Op) -> bool:
    """Whether the exchange in a fusion is one that another began: the TPU compiler writes it down
    where it starts, in the work beside it, and where it ends."""
    beside = any(name.startswith("async_collective_fusion") for name in op.called("calls"))
    return beside or op.name.startswith("async-collective-done")


def _group(op: Op) -> int:
    """How many devices exchange with each other, as in {{0,1},{2,3}}, [2,2]<=[4] or
    mesh['a'=2,'b'=2] {'b'}."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", op.attributes)
    if listed:
        return len(listed[1].split(","))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", op.attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", op.attributes)
    return int(counted[1]) if counted else 0


def _result(op: Op) -> str:
    """The shape of what a collective gives; most that start one list their operands before it."""
    if not op.opcode.endswith("-start") or op.opcode == "all-reduce-start":
        return op.shape
    return split(op.shape[1:-1])[1]


def host_transfers(module: Module) -> list[str]:
    """Names of all operations, run or not, that exchange data with the host."""
    return [
        op.name
        for ops in module.computations.values()
        for op in ops.values()
        if op.opcode.removesuffix("-done").removesuffix("-start") in HOST_OPCODES
        or any(mark in op.attributes.split("metadata={")[0] for mark in HOST_MARKS)
        or (op.opcode == "custom-call" and any(mark in op.attributes for mark in HOST_MARKS))
    ]


class Unpriced(NamedTuple):
    """Operations of a kind that carry no estimate: how often they run, and their results' bytes."""

    kind: str
    times: float
    bytes: float


def without_estimate(module: Module, ran: list[Execution]) -> list[Unpriced]:
    """What the estimate leaves out, by kind, the most bytes first.

    An asynchronous operation counts where it starts. Results of at most 4 KiB that no sort or
    custom call made are one kind, "small". An update of a part counts as that part.
    """
    kinds: dict[str, tuple[float, float]] = {}
    for op, times in ran:
        if op.cycles is not None or op.opcode in FREE or op.opcode.endswith("-done"):
            continue
        kind, size = op.opcode, num_bytes(_moved(module, op))
        if kind == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', op.attributes)
            kind = f"custom-call {target[1] if target else '?'}"
        elif size <= 4096 and kind != "sort" and kind.removesuffix("-start") not in COLLECTIVES:
            kind = "small"
        count, total = kinds.get(kind, (0.0, 0.0))
        kinds[kind] = (count + times, total + size * times)
    found = [Unpriced(kind, *sums) for kind, sums in kinds.items()]
    return sorted(found, key=lambda each: -each.bytes)


def _moved(module: Module, op: Op) -> str:
    """The shape of what an operation makes; a copy that starts lists that with its source. Of an
    update in place, by itself or as the end of a fusion: of the part that is new."""
    if op.opcode == "copy-start":
        return split(op.shape[1:-1])[0]
    if op.opcode == "slice-start":
        return split(op.shape[1:-1])[1]
    end = module.roots[op.called("calls")[0]] if op.opcode == "fusion" else op
    if end.opcode != "dynamic-update-slice":
        return op.shape
    beside = next(ops for ops in module.computations.values() if ops.get(end.name) == end)
    return beside[end.operands[1]].shape


class Priced(NamedTuple):
    """Operations of a kind: how often they run, estimated cycles and results' bytes of all runs."""

    times: float
    cycles: float
    bytes: float


def gathers(module: Module, ran: list[Execution]) -> Priced:
    """What gathers, scatters or slices at places that may depend on the data; estimated low. An
    update of a part counts as that part."""
    found = Priced(0.0, 0.0, 0.0)
    for op, times in ran:
        if any(one.opcode in GATHERS for one in (op, *inside(module, op))):
            size = num_bytes(_moved(module, op))
            found = Priced(
                found.times + times,
                found.cycles + times * (op.cycles or 0),
                found.bytes + times * size,
            )
    return found
