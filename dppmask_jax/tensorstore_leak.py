"""Mends a leak of tensorstore: what it hands to Python as a dict is never freed.

Its conversion of JSON (0.1.74 to 0.1.86 were tried) keeps one reference too many to every key and
value. Orbax asks for such a dict for each array of each checkpoint, about a kilobyte an array, and
a run that saves for weeks would grow all the while.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorstore as ts

_MENDING = threading.Lock()
_NESTED = {"driver": "ocdbt", "base": {"driver": "memory", "path": "some/"}, "path": "any/"}


def mend() -> None:
    """From here on the two conversions that orbax calls while saving leave nothing behind.

    Each is looked at first: a tensorstore that does not leak is left as it is, and so is one that
    is mended already.
    """
    with _MENDING:  # else two threads could both find the leak, and release twice
        if forgets(lambda: ts.KvStore.Spec(_NESTED).to_json()):
            ts.KvStore.Spec.to_json = _releasing(ts.KvStore.Spec.to_json)
        if forgets(counters):
            ts.experimental_collect_matching_metrics = _releasing(
                ts.experimental_collect_matching_metrics
            )


def counters() -> list[dict[str, Any]]:
    """Of tensorstore's own, all there are."""
    return ts.experimental_collect_matching_metrics("/tensorstore/", include_zero_metrics=True)


def forgets(convert: Callable[[], Any]) -> bool:
    """Whether everything that the dicts in a result of `convert` hold has one reference too many.

    Only what is made anew each time is proof: of what is kept and handed out again, and of the
    single characters and small numbers that Python has but once, the count says nothing.
    """
    first, second = convert(), convert()
    held = zip(_held(first), _held(_copied(first)), _held(second), strict=True)
    return {
        sys.getrefcount(ours) - sys.getrefcount(copy)
        for ours, copy, other in held
        if isinstance(ours, (str, dict, list)) and ours is not copy and ours is not other
    } == {1}


def _copied(converted: Any) -> Any:
    """The same of new containers and new strings."""
    if isinstance(converted, list):
        return [_copied(each) for each in converted]
    if isinstance(converted, dict):
        return {_copied(key): _copied(value) for key, value in converted.items()}
    return "".join(converted) if isinstance(converted, str) else converted


def _releasing(convert: Callable) -> Callable:
    @functools.wraps(convert)
    def converted_and_released(*args, **kwargs):
        converted = convert(*args, **kwargs)
        # All at once, and only then: until the last is named, each must be alive.
        for each in list(_held(converted)):
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(each))
        return converted

    return converted_and_released


def _held(converted: Any) -> Iterator[Any]:
    """The keys and values of all dicts in `converted`, those inside others too."""
    if isinstance(converted, list):
        for each in converted:
            yield from _held(each)
    elif isinstance(converted, dict):
        for key, value in converted.items():
            yield key
            yield value
            yield from _held(value)
