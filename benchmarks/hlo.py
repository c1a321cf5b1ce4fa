"""Reads an optimised HLO module's text: what it runs, how often, and what the compiler says of it.

The TPU compiler writes its estimate of an operation's cycles into `backend_config`. The body of a
loop stands in the text once; `executions` counts it as often as it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}  # others say so in their name
_SAME_VALUE = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")


class Op(NamedTuple):
    """One operation: `shape` of its result and `arguments` as written, `attributes` all after."""

    name: str
    opcode: str
    shape: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the operations whose results it takes."""
        return [part.split("%")[-1].split()[-1] for part in split(self.arguments)]

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from; "" where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of running it once; None where it gives none.

        For some it writes the largest 64-bit integer, which is none.
        """
        found = re.search(r'"estimated_cycles":"?(\d+)', self.attributes)
        return int(found[1]) if found and int(found[1]) < 2**63 - 1 else None

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations that attributes such as "body" refer to."""
        names = []
        for attribute in attributes:
            found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|([^\s,]+))", self.attributes)
            if found:
                names += [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]
        return names


class Module(NamedTuple):
    """Computations by name, each with its operations by name; `roots` are their results."""

    computations: dict[str, dict[str, Op]]
    roots: dict[str, Op]
    entry: str


class Execution(NamedTuple):
    """An operation outside all fusions, and how often a run of the module runs it."""

    op: Op
    times: float


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation, or a line that is not HLO.
    """
    computations: dict[str, dict[str, Op]] = {}
    roots: dict[str, Op] = {}
    entry, current = "", ""
    for line in text.splitlines():
        heading = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if heading:
            current = heading[2]
            computations[current] = {}
            entry = current if heading[1] else entry
        elif line.startswith("}"):
            current = ""
        elif current and " = " in line:
            op = _parse_op(line.strip().removeprefix("ROOT "))
            computations[current][op.name] = op
            if line.lstrip().startswith("ROOT "):
                roots[current] = op
    if not entry:
        raise ValueError("the text has no entry computation")
    return Module(computations, roots, entry)


def _parse_op(line: str) -> Op:
    name, _, right = line.partition(" = ")
    end = _closing(right) if right.startswith("(") else right.find(" ")
    shape, right = right[:end], right[end:].lstrip()
    opcode, bracket, _ = right.partition("(")
    if end < 1 or not bracket:
        raise ValueError(f"not an operation: {line[:100]}")
    right = right[len(opcode) :]
    end = _closing(right)
    return Op(name.strip().lstrip("%"), opcode, shape, right[1 : end - 1], right[end:])


def _closing(text: str) -> int:
    """Where the bracket that `text` begins with is closed, and one more."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"a bracket is never closed: {text[:100]}")


def split(text: str) -> list[str]:
    """The parts of a list between commas that stand in no brackets of their own."""
    text = re.sub(r"/\*.*?\*/", "", text)
    parts, depth, start = [], 0, 0
    for found in re.finditer(r"[(){}\[\],]", text):
        if found[0] in "({[":
            depth += 1
        elif found[0] in ")}]":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def num_bytes(shape: str) -> float:
    """Bytes of a shape such as `f32[8,128]{1,0:T(8,128)}`, or of all parts of a tuple, unpadded."""
    shape = re.sub(r"/\*.*?\*/", "", shape)
    total = 0.0
    for kind, sizes in re.findall(r"\b([a-z]+\w*)\[([\d,<=]*)\]", shape):
        bits = BITS.get(kind) or re.search(r"\d+", kind)
        bits = int(bits[0]) if isinstance(bits, re.Match) else bits or 0
        total += bits / 8 * math.prod(int(size.strip("<=")) for size in sizes.split(",") if size)
    return total


# Loops.


class Trips(NamedTuple):
    """How often a loop runs: `most` times; exactly so often if `exact`. None: unknown."""

    most: int | None
    exact: bool


def trips(module: Module, computation: str, loop: Op) -> Trips:
    """How often the while loop `loop` of `computation` runs.

    A loop that compares a counter with a constant and nothing else is exact; one that also looks
    at the data has that constant as its bound.
    """
    known = re.search(r'known_trip_count":\{"n":"?(\d+)', loop.attributes)
    if known:
        return Trips(int(known[1]), True)
    (condition,) = loop.called("condition")
    root = _behind_copies(module, condition, module.roots[condition])
    if root.opcode == "fusion":
        limit = _counted(module, loop, computation, root, condition)
    else:
        limit = _limit(module, loop, computation, condition, root, None)
    if limit is not None:
        return Trips(limit, True)
    bounds = set()
    for op in module.computations[condition].values():
        if op.opcode == "fusion":
            (inner,) = op.called("calls")
            for inside in module.computations[inner].values():
                bounds.add(_limit(module, loop, computation, inner, inside, (condition, op)))
        bounds.add(_limit(module, loop, computation, condition, op, None))
    bounds.discard(None)
    return Trips(min(bounds) if bounds else None, False)


def _counted(module, loop, outside, fusion, condition):
    (inner,) = fusion.called("calls")
    root = _behind_copies(module, inner, module.roots[inner])
    return _limit(module, loop, outside, inner, root, (condition, fusion))


