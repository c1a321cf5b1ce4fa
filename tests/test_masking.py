import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_dpp as reference
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dppmask_jax import dpp, masking, patches


def make_batch(seed, batch=12):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(batch, 24, 6)) + rng.normal(size=(batch, 1, 6))
    return jax.random.split(jax.random.key(seed), batch), features.astype(np.float32)


def check_mask(mask, count):
    """`mask` (batched) is consistent and has `count` (scalar or (B,)) visible patches."""
    order, masked = np.asarray(mask.order), np.asarray(mask.mask)
    batch, num_patches = order.shape
    count = np.broadcast_to(count, (batch,))
    assert (order.dtype, masked.dtype, mask.count.dtype) == (np.int32, np.bool_, np.int32)
    assert np.array_equal(mask.count, count)
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(num_patches), (batch, 1)))
    for row in range(batch):
        assert not masked[row, order[row, : count[row]]].any()
        assert masked[row, order[row, count[row] :]].all()


# Counts.


@pytest.mark.parametrize(
    "ratio,count", [(0.0, 196), (0.5, 98), (0.6, 78), (0.7, 58), (0.75, 49), (0.8, 39), (0.99, 1)]
)
def test_number_of_visible_patches(ratio, count):
    assert masking.num_visible(196, ratio) == count
    assert isinstance(masking.num_visible(196, ratio), int)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), 0.999])
def test_ratios_that_cannot_be(ratio):
    with pytest.raises(ValueError, match="ratio") as error:
        masking.num_visible(196, ratio)
    assert "\n" not in str(error.value)


# Random.


def test_random_is_bit_identical_to_dpp_with_tau_one():
    keys, features = make_batch(0)
    by_random = jax.jit(jax.vmap(lambda key: masking.random(key, 24, 10)))(keys)
    check_mask(by_random, 10)
    for tau in (1.0, jnp.float32(3.0)):
        by_dpp, num_greedy = jax.vmap(lambda k, x, t=tau: masking.dpp(k, x, 10, t))(keys, features)
        jax.tree.map(np.testing.assert_array_equal, by_dpp, by_random)
        assert not np.any(num_greedy)
    below = jax.vmap(lambda k, x: masking.dpp(k, x, 10, 0.5))(keys, features)[0]
    assert not np.array_equal(below.mask, by_random.mask)


def test_random_is_uniform_and_differs_between_images():
    keys = jax.random.split(jax.random.key(1), 4000)
    mask = jax.jit(jax.vmap(lambda key: masking.random(key, 16, 4)))(keys)
    visible = np.sum(~np.asarray(mask.mask), axis=0)
    assert np.abs(visible - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75), visible
    first = np.bincount(np.asarray(mask.order)[:, 0], minlength=16)
    assert np.abs(first - 250).max() < 5 * np.sqrt(250), first
    assert len({row.tobytes() for row in np.asarray(mask.mask)}) > 1500  # of 1820


def test_random_with_a_count_for_each_image():
    keys = jax.random.split(jax.random.key(2), 6)
    counts = jnp.array([0, 1, 7, 12, 23, 24])
    mask = jax.jit(jax.vmap(lambda key, count: masking.random(key, 24, count)))(keys, counts)
    check_mask(mask, counts)


# DPP.


def test_dpp_shows_what_select_chose():
    keys, features = make_batch(3)
    mask, num_greedy = jax.vmap(lambda k, x: masking.dpp(k, x, 10, 0.7))(keys, features)
    order, want_greedy = jax.vmap(lambda k, x: dpp.select(k, x, 10, 0.7))(keys, features)
    check_mask(mask, 10)
    assert np.array_equal(mask.order, order) and np.array_equal(num_greedy, want_greedy)
    assert 0 < np.mean(num_greedy) < 10


