import jax
import numpy as np
from test_masking import check_mask

from dppmask_jax import masking


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


def test_other_counts_are_spread_over_the_cells():
    few, more = (shown(count, num=40).sum(axis=-1) for count in (30, 60))
    assert few.max() == 1 and few.mean(axis=0).min() > 0.3
    assert more.min() == 1 and more.max() == 2


def test_an_odd_grid_has_cells_that_are_cut_off():
    mask = masking.export_masks(np.zeros((4, 48, 80, 3), np.uint8), strategy="uniform", ratio=0.6)
    assert mask.mask.shape == (4, 15)
    visible = np.pad(~mask.mask.reshape(4, 3, 5), ((0, 0), (0, 1), (0, 1)))
    assert (visible.reshape(4, 2, 2, 3, 2).sum(axis=(2, 4)) == 1).all()
