"""Strategies that space or clump patches without a look at the image."""

import functools

import jax
import numpy as np
import pytest
import tiny
from scipy import ndimage, stats
from test_simmim import config as simmim_config

from dppmask_jax import config as config_checks
from dppmask_jax import masking, patches
from dppmask_jax.masking import filtered_noise, inverse_block, multiblock
from dppmask_jax.methods import METHODS, ibot_network
from dppmask_jax.methods.base import Plan

GRID, SHOWN, DRAWS = (14, 14), 49, 4000


def masks_of(draw, num=DRAWS, seed=0):
    """(num, 14, 14) bool: True = masked."""
    keys = jax.random.split(jax.random.key(seed), num)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key).mask))(keys)).reshape(num, *GRID)


def assert_uniform(masks):
    """One visible patch of each image, drawn, is at any place equally often."""
    noise = np.random.default_rng(0).random(masks.shape)
    first = np.where(masks, 2.0, noise).reshape(len(masks), -1).argmin(axis=1)
    found = np.bincount(first, minlength=masks[0].size)
    assert stats.chisquare(found).pvalue > 1e-3


def assert_close(got, want, sigmas=4.5):
    """Means of two samples (n, ...) agree within their standard errors."""
    error = np.sqrt(got.var(axis=0) / len(got) + want.var(axis=0) / len(want))
    assert (np.abs(got.mean(axis=0) - want.mean(axis=0)) <= sigmas * error + 1e-9).all()


# Noise.


def reference_noise(colour, rng):
    """(14, 14) bool: noise on a large torus, filtered in float64; a window's largest are masked."""
    white = rng.normal(size=(48, 48))
    weak, strong = (ndimage.gaussian_filter(white, s, mode="wrap") for s in (0.5, 2.0))
    value = {
        "red": strong,
        "blue": white - weak,
        "green": weak - strong,
        "purple": white - weak + strong,
    }[colour][:14, :14]
    return np.argsort(np.argsort(value.ravel())).reshape(GRID) >= SHOWN


def spectrum(masks):
    """(n, 14, 14) of the power of each frequency; () of a mask's mean is left out."""
    return np.abs(np.fft.fft2(masks - masks.mean(axis=(1, 2), keepdims=True))) ** 2


AWAY = np.hypot(*np.meshgrid(np.fft.fftfreq(14), np.fft.fftfreq(14)))  # cycles a patch


def power_of(colour):
    """(14, 14): the power that a filter leaves of white noise, from the Gaussians' transforms."""
    weak, strong = (np.exp(-2 * (np.pi * deviation * AWAY) ** 2) for deviation in (0.5, 2.0))
    passed = {"red": strong, "blue": 1 - weak, "green": weak - strong, "purple": 1 - weak + strong}
    return passed[colour] ** 2


def by_frequency(power):
    """(3,) mean power of low, middle and high frequencies over that of all; the mean's own is left
    out."""
    bands = (AWAY > 0) & (AWAY < 0.12), (AWAY > 0.16) & (AWAY < 0.26), AWAY > 0.4
    return np.array([power[band].mean() for band in bands]) / power[AWAY > 0].mean()


@pytest.mark.parametrize("colour", filtered_noise.COLOURS)
def test_noise_has_the_spectrum_of_its_colour(colour):
    masks = masks_of(lambda key: filtered_noise.noise(key, GRID, SHOWN, colour))
    assert (masks.sum(axis=(1, 2)) == 196 - SHOWN).all()
    rng = np.random.default_rng(1)
    want = np.stack([reference_noise(colour, rng) for _ in range(2000)])
    assert_close(spectrum(masks), spectrum(want))
    assert_close(masks.astype(float), want.astype(float))
    # Ranking within a window blurs the spectrum, but not which bands have more than white noise.
    found, filtered = by_frequency(spectrum(masks).mean(axis=0)), by_frequency(power_of(colour))
    np.testing.assert_array_equal(found > 1, filtered > 1)
    if colour != "red":  # within a window of it a corner differs more from the mean than the middle
        assert_uniform(masks)


def test_opposite_edges_of_noise_are_independent():
    masks = masks_of(lambda key: filtered_noise.noise(key, GRID, SHOWN, "red")).astype(float)
    beside = np.corrcoef(masks[:, 5, 0], masks[:, 5, 1])[0, 1]
    across = np.corrcoef(masks[:, 5, 0], masks[:, 5, 13])[0, 1]
    assert beside > 0.7 and abs(across) < 0.2


def test_a_colour_is_a_field():
    images = np.zeros((3, 56, 56, 3), np.uint8)
    masks = [
        masking.export_masks(images, patch_size=8, strategy="noise", colour=colour).mask
        for colour in ("green", "red")
    ]
    assert (masks[0] != masks[1]).any()
    with pytest.raises(ValueError, match=r"colour must be green \| blue \| red \| purple"):
        masking.export_masks(images, patch_size=8, strategy="noise", colour="white")
    with pytest.raises(ValueError, match=r"colour must be green \| blue \| red \| purple"):
        filtered_noise.noise(jax.random.key(0), (4, 4), 4, "white")


# The inverse block.


def reference_inverse(rng):
    """(14, 14) bool, True = masked: CAPI's procedure, but what is over is masked at random."""
    low, high = max(np.log(0.5), np.log(SHOWN / 196)), min(np.log(2), np.log(196 / (SHOWN + 1e-5)))
    aspect = np.exp(rng.uniform(low, high))
    height, width = (int(np.ceil(np.sqrt(x))) for x in (SHOWN * aspect, SHOWN / aspect))
    top, left = rng.integers(14 - height + 1), rng.integers(14 - width + 1)
    masked = np.ones(GRID, bool)
    masked[top : top + height, left : left + width] = False
    shown = np.flatnonzero(~masked)
    masked.ravel()[rng.permutation(shown)[SHOWN:]] = True
    return np.roll(masked, rng.integers(14, size=2), (0, 1))


