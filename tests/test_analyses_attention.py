"""Attention distance and mutual information, by hand and as a task."""

import functools

import jax
import numpy as np
import pytest

from dppmask_jax.analyses import attention
from dppmask_jax.analyses.attention import mutual_information, uniform_distance


def weights(rows):
    """(1, 1, T, T) of a matrix."""
    return np.asarray(rows, np.float32)[None, None]


def test_distance_is_in_pixels_between_the_centres_of_patches():
    distance = jax.jit(attention.distance, static_argnums=(1, 2))
    itself, even = np.eye(197), np.full((197, 197), 1 / 197)
    assert distance(weights(itself), (14, 14), 16) == pytest.approx(0, abs=1e-20)
    assert distance(weights(even), (14, 14), 16) == pytest.approx(116.492, abs=1e-3)
    assert uniform_distance((14, 14), 16) == pytest.approx(116.492, abs=1e-3)
    # Two rows of three patches of 4 x 10 px: the first looks at the last, 4 down and 20 across.
    to_last = np.eye(7)[[0, 6, 2, 3, 4, 5, 6]]
    assert distance(weights(to_last), (2, 3), (4, 10)) == pytest.approx(np.hypot(4, 20) / 6)
    assert distance(weights(to_last), (3, 2), (4, 10)) == pytest.approx(np.hypot(8, 10) / 6)


def test_what_the_class_token_and_registers_take_does_not_count():
    rng = np.random.default_rng(0)
    among = rng.dirichlet(np.ones(4), (2, 3, 4)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def both(weights, prefix):
        return attention.distance(weights, (2, 2), 8, prefix), mutual_information(weights, prefix)

    for prefix in (1, 3):
        whole = np.full((2, 3, prefix + 4, prefix + 4), 0.1, np.float32)
        whole[..., prefix:, prefix:] = 0.5 * among
        found = both(whole, prefix)
        np.testing.assert_allclose(found, both(among, 0), rtol=1e-4)
    # A patch that sees the class token alone counts as one that looks everywhere.
    found, _ = both(weights(np.eye(5)[[0] * 5]), 1)
    assert found == pytest.approx(uniform_distance((2, 2), 8))
    with pytest.raises(ValueError, match="does not fit 2x2 patches and 1 tokens before them"):
        attention.distance(whole, (2, 2), 8)


def test_mutual_information_says_whether_attention_depends_on_the_query():
    rng = np.random.default_rng(1)
    alike = np.broadcast_to(rng.dirichlet(np.ones(17)), (17, 17))
    found = jax.jit(mutual_information)
    assert 0 <= found(weights(alike)) < 1e-5
    assert found(weights(np.eye(17))) == pytest.approx(1, abs=1e-4)
    assert 0 <= found(weights(np.eye(17)[[3] * 17])) < 1e-4  # H(k) is 0 but for the epsilon
    # Two queries, (3/4, 1/4) and (1/4, 3/4): keys are even, and I is log 2 - H(3/4).
    bits = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    of_two = [[0, 0, 0], [0, 0.75, 0.25], [0, 0.25, 0.75]]
    assert found(weights(of_two)) == pytest.approx(bits / np.log(2), rel=1e-5)
    with pytest.raises(ValueError, match="no two patches"):
        mutual_information(np.ones((1, 1, 2, 2)))


def test_even_attention_of_as_many_patches_of_other_sizes_has_two_levels(monkeypatch):
    drawn = []
    monkeypatch.setattr(attention, "draw_panels", lambda panels, note: drawn.extend(panels))
    curves = {
        name: {"mean": [1.0], "error": [0.1], "heads": [[1.0]]} for name in ("distance", "nmi")
    }
    found = {
        str(height): {**curves, "images": 3, "grid": [4, 4], "uniform_distance": height}
        for height in (7.5, 15)
    }
    attention.compare(found)
    assert drawn[0].levels == {
        "uniform, 4x4 patches: 7.5 px": 7.5,
        "uniform, 4x4 patches: 15.0 px": 15,
    }
