import re

import jax
import numpy as np
import pytest
import tiny
from test_masking import check_mask

from dppmask_jax import config, masking
from dppmask_jax.errors import InputError
from dppmask_jax.masking import uniform_cells


def shown(count, shape=(14, 14), num=400):
    """(num, rows / 2, columns / 2, 4) bool: which patches of each cell are visible."""
    keys = jax.random.split(jax.random.key(0), num)
    masker = masking.MASKERS["uniform"].build(None)
    mask, _ = jax.jit(lambda keys: masker.draw(keys, count, masking.Seen(shape), count))(keys)
    check_mask(mask, count)
    visible = ~np.asarray(mask.mask).reshape(num, shape[0] // 2, 2, shape[1] // 2, 2)
    return visible.transpose(0, 1, 3, 2, 4).reshape(num, shape[0] // 2, shape[1] // 2, 4)


def test_a_quarter_is_one_patch_in_each_cell_drawn_uniformly():
    visible = shown(49)
    assert (visible.sum(axis=-1) == 1).all()
    # 100 of 400 images show each of a cell's patches, with a deviation of 8.7.
    assert np.abs(visible.sum(axis=0) - 100).max() < 45
    places = visible.argmax(axis=-1)
    assert (places[:, 0, 0] == places[:, 0, 1]).mean() < 0.4, "cells are independent"


def test_other_shares_are_refused():
    images = np.zeros((2, 56, 56, 3), np.uint8)
    words = (
        r"^mask\.strategy='uniform' shows one patch of each 2 x 2 and hides 12 of 16; mask\.ratio "
        r"hides 8: a ratio of 0\.75 is wanted$"
    )
    with pytest.raises(ValueError, match=words):
        masking.export_masks(images, strategy="uniform", patch_size=14, ratio=0.5)
    with pytest.raises(ValueError, match=r"in 4\.\.4"):
        uniform_cells.uniform(jax.random.key(0), (4, 4), 5)


def test_the_ratio_that_a_refusal_names_is_taken():
    for rows, columns in ((3, 3), (3, 5), (4, 6), (7, 7), (13, 13), (29, 15)):
        num_patches, shown = rows * columns, uniform_cells.num_cells((rows, columns))
        with pytest.raises(InputError) as refused:
            masking.MASKERS["uniform"].check_counts(None, (rows, columns), 1, 1)
        ratio, *of_ibot = map(float, re.findall(r"0\.\d+", str(refused.value)))
        assert masking.num_visible(num_patches, ratio) == shown
        assert masking.num_masked(num_patches, [*of_ibot, ratio][0]) == num_patches - shown


@pytest.mark.parametrize("method", ["mae", "ibot"])
def test_a_config_whose_ratio_is_another_is_refused(method):
    ratios = {"mae": (0.75, 0.6), "ibot": ((0.0, 0.75), (0.0, 0.5))}[method]
    extra = {"mask__ratio_var": (0.0, 0.0)} if method == "ibot" else {}
    fits, other = (
        tiny.config(method, mask__strategy="uniform", mask__ratio=ratio, **extra)
        for ratio in ratios
    )
    config.check(fits)
    with pytest.raises(InputError, match=r"hides 12 of 16; mask\.ratio hides (8|10): a ratio of"):
        config.check(other)
    if method == "ibot":
        fits.mask.ratio_var = (0.0, 0.1)
        with pytest.raises(InputError, match=r"mask\.ratio hides 10 to 13"):
            config.check(fits)


def test_an_odd_grid_has_cells_that_are_cut_off():
    mask = masking.export_masks(np.zeros((4, 48, 80, 3), np.uint8), strategy="uniform", ratio=0.6)
    assert mask.mask.shape == (4, 15)
    visible = np.pad(~mask.mask.reshape(4, 3, 5), ((0, 0), (0, 1), (0, 1)))
    assert (visible.reshape(4, 2, 2, 3, 2).sum(axis=(2, 4)) == 1).all()