def runs(masks):
    """(n, 4): visible rows and columns, and pairs of visible neighbours, over edges too."""
    seen = ~masks
    return np.stack(
        [
            seen.any(axis=2).sum(axis=1),
            seen.any(axis=1).sum(axis=1),
            (seen & np.roll(seen, 1, axis=1)).sum(axis=(1, 2)),
            (seen & np.roll(seen, 1, axis=2)).sum(axis=(1, 2)),
        ],
        axis=1,
    ).astype(float)


def test_the_inverse_block_is_capis_and_visible_everywhere_equally_often():
    masks = masks_of(lambda key: inverse_block.inverse(key, GRID, SHOWN))
    assert_uniform(masks)
    rng = np.random.default_rng(2)
    want = np.stack([reference_inverse(rng) for _ in range(DRAWS)])
    assert_close(runs(masks), runs(want))
    got, wanted = (np.bincount(runs(x)[:, 0].astype(int), minlength=15) for x in (masks, want))
    assert (np.abs(got - wanted) < 5 * np.sqrt(got + wanted + 1)).all()
    assert masks[:, 0].any(axis=1).all() and not masks[:, [0, 13]].all(axis=(1, 2)).all()


@pytest.mark.parametrize("grid,count", [((1, 12), 4), ((2, 9), 8), ((14, 14), 170), ((3, 3), 9)])
def test_an_inverse_block_fits_into_any_grid(grid, count):
    keys = jax.random.split(jax.random.key(3), 50)
    draw = jax.jit(jax.vmap(lambda key: inverse_block.inverse(key, grid, count).mask))
    seen = ~np.asarray(draw(keys)).reshape(50, *grid)
    assert (seen.sum(axis=(1, 2)) == count).all()
    if grid[0] == 1:  # all of it is one piece
        assert (np.abs(np.diff(seen[:, 0].astype(int), axis=1, append=0)).sum(axis=1) <= 4).all()
        assert ((seen[:, 0] & ~np.roll(seen[:, 0], 1, axis=1)).sum(axis=1) == 1).all()


# Multi-block.


def reference_sides(rng, scale, aspect):
    u = rng.random()
    area = int(196 * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    return [min(round(np.sqrt(area * ratio)), 13), min(round(np.sqrt(area / ratio)), 13)]


def reference_multiblock(rng, num_masked):
    """(14, 14) bool, True = masked: the authors' blocks, and our rule for the exact count."""

    def block(height, width):
        top, left = rng.integers(14 - height), rng.integers(14 - width)
        found = np.zeros(GRID, bool)
        found[top : top + height, left : left + width] = True
        return found.ravel()

    sides = reference_sides(rng, (0.15, 0.2), (0.75, 1.5))
    targets = np.zeros(196, bool)
    for _ in range(4):
        targets |= block(*sides)
    context = block(*reference_sides(rng, (0.85, 1.0), (1.0, 1.0)))
    chosen = []
    for which in (targets, ~targets & ~context, ~targets & context):
        chosen += rng.permutation(np.flatnonzero(which)).tolist()
    masked = np.zeros(196, bool)
    masked[chosen[:num_masked]] = True
    return masked.reshape(GRID)


@pytest.mark.parametrize("num_masked", [25, 110, 147])  # within targets, beyond them, and far
def test_multi_blocks_are_those_of_the_authors_procedure(num_masked):
    masks = masks_of(lambda key: multiblock.multiblock(key, GRID, 196 - num_masked))
    rng = np.random.default_rng(3)
    want = np.stack([reference_multiblock(rng, num_masked) for _ in range(3000)])
    assert_close(masks.astype(float), want.astype(float))
    together = [(x[:, :-1] & x[:, 1:]).sum(axis=2).astype(float) for x in (masks, want)]
    assert_close(*together)
    if num_masked == 25:  # no block reaches the last row and column
        assert not masks[:, 13].any() and not masks[:, :, 13].any()


# Positions alone.


def test_positions_alone_space_patches_out_whatever_the_image_shows():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    given = np.tile(patches.sincos_positions((5, 5), 768), (3, 1, 1))

    def export(images, features):
        return masking.export_masks(images, patch_size=8, tau=0.3, features=features).order

    alone = export(images, "positions")
    np.testing.assert_array_equal(alone, export(images, given))
    np.testing.assert_array_equal(alone, export(255 - images, "positions"))
    assert len({row.tobytes() for row in alone}) == 3


@pytest.mark.parametrize("method", ["mae", "ibot", "simmim"])
def test_positions_are_what_a_run_draws_its_masks_from(method):
    tiny_config = simmim_config if method == "simmim" else functools.partial(tiny.config, method)
    config = tiny_config(mask__features="positions")
    config_checks.check(config)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    if method == "ibot":
        features = ibot_network.kernel_features(None, config, None, images, None)
    else:
        features = METHODS[method].build(config, Plan(1, 1)).features({"encoder": {}}, {}, images)
    grid = patches.grid_shape((16, 16), config.model.patch_size)
    np.testing.assert_array_equal(features[0], patches.sincos_positions(grid, 768))
    np.testing.assert_array_equal(features[0], features[1])
