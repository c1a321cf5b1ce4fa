import jax
import numpy as np
from test_masking import check_mask

from dppmask_jax import masking
from dppmask_jax.masking import regular_grid


def draw(count, shape=(14, 14), num=3):
    keys = jax.random.split(jax.random.key(0), num)
    return masking.MASKERS["grid"].build(None).draw(keys, count, masking.Seen(shape), count)[0]


def test_a_quarter_is_one_patch_in_each_2_x_2_and_grids_are_nested():
    quarter = draw(49)
    check_mask(quarter, 49)
    shown = ~np.asarray(quarter.mask).reshape(3, 14, 14)
    assert shown[:, ::2, ::2].all() and shown.sum() == 3 * 49
    half = ~np.asarray(draw(98).mask).reshape(3, 14, 14)
    assert (half == (np.add.outer(np.arange(14), np.arange(14)) % 2 == 0)).all()
    sixteenth = ~np.asarray(draw(16, (16, 16)).mask).reshape(3, 16, 16)
    assert sixteenth[:, ::4, ::4].all()


def test_what_fills_no_whole_grid_is_drawn():
    counts = np.int32([0, 63, 63, 195])
    mask = draw(counts, num=4)
    check_mask(mask, counts)
    shown = ~np.asarray(mask.mask)
    assert shown[1].reshape(14, 14)[::2, ::2].all() and (shown[1] != shown[2]).any()
    key = jax.random.key(3)
    assert np.array_equal(regular_grid.grid(key, (3, 5), 4).order.sort(), np.arange(15))


def test_export_draws_them():
    exported = masking.export_masks(np.zeros((2, 64, 64, 3), np.uint8), strategy="grid")
    assert not exported.mask[0].reshape(4, 4)[::2, ::2].any()
