"""Spectra of token maps, and noise of one frequency, by hand."""

import itertools

import jax
import numpy as np
import pytest

from dppmask_jax.analyses import frequencies
from dppmask_jax.analyses.frequencies import num_bins
from dppmask_jax.analyses.ring_noise import filtered, ring, sign_noise
from dppmask_jax.errors import InputError

log_amplitude = jax.jit(frequencies.log_amplitude, static_argnames="grid")


def authors(tokens, grid):
    """Their steps: transform, centre, diagonal from the middle, less the first."""
    maps = np.moveaxis(tokens, 1, 2).reshape(*tokens.shape[::2], *grid)
    logs = np.log(np.abs(np.fft.fft2(maps)) + 1e-6)
    middle = tuple(side // 2 for side in grid)
    centred = np.roll(logs, middle, axis=(2, 3)).mean(axis=(0, 1))
    diagonal = np.diagonal(centred)[middle[0] :]
    return diagonal - diagonal[0]


@pytest.mark.parametrize("side", [4, 7])
def test_log_amplitude_is_that_of_the_whole_transform(side):
    rng = np.random.default_rng(side)
    tokens = rng.normal(3, 1, (2, side * side, 5)).astype(np.float32)
    found = log_amplitude(tokens, (side, side))
    assert found[0] == 0 and len(found) == num_bins((side, side))
    np.testing.assert_allclose(found, authors(tokens, (side, side)), atol=2e-5)
    np.testing.assert_allclose(log_amplitude(7 * tokens, (side, side)), found, atol=1e-5)


def test_an_oblong_grid_is_read_at_the_same_share_of_both_sides():
    rows, columns = 4, 8
    y, x = np.indices((rows, columns)).reshape(2, -1)
    halfway = np.cos(2 * np.pi * (y / rows + 2 * x / columns))  # the second of the two bins
    elsewhere = np.cos(2 * np.pi * (y / rows + x / columns))
    for wave, amplitude in ((halfway, 0.5 * 32), (elsewhere, 0.0)):
        tokens = (2 + wave)[None, :, None]
        expected = np.log(amplitude + 1e-6) - np.log(64)
        found = log_amplitude(tokens, (rows, columns))
        np.testing.assert_allclose(found, [0, expected], atol=0.3 if amplitude == 0 else 1e-5)
        turned = tokens.reshape(rows, columns).T.reshape(1, -1, 1)
        np.testing.assert_allclose(log_amplitude(turned, (columns, rows)), found, atol=0.3)
    flat = log_amplitude(np.full((1, 15, 2), 2.0), (3, 5))
    np.testing.assert_allclose(flat, [0, -np.log(15 * 2 / 1e-6)], atol=1e-5)
    with pytest.raises(InputError, match="need at least 3 x 3 patches, and the images have 2 x 8"):
        log_amplitude(np.zeros((1, 16, 2)), (2, 8))


def test_rings_tile_the_spectrum_and_noise_keeps_to_them():
    size = (9, 16)  # an odd side too
    ends = np.linspace(0, 3.5, 8)
    rings = [ring(size, (a + b) / 2, (b - a) / 2) for a, b in itertools.pairwise(ends)]
    np.testing.assert_array_equal(np.sum(rings, axis=0), 1)
    # 1 to 1.6 rad of 16 pixels: 2.5 to 4.07 turns, of 9: 1.4 to 2.3.
    inside = ring(size, 1.3, 0.3)
    assert inside.sum() == 4 * 8 - 2 * 4
    assert inside[0, 3] and inside[1, 1] and not inside[0, 1] and not inside[0, 4]
    assert inside[0, -4] and not inside[0, -5] and inside[-2, 0] and not inside[-3, 0]

    keys = jax.random.split(jax.random.key(1), 3)
    noise = sign_noise(keys, (*size, 3), 0.1)
    np.testing.assert_allclose(np.abs(noise), 0.1)
    np.testing.assert_array_equal(sign_noise(keys[1:2], (*size, 3), 0.1)[0], noise[1])
    kept = np.fft.fft2(filtered(noise, inside), axes=(1, 2))
    mirrored = np.roll(inside[::-1, ::-1], 1, axis=(0, 1))  # of the part that is real
    assert np.abs(kept[:, ~(inside | mirrored)]).max() < 1e-5
    both = inside & mirrored
    np.testing.assert_allclose(kept[:, both], np.fft.fft2(noise, axes=(1, 2))[:, both], atol=1e-4)
