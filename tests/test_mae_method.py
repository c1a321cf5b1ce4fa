import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from reference_mae import predict

from dppmask_jax import dpp, masking, optim, parallel, patches
from dppmask_jax.data.images import augment
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.methods import mae, single_view
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import encoders
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.targets import hog
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(7)


def batch_of(size=8, seed=0, first=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
        "label": np.zeros(size, np.int32),
        "index": np.arange(first, first + size, dtype=np.int32),
        "row": np.arange(first, first + size, dtype=np.int32),
        "bad": np.zeros(size, bool),
    }


def built(**changes):
    config = tiny.config(**changes)
    method = mae.build(config, Plan(5, 10))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=1)
    return config, method, params, extra


@jax.jit
def _drawn(key, index):
    flip_key, mask_key, _ = jax.random.split(jax.random.fold_in(key, index), 3)
    return jax.random.bernoulli(flip_key), mask_key


def written_out_loss(config, params, batch, key):
    """The loss as the paper has it, image by image in float64, with the masks drawn anew."""
    count, patch = single_view.visible_count(config), config.model.patch_size
    grid = patches.grid_shape((16, 16), patch)
    reference = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    size = SIZES[config.model.size]
    decoder = (config.model.decoder_width, config.model.decoder_depth, config.model.decoder_heads)
    draw = {
        "dpp": jax.jit(lambda key, x: masking.dpp(key, x, count, config.mask.tau)[0]),
        "random": jax.jit(lambda key, x: masking.random(key, grid[0] * grid[1], count)),
        "block": jax.jit(lambda key, x: masking.block(key, grid, count)),
    }
    errors, orders = [], []
    for image, index in zip(batch["image"], batch["index"], strict=True):
        flipped, mask_key = _drawn(key, index)
        image = image[:, ::-1] if config.data.flip and flipped else image
        image = (image / 255.0 - np.array(MEAN)) / np.array(STD)
        cut = np.asarray(patches.patchify(image[None], patch)[0])
        projection = reference["encoder"]["patch_embed"]["proj"]
        tokens = cut @ projection["kernel"] + projection["bias"]
        tokens = tokens + patches.sincos_positions(grid, size.width)
        order = np.asarray(draw[config.mask.strategy](mask_key, np.float32(tokens)).order)
        orders.append(order)
        pred = predict(
            reference, image, order, count, patch_size=patch, encoder=size, decoder=decoder
        )
        target = cut
        if config.loss.norm_pix:
            variance = cut.var(axis=1, ddof=1, keepdims=True)
            target = (cut - cut.mean(axis=1, keepdims=True)) / np.sqrt(variance + 1e-6)
        errors.append(((pred - target) ** 2).mean(axis=1)[order[count:]])
    return np.mean(errors), np.stack(orders)


@pytest.mark.parametrize(
    "strategy,norm_pix,patch_size",
    [
        ("dpp", True, 4),
        pytest.param("dpp", False, 4, marks=pytest.mark.slow),
        pytest.param("random", True, 4, marks=pytest.mark.slow),
        ("block", True, (2, 8)),
    ],
)
def test_loss_equals_the_method_written_out(strategy, norm_pix, patch_size):
    config, method, params, extra = built(
        mask__strategy=strategy, loss__norm_pix=norm_pix, model__patch_size=patch_size
    )
    batch = batch_of(5, first=40)
    loss, (metrics, _) = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, 0)
    expected, orders = written_out_loss(config, params, batch, KEY)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert ("num_greedy" in metrics) == (strategy == "dpp")
    assert len({tuple(sorted(order[:4])) for order in orders}) > 1, "every image has its own mask"


@pytest.mark.slow
def test_gradients_are_those_of_the_same_masks_handed_in():
    config, method, params, extra = built(mask__tau=0.0)
    batch = batch_of()
    grads = jax.jit(jax.grad(method.turns[0].loss, has_aux=True))(params, extra, batch, KEY, 0)[0]
    _, orders = written_out_loss(config, params, batch, KEY)
    model = mae.model_from(config, mae.encoder_from(config))

    def with_given_masks(params):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, batch["index"])
        flip_keys = jax.vmap(lambda k: jax.random.split(k, 3)[0])(keys)
        images = augment.normalize(augment.flip(batch["image"], flip_keys))
        pred = model.apply({"params": params}, images, orders, 4)
        target = patches.patchify(images, 4)
        mean = target.mean(axis=-1, keepdims=True)
        target = (target - mean) / jnp.sqrt(target.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
        error = jnp.mean((pred - target) ** 2, axis=-1)
        return jnp.mean(jnp.take_along_axis(error, orders[:, 4:], axis=1))

    expected = jax.jit(jax.grad(with_given_masks))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6), grads, expected
    )


def test_masks_depend_on_index_and_step_key_not_on_place():
    _, method, params, extra = built(mask__strategy="random", data__flip=False)
    batch = batch_of(2)
    same = {**batch, "image": np.stack([batch["image"][0]] * 2)}
    loss = jax.jit(method.turns[0].loss)
    one = loss(params, extra, jax.tree.map(lambda x: x[:1], same), KEY, 0)[0]
    other = loss(params, extra, jax.tree.map(lambda x: x[1:], same), KEY, 0)[0]
    moved = loss(
        params, extra, jax.tree.map(lambda x: x[1:], same) | {"index": same["index"][:1]}, KEY, 0
    )[0]
    assert one != other and one == moved
    assert one != loss(params, extra, jax.tree.map(lambda x: x[:1], same), jax.random.key(8), 0)[0]


