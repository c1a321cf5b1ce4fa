"""ADIOS: the mask network, the two losses, the two turns of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import config_dict

from dppmask_jax import config as configs
from dppmask_jax import parallel
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.figures.soft_masks import occluded, soft_mask_figure, training_figure
from dppmask_jax.losses import contrastive, occlusion
from dppmask_jax.methods import METHODS, adios
from dppmask_jax.methods.adios_objectives import covered_error
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import unet
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.unet import MaskNetwork
from dppmask_jax.runs import checkpoint, soft_masks
from dppmask_jax.runs.run import load_run
from dppmask_jax.runs.workdir import to_json
from dppmask_jax.training.step import init_state, make_step

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
    "masks__sampled": False,
    "optim__kind": "sgd",
    "optim__base_lr": 0.01,
    "optim__warmup_epochs": 0.0,
    "masks__optim__kind": "sgd",
    "masks__optim__base_lr": 0.01,
    "masks__optim__warmup_epochs": 0.0,
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
    batch = tiny.batch_of_pairs()
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
    params, batch = built()[2], tiny.batch_of_pairs()
    for one, two, four in zip(*(gradients(n) for n in (1, 2, 4)), strict=True):
        (loss, metrics), gradient = one(params, batch)
        for many in (two, four):
            found = many(params, batch)
            np.testing.assert_allclose(found[0][0], loss, rtol=1e-5)
            for name, value in metrics.items():
                # A cosine near 0 is as exact as one near 1.
                least = 1e-5 if name.endswith("cosine") else 0
                np.testing.assert_allclose(
                    found[0][1][name], value, rtol=1e-5, atol=least, err_msg=name
                )
            for a, b in zip(*map(jax.tree.leaves, (gradient, found[1])), strict=True):
                np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max() + 1e-8)


def test_one_mask_of_each_image_is_drawn_anew_in_both_turns():
    """ADIOS-s."""
    masks = np.broadcast_to(np.arange(3.0)[None, :, None, None], (600, 3, 2, 2))
    keys = jax.random.split(KEY, 600)
    draw = jax.jit(adios.covering, static_argnums=(0, 3))
    for sampled in (False, True):
        config = tiny.config("adios", masks__sampled=sampled)
        settings = config_dict.FrozenConfigDict(config)
        first, second = (np.asarray(draw(settings, masks, keys, turn)) for turn in (0, 1))
        if not sampled:
            assert np.array_equal(first, masks) and np.array_equal(second, masks)
    assert first.shape == (600, 1, 2, 2)
    numbers = first[:, 0, 0, 0], second[:, 0, 0, 0]
    for drawn in numbers:
        shares = np.bincount(drawn.astype(int), minlength=3) / 600
        np.testing.assert_allclose(shares, 1 / 3, atol=0.08)  # 4 standard errors
    assert np.mean(numbers[0] == numbers[1]) == pytest.approx(1 / 3, abs=0.08)


@pytest.mark.slow
def test_an_encoder_that_paints_what_is_hidden():
    changes = {"loss__objective": "reconstruct", "masks__sampled": True}
    _, method, params, extra = built(**changes)
    of_encoder, of_masks = gradients(1, **changes)
    batch = tiny.batch_of_pairs()
    assert method.turns[0].trains == {"encoder", "decoder"} and extra == {}
    (before, metrics), gradient = of_encoder(params, batch)
    assert metrics == {}  # nothing is compared, so nothing can collapse
    params = moved(params, gradient, ("encoder", "decoder"), 1e-4)
    assert of_encoder(params, batch)[0][0] < before
    (loss, _), gradient = of_masks(params, batch)
    assert of_masks(moved(params, gradient, ("masks",)), batch)[0][0] < loss
    method.watch()(0, {"loss": 1.0})


@pytest.mark.slow
def test_running_statistics_follow_both_views_and_are_what_is_evaluated():
    changes = {
        "model__encoder": "resnet", "model__patch_size": 32, "image_size": (32, 32),
        "model__resnet_width": 4, "masks__optim__base_lr": 1e-6,
    }  # fmt: skip
    _, method, params, extra = built(**changes)
    batch, images = tiny.batch_of_pairs(side=32), {}
    module = method.encoder.module
    images[0], images[1] = (normalize(batch["global_views"][:, view]) for view in (0, 1))
    masks = method.soft_masks(params, extra, batch["global_views"][:, 1])

    @jax.jit
    def followed(images):
        variables = {"params": params["encoder"], **extra}
        apply = functools.partial(module.apply, variables, mutable=[STATISTICS])
        return jax.vmap(lambda x: apply(x)[1], axis_name=parallel.AXIS)(images[None])

    lots = [images[1] * (1 - masks[:, n, ..., None]) for n in range(3)]
    whole, *occluded = (jax.tree.map(lambda x: x[0], followed(x)) for x in (images[0], *lots))
    expected = jax.tree.map(lambda w, *o: (w + sum(o) / 3) / 2, whole, *occluded)

    step = make_step(method, devices=jax.devices()[:1])
    state = init_state(method, KEY)._replace(params=params, extra=extra)
    after, _ = step(state, split(batch, 1), KEY)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), after.extra, expected
    )
    of_encoder = method.encoder_of(after.params, after.extra)
    assert set(of_encoder) == {*params["encoder"], STATISTICS}
    again = method.with_encoder(params, extra, of_encoder)
    jax.tree.map(np.testing.assert_array_equal, again[1], dict(after.extra))
    jax.tree.map(np.testing.assert_array_equal, again[0]["encoder"], dict(after.params["encoder"]))


@pytest.mark.slow
def test_a_step_of_micro_batches_is_their_mean_on_any_devices():
    """Not one large batch: an image is told from those of its micro-batch."""
    _, method, params, extra = built()
    batch = tiny.batch_of_pairs(16)
    found = []
    for devices, accum_steps in ((1, 1), (1, 2), (2, 2)):
        step = make_step(method, accum_steps=accum_steps, devices=jax.devices()[:devices])
        state = init_state(method, KEY)._replace(params=params, extra=extra)
        # Each device's micro-batches are its first and its second half.
        order = np.arange(16).reshape(accum_steps, devices, -1).swapaxes(0, 1).ravel()
        ordered = jax.tree.map(lambda x, order=order: x[order], batch)
        found.append(jax.device_get(step(state, split(ordered, devices), KEY)[0].params))
    whole, halves, spread = found
    leaves = lambda tree: zip(jax.tree.leaves(halves), jax.tree.leaves(tree))  # noqa: B905, E731
    for one, other in leaves(spread):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in leaves(whole)) > 1e-4


@pytest.mark.slow
def test_a_run_goes_on_with_both_optimisers(tmp_path):
    changes = {"model__depth": 1, "epochs": 0.34, "evaluate__every_epochs": 0.0}
    changes |= {"checkpoint__every": 2, "evaluate__figure_images": 2, "optim__warmup_epochs": 0.0}
    config = tiny.config("adios", **changes, masks__optim__warmup_epochs=0.0)
    run = tiny.trained_and_gone_on(config, tmp_path)
    assert len(checkpoint.read_newest(run, ("opt_state",))[1]["opt_state"]) == 2
    assert {path.name for path in (run / "figures").iterdir()} == {
        "adios_masks.png", "adios_masks_over_training.png", "attention.png", "curves.png",
    }  # fmt: skip


def test_the_decoder_paints_all_channels_of_all_pixels_of_a_patch():
    _, method, _, _ = built(loss__objective="reconstruct")
    decoder = jax.eval_shape(method.init, KEY)[0]["decoder"]
    assert decoder["pred"]["bias"].shape == (4 * 4 * 3,)
    assert [turn.trains for turn in method.turns] == [{"encoder", "decoder"}, {"masks"}]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": (36, 36)}, r"config.image_size=\(36, 36\): the mask network halves images"),
        ({"image_size": (8, 8)}, "take sides from 16 px up that are multiples of 4"),
        ({"masks__width": 12}, "config.masks.width=12 is not a multiple of 8"),
        ({"masks__count": 1}, "config.masks.count=1 is not allowed: a whole number from 2"),
        ({"optim__accum_steps": 8}, "without negatives.*loss.objective=reconstruct"),
        ({"masks__optim__warmup_epochs": 5.0}, "config.masks.optim.warmup_epochs=5: too long"),
        (
            {"loss__objective": "reconstruct", "model__encoder": "resnet",
             "model__patch_size": 32, "image_size": (32, 32)},
            "config.model.encoder='resnet' has no tokens for",
        ),
        (
            {"loss__objective": "reconstruct", "model__decoder_width": 6},
            "config.model.decoder_width=6 is not a multiple",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        configs.check(tiny.config("adios", **changes))


# The figures.


def test_what_a_mask_hides_is_the_mean_colour():
    image = np.full((2, 2, 3), 200, np.uint8)
    shown = occluded(image, np.asarray([[0.0, 1.0], [0.5, 0.5]]))
    mean = 255 * np.asarray([0.485, 0.456, 0.406])
    np.testing.assert_array_equal(shown[0, 0], 200)
    np.testing.assert_array_equal(shown[0, 1], np.round(mean))
    np.testing.assert_array_equal(shown[1, 1], np.round((200 + mean) / 2))


def test_kept_checkpoints_that_are_whole_are_drawn(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    config, method, params, extra = built()
    checkpoints = checkpoint.Checkpoints(tmp_path / checkpoint.FOLDER, keep=3)
    meta = {"config": to_json(config), "history": ()}
    trees = [params] + [{**params, "masks": tiny.filled(params["masks"], seed)} for seed in (1, 2)]
    for step, tree in zip((3, 5, 9), trees, strict=True):
        checkpoints.save(step, {"params": tree, "extra": extra}, meta)
    checkpoints.close()
    (tmp_path / checkpoint.FOLDER / "5" / "meta" / "metadata").write_text("{}")
    traced, draw = [], adios._Game.masks
    monkeypatch.setattr(adios._Game, "masks", lambda *args: traced.append(1) or draw(*args))
    drawn = soft_masks.over_training(tmp_path, images)
    assert list(drawn) == [3, 9] and len(traced) == 1  # all are drawn by one program
    assert soft_masks.over_training(tmp_path / "none", images) == {}
    for step, tree in ((3, trees[0]), (9, trees[2])):
        expected = method.soft_masks(tree, extra, images)
        np.testing.assert_allclose(drawn[step], expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match=r"there is no whole checkpoint .*5"):
        load_run(tmp_path, step=5)
    with pytest.raises(InputError, match=r"there is no whole checkpoint .*4"):
        load_run(tmp_path, step=4)
    assert training_figure(images, drawn).get_size_inches().min() > 0
    with pytest.raises(ValueError, match="masks has 2 rows for 1 images"):
        soft_mask_figure(images[:1], drawn[9])
