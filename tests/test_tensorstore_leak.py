"""tensorstore's dicts are freed, and nothing is that has an owner."""

import gc
import itertools
import sys

import numpy as np
import pytest
import tensorstore as ts

from dppmask_jax import tensorstore_leak
from dppmask_jax.runs import checkpoint

SPEC = {"driver": "ocdbt", "base": {"driver": "memory", "path": "any/"}, "path": "params.kernel"}


def specification():
    return ts.KvStore.Spec(SPEC).to_json()


def blocks_kept(convert, calls=500):
    """Blocks of memory that a call leaves behind."""
    for _ in range(20):
        convert()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(calls):
        convert()
    gc.collect()
    return (sys.getallocatedblocks() - before) / calls


@pytest.mark.parametrize("convert", [specification, tensorstore_leak.counters])
def test_a_conversion_leaves_nothing_behind(convert):
    tensorstore_leak.mend()
    assert convert()
    assert blocks_kept(convert) < 0.2
    assert not tensorstore_leak.forgets(convert)


def test_what_was_handed_out_stays():
    tensorstore_leak.mend()
    first = specification()
    blocks_kept(specification)
    assert first == SPEC


def test_mending_twice_is_mending_once():
    tensorstore_leak.mend()
    mended = ts.KvStore.Spec.to_json, ts.experimental_collect_matching_metrics
    tensorstore_leak.mend()
    assert mended == (ts.KvStore.Spec.to_json, ts.experimental_collect_matching_metrics)


def fresh(word):
    return "".join(list(word))


OWNERS = []


def owned(value):
    """As a leak would count, with an owner instead."""
    OWNERS.append(value)
    return value


KEPT = {fresh("driver"): fresh("file"), fresh("base"): {fresh("path"): fresh("/a")}}
CONVERSIONS = {
    "nothing leaks": lambda: {fresh("driver"): fresh("file"), fresh("sum"): [1, {fresh("ab"): 2}]},
    "strings leak, containers do not": lambda: {
        owned(fresh("base")): {owned(fresh("path")): owned(fresh("/a"))}
    },
    "keys leak, values do not": lambda: {owned(fresh("driver")): fresh("file")},
    "the same is handed out again": lambda: KEPT,
    "its strings are": lambda: dict(KEPT),
    "no dict": lambda: [],
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_what_is_no_leak_of_all_is_left_alone(name):
    assert not tensorstore_leak.forgets(CONVERSIONS[name])


def test_a_leak_of_all_is_found():
    def leaking():
        inner = owned({owned(fresh("path")): owned(fresh("/a"))})
        return [{owned(fresh("base")): inner, owned(fresh("7")): owned(7)}]

    assert tensorstore_leak.forgets(leaking)


def test_saves_leave_nothing_behind(tmp_path):
    """Measured for the 12 arrays: 5 blocks a save and falling; 60 without the mend."""
    arrays = 12
    state = {f"{n}": np.full(n + 2, n, np.float32) for n in range(arrays)}
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)
    steps = itertools.count()

    def save():
        checkpoints.save(next(steps), state, {})
        checkpoints.wait()

    kept = blocks_kept(save, calls=30)
    checkpoints.close()
    assert kept < 2 * arrays