def test_tau_can_be_scheduled():
    _, method, params, extra = built(mask__tau=0.0, mask__tau_end=1.0)
    loss = jax.jit(method.turns[0].loss)
    picks = [
        float(loss(params, extra, batch_of(), KEY, step)[1][0]["num_greedy"])
        for step in (0, 5, 9, 30)
    ]
    assert picks[0] == 4.0 and picks[2] == picks[3] == 0.0 and 0.0 < picks[1] <= 4.0


def test_standardised_features_are_the_kernel_of_standardised_patches():
    config, method, params, extra = built(mask__normalize="standardize", mask__features="pixels")
    images = batch_of(1)["image"]
    features = method.features(params, extra, images)[0]
    given = {name: config.mask[name] for name in ("bandwidth", "normalize")}
    ours = dpp.gaussian_kernel(features, **given)
    cut = np.asarray(patches.patchify(np.asarray(augment.normalize(images)), 4))[0]
    cut = (cut - cut.mean(1, keepdims=True)) / cut.std(1, keepdims=True)
    expected = np.exp(-((cut[:, None] - cut) ** 2).sum(-1) / 1.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-12)
    assert np.median(ours) < 1e-6, "nearly the identity, unlike the L2-normalised kernel"


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_reconstruction_keeps_visible_patches_and_knows_no_others(norm_pix):
    _, method, params, extra = built(loss__norm_pix=norm_pix)
    order = np.stack([np.random.default_rng(i).permutation(16) for i in range(3)])
    visible, hidden = order[:, :4, None], order[:, 4:, None]
    images = batch_of(3)["image"]
    # The same visible patches among other hidden ones, which are darker as well.
    cut = patches.patchify(batch_of(3, seed=1)["image"] // 2, 4).copy()
    kept = np.take_along_axis(patches.patchify(images, 4), visible, axis=1)
    np.put_along_axis(cut, visible, kept, axis=1)
    changed = patches.unpatchify(cut, (4, 4), 4)

    reconstruct = jax.jit(method.reconstruct, static_argnames="borrow_statistics")
    one, other = (np.asarray(reconstruct(params, extra, x, order)) for x in (images, changed))
    assert one.shape == (3, 16, 16, 3) and one.min() >= 0 and one.max() <= 1
    same = np.isclose(patches.patchify(one, 4), patches.patchify(images, 4) / 255, atol=1e-5)
    for b in range(3):
        assert same[b, order[b, :4]].all() and not same[b, order[b, 4:]].all(axis=-1).any()
    np.testing.assert_array_equal(one, other)

    borrowed = [
        np.asarray(reconstruct(params, extra, x, order, borrow_statistics=True))
        for x in (images, changed)
    ]
    # Only a model of standardised patches has anything to borrow.
    assert np.array_equal(*borrowed) != norm_pix
    if norm_pix:
        found, true = (
            np.take_along_axis(patches.patchify(x, 4), hidden, axis=1).mean(axis=2).ravel()
            for x in (borrowed[1], changed / 255)
        )
        assert np.corrcoef(found, true)[0, 1] > 0.9
    else:
        np.testing.assert_array_equal(borrowed[0], one)


def test_hog_is_predicted_from_pixels_that_are_not_normalised(monkeypatch):
    seen = []

    def recording(config):
        target = hog.build(config)
        return target._replace(of=lambda images: seen.append(images) or target.of(images))

    monkeypatch.setitem(mae.TARGETS, "hog", hog.KIND._replace(build=recording))
    _, method, params, extra = built(loss__target="hog", model__patch_size=8)
    assert params["decoder"]["pred"]["kernel"].shape == (32, 27)
    loss, _ = jax.eval_shape(method.turns[0].loss, params, extra, batch_of(), KEY, 0)
    assert loss.shape == () and seen[0].dtype == jnp.uint8 and seen[0].shape == (8, 16, 16, 3)
    assert method.reconstruct is None


def test_encode_sees_every_patch_and_its_shapes():
    _, method, params, _ = built()
    images = batch_of(3)["image"]

    @jax.jit
    def encode(images):
        return encoders.as_dict(method.encoder.encode(params["encoder"], augment.normalize(images)))

    out = encode(images)
    assert out["cls"].shape == (3, 96)
    assert out["patches"].shape == out["patches_prenorm"].shape == (3, 16, 96)
    floats = encode(images.astype(np.float32) / 255)
    np.testing.assert_allclose(out["cls"], floats["cls"], atol=1e-5)
    changed = images.copy()
    changed[0, 12:, 12:] ^= 255
    assert not np.allclose(encode(changed)["cls"][0], out["cls"][0])


@pytest.mark.slow
def test_a_few_steps_lower_the_loss():
    _, method, *_ = built(model__depth=1)
    optimizer = optim.adamw(
        learning_rate=optim.warmup_cosine(2e-3, 0.0, 3, 30), weight_decay=lambda step: 0.05,
        b1=0.9, b2=0.95, epsilon=1e-8, clip=optax.identity(),
    )  # fmt: skip
    method = tiny.with_optimizer(method, optimizer)
    state = parallel.replicate(init_state(method, jax.random.key(0)))
    step = make_step(method)
    losses = []
    for _ in range(30):
        # Smooth pictures, which can be predicted, and the same ones every step.
        batch = batch_of(8)
        ramp = np.linspace(0, 255, 16)
        batch["image"] = (np.zeros((8, 16, 16, 3)) + ramp[:, None, None]).astype(np.uint8)
        state, metrics = step(state, parallel.split_batch(batch), KEY)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:3])
