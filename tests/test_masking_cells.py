import os

import jax
import numpy as np
import pytest
from test_masking import check_mask

from dppmask_jax import masking
from dppmask_jax.masking import whole_cells

ORACLES = os.environ.get("DPPMASK_TEST_ORACLES")
SIMMIM = 196 - 120  # visible ones: 30 of 49 cells of 2 x 2 are masked


def masked_of_cells(count, num=2000, cell=2):
    """(num, rows / cell, columns / cell): how many patches of each cell of 14 x 14 are masked."""
    keys = jax.random.split(jax.random.key(0), num)
    draw = jax.jit(jax.vmap(lambda key: whole_cells.cells(key, (14, 14), count, cell)))
    mask = draw(keys)
    check_mask(mask, count)
    side = 14 // cell
    return np.asarray(mask.mask).reshape(num, side, cell, side, cell).sum(axis=(2, 4))


def test_cells_are_masked_as_a_whole_and_uniformly():
    assert masking.num_visible(196, 0.6122) == SIMMIM
    cells = masked_of_cells(SIMMIM)
    assert set(np.unique(cells)) == {0, 4} and (cells.sum(axis=(1, 2)) == 120).all()
    np.testing.assert_allclose((cells > 0).mean(axis=0), 30 / 49, atol=0.06)


def test_a_count_that_fills_no_cell_masks_a_part_of_one():
    cells = masked_of_cells(SIMMIM + 3, num=50)
    assert (np.sort(cells.reshape(50, -1), axis=1)[:, 18:21] == (0, 1, 4)).all()
    cells = masked_of_cells(100, num=50, cell=7)
    assert (np.sort(cells.reshape(50, -1), axis=1) == (0, 0, 47, 49)).all()


@pytest.mark.skipif(not ORACLES, reason="DPPMASK_TEST_ORACLES names no folder")
def test_cells_are_masked_as_often_as_by_the_authors_code():
    oracle = np.load(f"{ORACLES}/simmim.npz", allow_pickle=False)
    image, mask_patch, patch, ratio, side, _, num_cells, num_masked = oracle["mask_config"][0]
    assert (image // mask_patch, mask_patch // patch, side) == (7, 2, 7)
    assert num_cells == np.ceil(ratio * 49) and 196 - num_masked == SIMMIM
    cells = masked_of_cells(SIMMIM) > 0
    np.testing.assert_allclose(cells.mean(axis=0), oracle["cell_inclusion"], atol=0.06)
    both = (cells[:, 0, 0] & cells[:, 0, 1]).mean()
    np.testing.assert_allclose(both, oracle["pair_inclusion_01"], atol=0.05)


def test_the_side_of_a_cell_is_a_field():
    images = np.zeros((3, 64, 64, 3), np.uint8)
    mask = masking.export_masks(images, strategy="cells", ratio=0.5, cell=2).mask
    of_cells = mask.reshape(3, 2, 2, 2, 2).sum(axis=(2, 4))
    assert set(np.unique(of_cells)) == {0, 4}
    with pytest.raises(ValueError, match="cell must be a whole number from 1"):
        masking.export_masks(images, strategy="cells", cell=0)
    with pytest.raises(ValueError, match="cell must be at least 1"):
        whole_cells.cells(jax.random.key(0), (4, 4), 4, cell=0)