def _limit(module, loop, outside, computation, op, caller) -> int | None:
    """Trips after which the comparison `op` of a counter with a constant ends the loop."""
    if op.opcode != "compare" or not re.match(r"[su]\d+\[\]", _operand(module, computation, op, 0)):
        return None
    direction = re.search(r"direction=(\w+)", op.attributes)[1]
    sides = [_resolve(module, loop, outside, computation, name, caller) for name in op.operands]
    if direction in ("GT", "GE"):
        sides.reverse()
        direction = {"GT": "LT", "GE": "LE"}[direction]
    (counter, limit) = sides
    if direction not in ("LT", "LE") or not isinstance(limit, int) or not isinstance(counter, str):
        return None
    start, step = _counter(module, loop, outside, int(counter))
    if not step:
        return None
    return max(0, math.ceil((limit + (direction == "LE") - start) / step))


def _operand(module, computation, op, index) -> str:
    """The shape of an operand."""
    return module.computations[computation][op.operands[index]].shape


def _behind_copies(module, computation, op) -> Op:
    while op.opcode in _SAME_VALUE:
        op = module.computations[computation][op.operands[0]]
    return op


def _resolve(module, loop, outside, computation, name, caller):
    """An int for a constant, the index as a str for what the loop carries, None for all else."""
    op = _behind_copies(module, computation, module.computations[computation][name])
    if op.opcode == "constant":
        return int(op.arguments) if re.fullmatch(r"-?\d+", op.arguments) else None
    if op.opcode == "parameter" and caller is not None:
        computation, fusion = caller
        name = fusion.operands[int(op.arguments)]
        return _resolve(module, loop, outside, computation, name, None)
    if op.opcode != "get-tuple-element":
        return None
    index = re.search(r"index=(\d+)", op.attributes)[1]
    _, step = _counter(module, loop, outside, int(index))
    if step == 0:  # a constant that the loop hands from trip to trip
        return _initial(module, loop, outside, int(index))
    return index


def _counter(module, loop, outside, index):
    """(value before the loop, what a trip adds); (0, None) where a trip adds no constant.

    A start that is not written down counts as 0: the loop runs no more often than that says.
    """
    (body,) = loop.called("body")
    ops = module.computations[body]
    root = module.roots[body]
    if root.opcode != "tuple":
        return 0, None
    start = _initial(module, loop, outside, index) or 0
    op = _behind_copies(module, body, ops[root.operands[index]])
    if _is_carried(op, index):
        return start, 0
    if op.opcode == "fusion":  # of nothing but the addition
        (inner,) = op.called("calls")
        added = _behind_copies(module, inner, module.roots[inner])
        sources = module.computations[inner]
    else:
        added, sources = op, ops
    if added.opcode != "add":
        return 0, None
    for name in added.operands:
        source = _behind_copies(module, body, sources[name]) if sources is ops else sources[name]
        if source.opcode == "constant" and re.fullmatch(r"\d+", source.arguments):
            return start, int(source.arguments)
    return 0, None


def _is_carried(op, index) -> bool:
    return op.opcode == "get-tuple-element" and f"index={index}," in op.attributes + ","


def _initial(module, loop, outside, index) -> int | None:
    ops = module.computations[outside]
    carried = ops.get(loop.operands[0])
    if carried is None or carried.opcode != "tuple":
        return None
    op = _behind_copies(module, outside, ops[carried.operands[index]])
    is_number = op.opcode == "constant" and re.fullmatch(r"-?\d+", op.arguments)
    return int(op.arguments) if is_number else None


# What runs.


def executions(
    module: Module, stops: Callable[[Op], int | None] = lambda op: None
) -> Iterator[Execution]:
    """All that a run of the module executes.

    Args:
      stops: of a loop: after how many trips it has done its work, for those whose end depends on
        the data; None for as many as it can make. What a loop of fixed length has left after that
        takes the cheapest branch of its conditionals. Elsewhere conditionals take the dearest.

    Raises:
      ValueError: a loop has no bound and `stops` gives none.
    """
    yield from _run(module, module.entry, 1.0, 1.0, stops)


def _run(module, computation, times, busy, stops):
    """`busy` is the share of the trips of the innermost loop in which its conditionals do work."""
    for op in module.computations[computation].values():
        if op.opcode == "while":
            most, exact = trips(module, computation, op)
            stop = stops(op)
            if most is None and stop is None:
                raise ValueError(f"{op.name} ({op.op_name or 'unnamed'}) has no bound")
            work = most if stop is None else stop if most is None else min(stop, most)
            count = most if exact else work
            (body,) = op.called("body")
            yield from _run(module, body, times * count, work / count if count else 0.0, stops)
        elif op.opcode == "conditional":
            yield from _branches(module, op, times, busy, stops)
        elif op.opcode in ("call", "async-start"):
            for name in op.called("to_apply", "calls", "called_computations"):
                yield from _run(module, name, times, busy, stops)
        else:
            yield Execution(op, times)


def _branches(module, op, times, busy, stops):
    names = op.called("branch_computations", "true_computation", "false_computation")
    branches = [list(_run(module, name, 1.0, 1.0, stops)) for name in names]
    branches.sort(key=total_cycles)
    for branch, share in ((branches[-1], busy), (branches[0], 1.0 - busy)):
        if share:
            yield from (Execution(ran.op, ran.times * times * share) for ran in branch)


def total_cycles(ran: list[Execution]) -> float:
    """Estimated cycles of all that has an estimate."""
    return sum((op.cycles or 0) * times for op, times in ran)


def inside(module: Module, op: Op) -> Iterator[Op]:
    """The operations of a fusion, those of fusions in it too."""
    for name in op.called("calls") if op.opcode == "fusion" else ():
        for inner in module.computations[name].values():
            yield inner
            yield from inside(module, inner)
