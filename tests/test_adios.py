"""ADIOS: the mask network, the two losses, the two turns of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax import config as configs
from dppmask_jax import parallel
from dppmask_jax.losses import contrastive, occlusion
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.adios_objectives import covered_error
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import unet
from dppmask_jax.models.unet import MaskNetwork

KEY = jax.random.key(7)
# Views that are only normalised, and steps that are not adapted to each parameter.
PLAIN = {
    "model__width": 24,
    "model__depth": 1,
    "model__heads": 2,
    "data__jitter_prob": 0.0,
    "data__grey_prob": 0.0,
    "data__blur_prob": (0.0, 0.0, 0.0),
    "masks__entropy": 0.5,
    "optim__kind": "sgd",
    "optim__base_lr": 0.01,
    "optim__warmup_epochs": 0.0,
    "masks__optim__kind": "sgd",
    "masks__optim__base_lr": 0.01,
    "masks__optim__warmup_epochs": 0.0,
}


def batch_of(size=8, first=0, side=16):
    rng = np.random.default_rng(first)
    return {
        "global_views": rng.integers(0, 256, (size, 2, side, side, 3), dtype=np.uint8),
        "label": np.zeros(size, np.int32),
        "index": np.arange(first, first + size, dtype=np.int32),
        "row": np.arange(first, first + size, dtype=np.int32),
        "bad": np.zeros(size, bool),
    }


@functools.cache
def built(**changes):
    """(config, method, params, extra), the parameters away from their start."""
    config = tiny.config("adios", **PLAIN | changes)
    configs.check(config)
    method = METHODS["adios"].build(config, Plan(4, 20, peak_lr=0.1))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=2)
    return config, method, params, extra


# The mask network.


@pytest.mark.parametrize(
    ("size", "blocks"), [((32, 32), 4), ((64, 64), 5), ((128, 128), 6), ((224, 224), 6)]
)
def test_the_mask_network_has_the_authors_layers(size, blocks):
    c, n = 8, 4
    assert unet.num_blocks(size) == blocks
    down = [c] * (blocks - 3) + [2 * c] * 3
    up = [2 * c] * 2 + [c] * (blocks - 2)
    convolutions = list(zip([3, *down], down, strict=False))
    before = [2 * c, *up]
    convolutions += [(before[i] + down[-1 - i], up[i]) for i in range(blocks)]
    bottom = 2 * c * (size[0] // 2 ** (blocks - 1)) ** 2
    linear = [(bottom, 128), (128, 128), (128, bottom), (c, n)]
    expected = sum(9 * i * o + 2 * o for i, o in convolutions) + sum(i * o + o for i, o in linear)
    network = MaskNetwork(n, c, "group", blocks)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    params = jax.eval_shape(network.init, KEY, images)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_soft_masks_add_up_to_one_at_each_pixel(norm):
    network = MaskNetwork(3, 8, norm, 3)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    shapes = jax.eval_shape(network.init, KEY, images)["params"]
    params = tiny.filled(shapes, 1)
    assert ("bias" in params["down_0"]["conv"]) == (norm == "none")
    masks = jax.jit(network.apply)({"params": params}, images)
    assert masks.shape == (2, 3, 16, 24) and masks.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(masks, axis=1), 1.0, rtol=1e-6)
    assert np.min(masks) >= 0 and np.std(masks) > 1e-3
    alone = jax.jit(network.apply)({"params": params}, images[:1])
    np.testing.assert_allclose(alone, masks[:1], rtol=1e-4, atol=1e-6)  # no norm mixes images


# The losses.


def nt_xent(first, second, temperature):
    """SimCLR's equation 1, term by term, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    total = 0.0
    for i in range(len(z)):
        similar = np.exp(z @ z[i] / temperature)
        partner = (i + len(first)) % len(z)
        total -= np.log(similar[partner] / (similar.sum() - similar[i]))
    return total / len(z)


def test_simclr_is_that_of_one_batch_on_any_number_of_devices():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 5)).astype(np.float32)
    expected = nt_xent(first, second, 0.2)
    np.testing.assert_allclose(contrastive.simclr(first, second, 0.2), expected, rtol=1e-6)

    def of(first, second, devices):
        split = [x.reshape(devices, -1, 5) for x in (first, second)]
        loss = functools.partial(contrastive.simclr, temperature=0.2, axis_name="d")
        return jnp.mean(jax.vmap(loss, axis_name="d")(*split))

    grad = jax.jit(jax.value_and_grad(of, argnums=(0, 1)), static_argnums=2)
    _, whole = grad(first, second, 1)
    step = 1e-6
    moved = first.astype(np.float64)
    moved[1, 2] += step
    slope = (nt_xent(moved, second, 0.2) - expected) / step
    np.testing.assert_allclose(whole[0][1, 2], slope, rtol=1e-3)
    for devices in (2, 4):
        value, found = grad(first, second, devices)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for one, many in zip(whole, found, strict=True):
            np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-7)