def test_dpp_passes_its_options_on():
    keys, features = make_batch(4)
    for options in (
        {"kernel": "cosine"},
        {"bandwidth": 0.3},
        {"threshold_on": "d"},
        {"normalize": "center"},
    ):
        choose = lambda k, x, o=options: masking.dpp(k, x, 10, 0.7, **o)  # noqa: E731
        mask, num_greedy = jax.vmap(choose)(keys, features)
        select = lambda k, x, o=options: dpp.select(k, x, 10, 0.7, **o)  # noqa: E731
        order, want_greedy = jax.vmap(select)(keys, features)
        assert np.array_equal(mask.order, order) and np.array_equal(num_greedy, want_greedy)
        assert not np.array_equal(
            order, jax.vmap(lambda k, x: dpp.select(k, x, 10, 0.7))(keys, features)[0]
        )


def test_dpp_with_a_count_for_each_image_is_the_dpp_of_that_count():
    keys, features = make_batch(5, batch=6)
    counts = jnp.array([1, 2, 5, 9, 10, 3])
    for tau in (0.0, 0.7):
        mask, num_greedy = jax.jit(
            jax.vmap(lambda k, x, n, t=tau: masking.dpp(k, x, n, t, num_keep=10))
        )(keys, features, counts)
        check_mask(mask, counts)
        for i, count in enumerate(np.asarray(counts)):
            noise = np.asarray(jax.random.uniform(keys[i], (24,)))
            order, want_greedy = reference.brute_force_order(
                reference.kernel_matrix(features[i]), noise, int(count), tau
            )
            assert num_greedy[i] == want_greedy
            assert sorted(np.flatnonzero(~np.asarray(mask.mask[i]))) == sorted(order[:count])


def test_dpp_rejects():
    key, features = jax.random.key(0), np.ones((24, 6), np.float32)
    for count, options in [(0, {}), (25, {}), (11, {"num_keep": 10}), (0, {"num_keep": 10})]:
        with pytest.raises(ValueError, match=r"in 1\.\."):
            masking.dpp(key, features, count, **options)
    with pytest.raises(ValueError, match="num_keep"):
        jax.jit(lambda count: masking.dpp(key, features, count))(5)
    for count in (-1, 25):
        with pytest.raises(ValueError, match=r"in 0\.\."):
            masking.random(key, 24, count)
        with pytest.raises(ValueError, match=r"in 0\.\."):
            masking.block(key, (4, 6), count)


# Blocks.


@functools.partial(jax.jit, static_argnums=1)
def block(keys, grid, counts):
    return jax.vmap(lambda key, count: masking.block(key, grid, count))(keys, counts)


@pytest.mark.parametrize("grid", [(14, 14), (4, 9), (1, 12), (1, 1)])
def test_blocks_mask_the_exact_number(grid):
    num_patches = grid[0] * grid[1]
    counts = np.random.default_rng(6).integers(0, num_patches + 1, 64).astype(np.int32)
    counts[:2] = 0, num_patches
    check_mask(block(jax.random.split(jax.random.key(6), 64), grid, counts), counts)


def masked_neighbours(mask, grid):
    """Number of pairs of masked 4-neighbours of each image."""
    mask = np.asarray(mask).reshape(-1, *grid)
    down = np.sum(mask[:, 1:] & mask[:, :-1], axis=(1, 2))
    return down + np.sum(mask[:, :, 1:] & mask[:, :, :-1], axis=(1, 2))


@pytest.mark.parametrize("count", [49, 98, 150])
def test_blocks_hang_together_and_cover_the_image_evenly(count):
    keys = jax.random.split(jax.random.key(7), 400)
    blocks = block(keys, (14, 14), np.full(400, count, np.int32)).mask
    scattered = jax.vmap(lambda key: masking.random(key, 196, count).mask)(keys)
    masked = 196 - count
    pairs = masked_neighbours(blocks, (14, 14)).mean()
    # There are 2 * 14 * 13 pairs of neighbours; in a tight block there are nearly 2 a patch.
    at_random = masked_neighbours(scattered, (14, 14)).mean()
    np.testing.assert_allclose(at_random, 364 * masked * (masked - 1) / (196 * 195), rtol=0.03)
    assert pairs > at_random + 0.4 * (2 * masked - at_random)
    middle = np.asarray(blocks).reshape(400, 14, 14).mean(axis=0)
    # Symmetric on average: no drift towards a corner.
    assert abs(middle[:7].mean() - middle[7:].mean()) < 0.06
    assert abs(middle[:, :7].mean() - middle[:, 7:].mean()) < 0.06
    assert len({row.tobytes() for row in np.asarray(blocks)}) == 400


