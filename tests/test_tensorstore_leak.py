"""tensorstore's dicts are freed, and nothing is that has an owner."""

import gc
import sys

import pytest

from dppmask_jax import tensorstore_leak

ts = pytest.importorskip("tensorstore")
SPEC = {"driver": "ocdbt", "base": {"driver": "memory", "path": "any/"}, "path": "params.kernel"}


def blocks_kept(convert, calls=1000):
    """Blocks of memory that a call leaves behind."""
    for _ in range(20):
        convert()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(calls):
        convert()
    gc.collect()
    return (sys.getallocatedblocks() - before) / calls


def specification():
    return ts.KvStore.Spec(SPEC).to_json()


def counters():
    return ts.experimental_collect_matching_metrics("/tensorstore/")


@pytest.mark.parametrize("convert", [specification, counters])
def test_a_conversion_leaves_nothing_behind(convert):
    tensorstore_leak.mend()
    assert blocks_kept(convert) < 0.1
    assert not tensorstore_leak.forgets(convert())


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


def test_a_dict_of_python_is_not_taken_for_one_that_leaks():
    words = {"".join(("dri", "ver")): "".join(("fi", "le")), "0": ["1", {"".join("ab"): 3}]}
    assert not tensorstore_leak.forgets(words)