def test_penalties_by_hand():
    shares = jnp.asarray([[0.5, 0.25, 0.25], [1 / 6, 1 / 3, 0.5]])
    root = np.sqrt(2)
    np.testing.assert_allclose(
        occlusion.sparsity(shares), [1.5, (root + 2 / np.sqrt(3)) / 2, (root + 1) / 2], rtol=1e-6
    )
    even = occlusion.negative_entropy(jnp.full((2, 3), 1 / 3))
    np.testing.assert_allclose(even, -np.log(3), rtol=1e-6)
    p = np.exp([1.0, 0.0]) / (np.e + 1)
    found = occlusion.negative_entropy(jnp.asarray([[1.0, 0.0]]))
    np.testing.assert_allclose(found, np.sum(p * np.log(p)), rtol=1e-6)


def test_what_is_covered_counts_as_much_as_it_is_covered():
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 3, 4, 12)).astype(np.float32)
    mask = rng.uniform(size=(3, 4, 4)).astype(np.float32)
    errors = []
    for i in range(3):
        square = np.square(pred[i] - target[i]).reshape(4, 4, 3).mean(axis=-1)
        errors.append(np.average(square, weights=mask[i]))
    np.testing.assert_allclose(covered_error(pred, target, mask), np.mean(errors), rtol=1e-5)


# The turns.


def split(batch, devices):
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


@functools.cache
def gradients(devices, **changes):
    """((params, batch) -> ((loss, metrics), gradient)) of each turn; a vmap stands for devices."""
    _, method, _, extra = built(**changes)

    def of(turn):
        def loss(params, batch):
            one = lambda batch: turn.loss(params, extra, batch, KEY, 0)  # noqa: E731
            values, (metrics, _) = jax.vmap(one, axis_name=parallel.AXIS)(split(batch, devices))
            return jnp.mean(values), jax.tree.map(jnp.mean, metrics)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    return tuple(map(of, method.turns))


def moved(params, gradient, names, rate=1e-3):
    return params | jax.tree.map(
        lambda p, g: p - rate * g, *({n: tree[n] for n in names} for tree in (params, gradient))
    )


def test_the_encoder_lowers_what_the_masks_raise():
    _, method, params, _ = built()
    of_encoder, of_masks = gradients(1)
    assert [turn.trains for turn in method.turns] == [{"encoder", "projector"}, {"masks"}]
    batch = batch_of()
    (before, _), gradient = of_encoder(params, batch)
    assert all(not np.any(x) for x in jax.tree.leaves(gradient["masks"]))  # they are detached
    params = moved(params, gradient, ("encoder", "projector"))
    assert of_encoder(params, batch)[0][0] < before - 1e-4  # with the masks as they were
    (loss, metrics), gradient = of_masks(params, batch)
    after, metrics_after = of_masks(moved(params, gradient, ("masks",)), batch)[0]
    assert after < loss - 1e-4
    config = built()[0]

    def objective(loss, of):  # with the sign turned, and without the entropy term
        return -loss, of["masked_error"] - config.masks.sparsity * of["mask_penalty"]

    for found in (objective(loss, metrics), objective(after, metrics_after)):
        # sum p log p of 3 masks, for 8 images, is nearly that of masks alike
        assert found[0] - found[1] == pytest.approx(-0.5 * 8 * np.log(3), rel=0.02)
    shares = [metrics[f"mask_{n}_share"] for n in range(3)]
    assert np.sum(shares) == pytest.approx(1.0)


@pytest.mark.slow
def test_losses_and_gradients_agree_over_devices():
    params, batch = built()[2], batch_of()
    for one, two, four in zip(*(gradients(n) for n in (1, 2, 4)), strict=True):
        (loss, metrics), gradient = one(params, batch)
        for many in (two, four):
            found = many(params, batch)
            np.testing.assert_allclose(found[0][0], loss, rtol=1e-5)
            for name, value in metrics.items():
                np.testing.assert_allclose(found[0][1][name], value, rtol=1e-5, err_msg=name)
            for a, b in zip(*map(jax.tree.leaves, (gradient, found[1])), strict=True):
                np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max() + 1e-8)
