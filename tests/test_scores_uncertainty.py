"""Standard errors, against samples drawn again and again."""

import numpy as np
import pytest

from dppmask_jax.scores.uncertainty import error_of_mean, standard_error


def test_the_error_of_a_share_is_how_far_shares_of_other_samples_lie():
    right = np.random.default_rng(0).random((4000, 150)) < 0.3
    assert standard_error(0.3, 150) == pytest.approx(right.mean(axis=1).std(), rel=0.05)
    for sample in right[:3]:
        assert error_of_mean(sample) == pytest.approx(standard_error(sample.mean(), 150))
    assert standard_error(1.0, 7) == standard_error(0.0, 1) == 0.0


def test_the_error_of_a_mean_counts_what_an_image_has_in_common_once():
    values = np.random.default_rng(1).random((4000, 150))
    found = np.mean([error_of_mean(sample) for sample in values])
    assert found == pytest.approx(values.mean(axis=1).std(), rel=0.05)
