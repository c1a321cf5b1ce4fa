"""Masks against those that the authors' code drew; the arrays are not part of the project."""

import os

import jax
import numpy as np
import pytest

from dppmask_jax import masking

ORACLES = os.environ.get("DPPMASK_TEST_ORACLES")
pytestmark = pytest.mark.skipif(not ORACLES, reason="DPPMASK_TEST_ORACLES names no folder")


def test_rectangles_are_bounded_by_the_real_number_of_patches():
    """At a ratio of .3 iBOT's code bounds them by 58.8 of 196 patches, BEiT's by 58."""
    oracle = np.load(f"{ORACLES}/block_masks.npz", allow_pickle=False)
    keys = jax.random.split(jax.random.key(1), 2500)

    @jax.jit
    def draw(wanted):
        mask = jax.vmap(lambda key: masking.block(key, (14, 14), 196 - 58, wanted).mask)(keys)
        return mask.reshape(-1, 14, 14)

    for name, wanted in (("int58", 58.0), ("frac588", 58.8)):
        masks = np.asarray(draw(wanted))
        assert (masks.sum(axis=(1, 2)) == 58).all()
        borders = (masks[:, 1:] != masks[:, :-1]).sum(axis=(1, 2))
        borders += (masks[:, :, 1:] != masks[:, :, :-1]).sum(axis=(1, 2))
        histogram = oracle[f"{name}_filled58_boundary_hist"]
        expected = np.average(np.arange(len(histogram)), weights=histogram)
        # The two differ by 0.39; the standard error is 0.14.
        assert abs(borders.mean() - expected) < 0.2, name
        inclusion = oracle[f"{name}_filled58_inclusion"]
        np.testing.assert_allclose(masks.mean(axis=0), inclusion, atol=0.04)
