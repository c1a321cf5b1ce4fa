"""Values that the authors' code computed for given inputs, and how near ours come to them.

The arrays are no part of the project: DPPMASK_TEST_ORACLES names their folder. With `pytest -s`
each comparison prints a row of the table in docs/oracles.md.
"""

import os

import numpy as np
import pytest

FOLDER = os.environ.get("DPPMASK_TEST_ORACLES", "")
MARKS = [
    pytest.mark.oracle,
    pytest.mark.skipif(not FOLDER, reason="DPPMASK_TEST_ORACLES names no folder of oracles"),
]


def load(name):
    """{key: array} of an oracle."""
    with np.load(os.path.join(FOLDER, f"{name}.npz"), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def near(name, found, expected, tolerance, *, relative=False):
    """Asserts that the largest error, relative to the largest value if so asked, is within."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    error = np.max(np.abs(found - expected), initial=0.0)
    if relative:
        error /= np.max(np.abs(expected))
    below(f"{name}{' (relative)' if relative else ''}", error, tolerance)


def below(name, error, tolerance):
    """Asserts that an error or a statistic is within its bound."""
    print(f"\noracle | {name} | {error:.2g} | {tolerance:.3g} |")
    assert error <= tolerance, f"{name}: {error:.3g} is beyond {tolerance:.3g}"


def same(name, found, expected):
    """Asserts that all values are equal."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    print(f"\noracle | {name} | {np.sum(found != expected)} of {found.size} differ | exact |")
    assert np.array_equal(found, expected), name


def images(array):
    """PyTorch's (B, C, H, W) -> (B, H, W, C)."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))
