"""Singular values and ranks of tokens and images."""

import re

import jax
import numpy as np
import pytest

from dppmask_jax.analyses import spectra


def test_logs_are_of_the_variances_of_patches_alone():
    rng = np.random.default_rng(0)
    scales = np.array([4.0, 2.0, 1.0, 0.5], np.float32)
    latents = np.float32(rng.normal(size=(5, 2 + 40, 4))) * scales + 7
    latents[:, :2] = 100  # a class token and a register

    @jax.jit
    def both(latents):
        return (
            spectra.token_log_singular_values(latents, 2),
            spectra.image_log_singular_values(latents, 2),
        )

    of_tokens, of_images = both(latents)
    patches = latents[:, 2:].astype(np.float64)
    variances = [np.linalg.eigvalsh(np.cov(image.T))[::-1] for image in patches]
    np.testing.assert_allclose(of_tokens, np.mean(np.log(variances), axis=0), atol=1e-5)
    of_means = np.linalg.eigvalsh(np.cov(patches.mean(axis=1).T))[::-1]
    assert of_images.shape == (4,)  # 5 images fill 4 dimensions
    np.testing.assert_allclose(of_images, np.log(of_means), atol=1e-4)
    # Tokens without any difference have no logarithm of minus infinity.
    assert np.isfinite(both(np.ones_like(latents))[0]).all()


def test_devices_that_compute_at_once_do_not_wait_for_each_other():
    """jaxlib's SVD of a batch hangs where several CPU devices run it; see `spectra`."""
    traced = jax.make_jaxpr(spectra.token_log_singular_values)(np.ones((5, 41, 4), np.float32))
    (shape,) = re.findall(r"f32\[([\d,]+)\] = svd\[", str(traced))
    assert shape == "4"


def test_ranks_count_the_dimensions_that_are_filled():
    assert spectra.effective_rank(np.ones(7)) == pytest.approx(7)
    assert spectra.effective_rank([[5.0, 0, 0], [1, 1, 0]]) == pytest.approx([1, 2])
    assert spectra.effective_rank([0.75, 0.25]) == pytest.approx(np.exp(0.5623351))
    assert spectra.rankme(np.ones(7)) == pytest.approx(7, rel=1e-4)
    assert spectra.rankme([3.0, 0, 0]) == pytest.approx(1, rel=1e-4)


def test_images_are_measured_group_by_group_as_at_once():
    rng = np.random.default_rng(1)
    vectors = np.float32(rng.normal(size=(200, 6)) * np.arange(6, 0, -1) + 5)
    found = spectra.of_vectors(vectors)
    variances = np.linalg.eigvalsh(np.cov(vectors.T, dtype=np.float64))[::-1]
    logs = found["log_singular_values"]
    np.testing.assert_allclose(logs["mean"], np.log(variances), atol=1e-9)
    np.testing.assert_allclose(found["drop"]["mean"], np.log(variances / variances[0]), atol=1e-9)
    assert found["drop"]["error"][0] == 0
    rank = spectra.effective_rank(variances)
    assert found["effective_rank"]["mean"] == pytest.approx(rank)

    def rankme(rows):
        return spectra.rankme(np.linalg.svd(rows.astype(np.float64), compute_uv=False))

    assert found["rankme"]["mean"] == pytest.approx(rankme(vectors))
    # The jackknife, by computing everything anew without each tenth image.
    without = [rankme(np.delete(vectors, np.s_[first::10], axis=0)) for first in range(10)]
    error = (0.9 * np.sum(np.square(without - np.mean(without)))) ** 0.5
    assert found["rankme"]["error"] == pytest.approx(error)
    # The variance of a normal distribution is known to sqrt(2 / M) of itself.
    assert np.mean(logs["error"]) == pytest.approx((2 / 200) ** 0.5, rel=0.5)
    # Of fewer images than dimensions, ranks are of all singular values that there are.
    wide = np.float32(rng.normal(size=(20, 40)))
    of_wide = spectra.of_vectors(wide)
    variances = np.linalg.svd(wide - wide.mean(axis=0), compute_uv=False)[:19] ** 2
    assert of_wide["effective_rank"]["mean"] == pytest.approx(spectra.effective_rank(variances))
    assert of_wide["rankme"]["mean"] == pytest.approx(rankme(wide))
    few = spectra.of_vectors(vectors[:20, [0, 1, 2] * 10])
    assert len(few["drop"]["mean"]) == 17 and np.isfinite(few["rankme"]["mean"])


def test_vectors_that_are_all_alike_fill_no_dimension():
    for value in (0.0, 3.0):
        found = spectra.of_vectors(np.full((30, 5), value, np.float32))
        ranks = [found[name]["mean"] for name in ("effective_rank", "rankme")]
        assert ranks == pytest.approx([1, 1], abs=1e-4)
        assert np.isfinite([*found["drop"]["mean"], found["rankme"]["error"]]).all()
    logs = np.full((2, 3, 4), np.log(1e-12), np.float32)
    assert spectra._of_tokens(logs)["effective_rank"]["mean"] == [1.0] * 3


def test_the_figure_ends_where_values_are_rounding():
    drop = {"mean": [0.0, -5.0, -22.0, -28.0], "error": [0.0, 0.1, 0.2, 9.0]}
    assert spectra.above_rounding(drop) == {"mean": [0.0, -5.0, -22.0], "error": [0.0, 0.1, 0.2]}
