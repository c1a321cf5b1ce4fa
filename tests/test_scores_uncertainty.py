"""Standard errors, against samples drawn again and again."""

import numpy as np
import pytest

from dppmask_jax.scores.uncertainty import error_of_mean, errors_of_means, jackknife, standard_error


def test_the_error_of_a_share_is_how_far_shares_of_other_samples_lie():
    right = np.random.default_rng(0).random((4000, 150)) < 0.3
    assert standard_error(0.3, 150) == pytest.approx(right.mean(axis=1).std(), rel=0.05)
    for sample in right[:3]:
        plain = standard_error(sample.mean(), 150)
        assert error_of_mean(sample) == pytest.approx(plain * (150 / 149) ** 0.5)
    assert standard_error(1.0, 7) == standard_error(0.0, 1) == 0.0


def test_the_error_of_a_mean_counts_what_an_image_has_in_common_once():
    values = np.random.default_rng(1).random((4000, 150))
    found = np.mean([error_of_mean(sample) for sample in values])
    assert found == pytest.approx(values.mean(axis=1).std(), rel=0.05)


def test_few_images_do_not_look_surer_than_they_are():
    samples = np.random.default_rng(2).normal(size=(4, 20000))
    found = np.sqrt(np.mean(np.square(errors_of_means(samples))))
    assert found == pytest.approx(samples.mean(axis=0).std(), rel=0.02)  # 0.87 of it with M
    assert error_of_mean([1.0, 3.0]) == 1.0
    assert np.isnan(error_of_mean([1.0]))


def test_the_jackknife_of_a_mean_is_its_error():
    values = np.random.default_rng(3).random(12)
    without = [np.delete(values, i).mean() for i in range(12)]
    assert jackknife(without) == pytest.approx(error_of_mean(values))