def test_blocks_hang_together_on_a_grid_that_is_not_square():
    keys = jax.random.split(jax.random.key(12), 200)
    blocks = block(keys, (6, 20), np.full(200, 60, np.int32)).mask
    scattered = jax.vmap(lambda key: masking.random(key, 120, 60).mask)(keys)
    at_random = masked_neighbours(scattered, (6, 20)).mean()
    assert masked_neighbours(blocks, (6, 20)).mean() > 1.6 * at_random


def test_a_first_block_has_the_area_and_aspect_of_the_recipe():
    # With 30 of 400 patches to mask, areas are drawn between (20 // 3)^2 = 36 and 30 and accepted
    # up to 30 after rounding, so that now and then one rectangle is the whole mask.
    keys = jax.random.split(jax.random.key(8), 300)
    mask = np.asarray(block(keys, (20, 20), np.full(300, 370, np.int32)).mask)
    mask = mask.reshape(300, 20, 20)
    heights = mask.any(axis=2).sum(axis=1)
    widths = mask.any(axis=1).sum(axis=1)
    exact = mask.sum(axis=(1, 2)) == heights * widths  # one rectangle and nothing else
    # Accepting whatever is new and trimming it afterwards would leave one in four such.
    assert exact.mean() > 0.5
    aspect = heights[exact] / widths[exact]
    assert aspect.min() >= 0.2 and aspect.max() <= 5
    assert (aspect < 0.7).any() and (aspect > 1.4).any()


def test_blocks_are_reproducible_and_per_image():
    keys = jax.random.split(jax.random.key(9), 8)
    counts = np.full(8, 100, np.int32)
    together = block(keys, (14, 14), counts)
    again = block(keys, (14, 14), counts)
    for first, second in zip(*map(jax.tree.leaves, (together, again)), strict=True):
        assert np.array_equal(first, second)
    alone = jax.vmap(lambda key: masking.block(key, (14, 14), 100))(keys[3:4])
    assert np.array_equal(alone.order[0], together.order[3])


def test_every_strategy_under_shard_map_and_pmap():
    if jax.device_count() < 4:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4")
    devices = jax.devices()[:4]
    mesh = Mesh(np.array(devices), ("batch",))
    keys, features = make_batch(10, batch=8)

    def draw(keys, features):
        return (
            jax.vmap(lambda key: masking.random(key, 24, 10))(keys),
            jax.vmap(lambda key: masking.block(key, (4, 6), 10))(keys),
            jax.vmap(lambda key, x: masking.dpp(key, x, 10, 0.7)[0])(keys, features),
        )

    want = jax.jit(draw)(keys, features)
    spec = P("batch")
    sharded = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec))
    by_shard_map = sharded(keys, features)
    by_pmap = jax.pmap(draw, "batch", devices=devices)(
        keys.reshape(4, 2), features.reshape(4, 2, 24, 6)
    )
    for i in range(3):
        leaves = map(jax.tree.leaves, (want[i], by_shard_map[i], by_pmap[i]))
        for a, b, c in zip(*leaves, strict=True):
            assert np.array_equal(a, b)
            assert np.array_equal(a, np.reshape(c, a.shape))


# Export.


