"""SimMIM against the authors' code (arXiv 2111.09886)."""

import os
from pathlib import Path

import numpy as np
import pytest

from dppmask_jax import patches
from dppmask_jax.targets.base import masked_absolute_error

ORACLES = os.environ.get("DPPMASK_TEST_ORACLES")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(not ORACLES, reason="DPPMASK_TEST_ORACLES names no folder"),
]


def oracle(name):
    return np.load(Path(ORACLES) / f"{name}.npz")


def in_patches(images, size):
    """(B, 3, H, W) -> (B, N, size * size * 3)."""
    return patches.patchify(np.moveaxis(images, 1, -1), size)


def test_the_loss_is_the_absolute_error_of_masked_pixels():
    found = oracle("simmim_loss")
    pred, target = (in_patches(found[name], 16) for name in ("pred", "target"))
    mask = found["mask"].reshape(len(pred), -1).astype(bool)
    np.testing.assert_allclose(masked_absolute_error(pred, target, mask), found["loss"], rtol=1e-6)
    nothing = masked_absolute_error(pred, target, np.zeros_like(mask))
    assert nothing == found["loss_nothing_masked"] == 0
