"""Cosines of pairs of vectors and of images."""

import itertools

import jax
import numpy as np
import pytest

from dppmask_jax.analyses import diversity


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_a_vector_is_not_compared_with_itself():
    vectors = np.random.default_rng(0).normal(size=(3, 4, 5))
    expected = [
        np.mean([cosine(a, b) for a, b in itertools.combinations(of_one, 2)]) for of_one in vectors
    ]
    mean_cosine = jax.jit(diversity.mean_cosine)
    np.testing.assert_allclose(mean_cosine(vectors), expected, atol=1e-6)
    alike, with_zeros, opposite = [[1, 2], [1, 2]], [[0, 0], [1, 2]], [[1, 2], [-1, -2]]
    found = mean_cosine(np.float32([alike, with_zeros, opposite]))
    np.testing.assert_allclose(found, [1, 0, -1], atol=1e-6)


def test_the_error_of_pairs_of_images_is_that_over_images():
    rng = np.random.default_rng(1)
    units = rng.normal([2, 0, 0], size=(400, 30, 2, 3))
    units /= np.linalg.norm(units, axis=-1, keepdims=True)
    found = [diversity.of_images(of_30) for of_30 in units]
    pairs = [cosine(a, b) for a, b in itertools.combinations(units[0, :, 1], 2)]
    assert found[0]["mean"][1] == pytest.approx(np.mean(pairs))
    spread = np.std([one["mean"] for one in found], axis=0)
    assert np.mean([one["error"] for one in found], axis=0) == pytest.approx(spread, rel=0.15)