def make_images(batch, height, width, seed=11):
    """Smooth random images, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((batch, height // 16, width // 16, 3))
    images = np.kron(coarse, np.ones((1, 16, 16, 1)))
    return np.uint8(255 * np.clip(images + 0.05 * rng.normal(size=images.shape), 0, 1))


@pytest.mark.parametrize("strategy", ["dpp", "random", "block"])
def test_export_in_pieces_equals_export_at_once(strategy):
    images = make_images(70, 64, 96)
    whole = masking.export_masks(images, strategy=strategy)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(whole))
    assert whole.mask.shape == (70, 24)
    check_mask(whole, 6)
    for first, last in [(0, 10), (60, 70)]:  # of one size: one compilation
        piece = masking.export_masks(images[first:last], strategy=strategy, start_index=first)
        for got, want in zip(*map(jax.tree.leaves, (piece, whole)), strict=True):
            assert np.array_equal(got, want[first:last])
    other = masking.export_masks(images, strategy=strategy, seed=1)
    assert np.mean(np.any(other.mask != whole.mask, axis=1)) > 0.8
    assert len({row.tobytes() for row in whole.mask}) > 40


def test_export_of_floats_equals_export_of_uint8():
    images = make_images(5, 64, 96)
    want = masking.export_masks(images)
    for floats in (images / np.float32(255), images / np.float64(255)):
        assert np.array_equal(masking.export_masks(floats).order, want.order)


def test_export_of_given_features_is_select_with_the_keys_of_the_images():
    images = make_images(5, 64, 96)
    features = np.random.default_rng(12).normal(size=(5, 24, 6)).astype(np.float32)
    mask = masking.export_masks(
        images, features=features, ratio=0.5, tau=0.6, seed=3, start_index=7, bandwidth=0.7
    )
    for i in range(5):
        key = jax.random.fold_in(jax.random.key(3), 7 + i)
        order, num_greedy = dpp.select(key, features[i], 12, 0.6, bandwidth=0.7)
        assert np.array_equal(mask.order[i], order) and mask.num_greedy[i] == num_greedy
    assert mask.num_greedy.min() > 0 and mask.num_greedy.dtype == np.int32


def test_export_warns_of_images_without_a_finite_patch():
    images = make_images(70, 64, 96)
    features = np.random.default_rng(14).normal(size=(70, 24, 6))
    features[2, 3:] = np.inf  # a few patches are left
    features[[5, 66], :, 0] = np.nan
    with pytest.warns(UserWarning, match=r"no patch is finite in 2 of 70 images.*: 5, 66$"):
        mask = masking.export_masks(images, features=features, normalize="center")
    assert mask.num_greedy[2] > 0 and set(np.flatnonzero(mask.num_greedy == 0)) == {5, 66}


def test_export_of_pixels_sees_the_normalised_patches():
    images = make_images(4, 64, 96)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((images / 255 - mean) / std).astype(np.float32)
    pixels = patches.patchify(normalised, 16)
    got = masking.export_masks(images, features="pixels", tau=0.2)
    want = masking.export_masks(images, features=pixels, tau=0.2)
    assert np.array_equal(got.order, want.order)


def test_export_sees_embedding_and_position_by_default():
    # Of an image of one colour only the positions differ: with them several picks are greedy and
    # spread out, without them (raw pixels) all patches are duplicates.
    images = np.full((6, 112, 112, 3), 90, np.uint8)
    by_default = masking.export_masks(images, tau=0.0, patch_size=16, ratio=0.9)
    by_pixels = masking.export_masks(images, tau=0.5, patch_size=16, ratio=0.9, features="pixels")
    at_random = masking.export_masks(images, strategy="random", ratio=0.9)
    assert np.array_equal(by_pixels.order, at_random.order)

    def closest(mask):
        """Mean distance of a visible patch to its nearest visible patch."""
        places = np.stack(np.divmod(mask.order[:, : mask.count[0]], 7), axis=-1)
        apart = np.abs(places[:, :, None] - places[:, None]).sum(-1) + 99 * np.eye(mask.count[0])
        return apart.min(axis=-1).mean()

    assert by_default.count[0] == 4
    assert closest(by_default) > closest(at_random) + 1


@pytest.mark.parametrize(
    "change,message",
    [
        ({"images": np.zeros((64, 96, 3), np.uint8)}, "images must be"),
        ({"images": np.zeros((2, 64, 96, 1), np.uint8)}, "images must be"),
        ({"images": np.zeros((0, 64, 96, 3), np.uint8)}, "images must be"),
        ({"images": np.zeros((2, 64, 96, 3), np.int32)}, "uint8 or float"),
        ({"images": np.full((2, 64, 96, 3), 2.0)}, "lie in"),
        ({"images": np.full((2, 64, 96, 3), np.nan)}, "lie in"),
        ({"images": np.zeros((2, 64, 90, 3), np.uint8)}, "multiple of the patch size"),
        ({"patch_size": 0}, "patch size"),
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": 0.99}, "ratio"),
        ({"strategy": "dp"}, "strategy must be"),
        *[({"tau": tau}, "tau must be") for tau in (float("nan"), -0.1, 1.5)],
        *[({"seed": seed}, "seed must be") for seed in (-1, 2**32, 0.5)],
        ({"tau": [0.5, 0.6]}, "tau must be"),
        ({"start_index": -1}, "start_index must be"),
        ({"features": "pixel"}, "features must be"),
        ({"features": np.zeros((2, 23, 6))}, "features must be"),
        ({"features": np.zeros((2, 24, 6), complex)}, "features must be real"),
        ({"features": np.full((2, 24, 6), None)}, "features must be real"),
        ({"normalize": "l1"}, r"normalize must be l2 \| center \| standardize"),
        ({"kernel": "laplace"}, r"kernel must be gaussian \| cosine"),
        ({"bandwidth": 0.0}, "bandwidth must be"),
        ({"threshold_on": "d3"}, r"threshold_on must be d2 \| d"),
        (
            {"strategy": "attention"},
            "needs a class token's attention, which images alone do not show",
        ),
    ],
)
def test_export_rejects(change, message):
    arguments = {"images": np.zeros((2, 64, 96, 3), np.uint8)} | change
    with pytest.raises(ValueError, match=message) as error:
        masking.export_masks(**arguments)
    assert "\n" not in str(error.value)


def test_export_takes_the_fields_of_its_strategy_by_name():
    images = np.zeros((1, 64, 96, 3), np.uint8)
    masking.export_masks(images, strategy="random", tau=np.float32(0.5), attention="low")
    with pytest.raises(TypeError, match=r"no argument 'bandwith'; did you mean bandwidth\?"):
        masking.export_masks(images, bandwith=1.0)


def test_a_ratio_masks_what_python_says():
    """float32 would say 29 of .29 x 100."""
    assert masking.num_masked(100, 0.29) == 28
    ratios = np.arange(1, 100) / 100
    in_float32 = np.floor(np.float32(ratios) * np.float32(100))
    exact = masking.num_masked(100, ratios)
    assert exact.tolist() == [int(ratio * 100) for ratio in ratios]
    for ratio, number in zip(ratios[exact != in_float32], exact[exact != in_float32], strict=True):
        assert masking.draw_num_masked(jax.random.key(0), 100, (ratio,), (0.0,))[0] == number
    # Drawn at an end of its entry, a number stays within it; else it is the floor of the ratio's.
    keys = jax.random.split(jax.random.key(1), 500)
    number, real = jax.vmap(
        lambda key: masking.draw_num_masked(key, 100, (0.0, 0.29), (0.0, 0.01))
    )(keys)
    assert set(np.asarray(number).tolist()) == {0, 28, 29}
    ratio = jax.vmap(lambda key: masking.draw_ratio(key, (0.0, 0.29), (0.0, 0.01)))(keys)
    np.testing.assert_array_equal(number, np.floor(np.asarray(ratio) * np.float32(100)))
    np.testing.assert_allclose(real, np.asarray(ratio) * 100, rtol=1e-6)
