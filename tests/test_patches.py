import jax.numpy as jnp
import numpy as np
import pytest
import reference_ibot

from dppmask_jax import patches


@pytest.mark.parametrize(
    "shape,patch", [((2, 32, 32, 3), 8), ((1, 24, 40, 3), 4), ((3, 6, 9, 1), 3)]
)
def test_unpatchify_inverts_patchify(shape, patch):
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    cut = patches.patchify(images, patch)
    grid = patches.grid_shape(shape[1:3], patch)
    assert cut.shape == (shape[0], grid[0] * grid[1], patch * patch * shape[3])
    np.testing.assert_array_equal(patches.unpatchify(cut, grid, patch), images)


def test_patchify_order_is_row_column_channel():
    image = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    cut = patches.patchify(image, 2)
    # Second patch of the first row of patches: pixel rows 0-1, columns 2-3.
    expected = [image[0, r, c, ch] for r in (0, 1) for c in (2, 3) for ch in range(3)]
    np.testing.assert_array_equal(cut[0, 1], expected)
    # First patch of the second row.
    assert cut[0, 3, 0] == image[0, 2, 0, 0]


@pytest.mark.parametrize(
    "size,patch", [((224, 224), 15), ((0, 16), 16), ((16, 24), 16), ((8, 8), 0)]
)
def test_grid_shape_refuses_what_does_not_divide(size, patch):
    with pytest.raises(ValueError, match="multiple of the patch size"):
        patches.grid_shape(size, patch)


def test_gather_picks_rows_of_each_example():
    tokens = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    picked = patches.gather(tokens, np.array([[3, 0], [1, 2]]))
    np.testing.assert_array_equal(picked, [tokens[0, [3, 0]], tokens[1, [1, 2]]])


def test_values_from_neighbours_by_hand():
    values = np.array([[[3.0], [1e6], [1e6], [9.0], [1e6], [1e6]]])  # 2 x 3 patches
    order = np.array([[3, 0, 5, 1, 2, 4]])
    out = np.asarray(patches.from_neighbours(values, order, 2, (2, 3)))[0, :, 0]
    # patch 1 is at distance 1 from patch 0 and sqrt(2) from patch 3, patch 5 at sqrt(5) and 2
    np.testing.assert_allclose(out[1], (3 + 9 / 4) / (1 + 1 / 4), rtol=1e-5)
    np.testing.assert_allclose(out[5], (3 / 25 + 9 / 16) / (1 / 25 + 1 / 16), rtol=1e-5)
    np.testing.assert_allclose(out[[0, 3]], [3, 9], rtol=1e-4)


def test_sincos_positions_by_hand():
    # 2 rows, 3 columns, width 8: w = (1, 10000 ** -0.5 = 0.01); column half first.
    positions = patches.sincos_positions((2, 3), 8)
    row, column = 1.0, 2.0
    expected = [
        np.sin(column), np.sin(column * 0.01), np.cos(column), np.cos(column * 0.01),
        np.sin(row), np.sin(row * 0.01), np.cos(row), np.cos(row * 0.01),
    ]  # fmt: skip
    np.testing.assert_allclose(positions[1 * 3 + 2], expected, rtol=1e-6)
    np.testing.assert_allclose(positions[0], [0, 0, 1, 1, 0, 0, 1, 1])
    rows_first = patches.sincos_positions((2, 3), 8, "row")
    np.testing.assert_allclose(rows_first[1 * 3 + 2], expected[4:] + expected[:4], rtol=1e-6)


def test_sincos_rows_have_the_same_norm_and_differ():
    positions = patches.sincos_positions((14, 14), 768)
    np.testing.assert_allclose(np.linalg.norm(positions, axis=1), np.sqrt(384), rtol=1e-6)
    assert len(np.unique(positions, axis=0)) == 196
    assert positions.dtype == np.float32


def test_sincos_refuses_odd_widths():
    with pytest.raises(ValueError, match="multiple of 4"):
        patches.sincos_positions((2, 2), 6)


@pytest.mark.parametrize("old,new", [((14, 14), (6, 6)), ((8, 4), (3, 6)), ((2, 2), (5, 4))])
def test_positions_are_resized_as_the_reference_does(old, new):
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1, 1 + old[0] * old[1], 7)).astype(np.float32)
    resized = patches.resize_positions(jnp.asarray(positions), old, new)
    expected = reference_ibot.resize_positions(positions, old, new)
    np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(resized[:, 0], positions[:, 0])
    assert patches.resize_positions(positions, old, old) is positions
