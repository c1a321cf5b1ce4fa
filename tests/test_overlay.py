"""Paired image overlay: who is mixed with whom, what is predicted, and on how many devices."""

import functools
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
import tiny
from reference_mae import predict

from configs import overlay as recipe
from dppmask_jax import config as configs
from dppmask_jax import masking, parallel, patches
from dppmask_jax.data.images import augment, mixing
from dppmask_jax.errors import InputError
from dppmask_jax.figures import restored
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.methods import corruptions, mae, overlay
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import resnet_decoder
from dppmask_jax.models.resnet_module import SHAPES, Shape
from dppmask_jax.models.sizes import Size
from dppmask_jax.optim import Optimizer
from dppmask_jax.runs.run import Run, load_run
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(7)
NAMES = ("pixels", "autoaugment", "none")
SIZE = Size(24, 1, 2)
SMALL = {"model.width": 24, "model.depth": 1, "model.heads": 2}


def config(argument="", **changes):
    built = recipe.get_config(f"dataset=shapes,{argument}")
    fields = tiny.OVERRIDES["mae"] | SMALL
    built.update_from_flattened_dict(
        fields | {name.replace("__", "."): value for name, value in changes.items()}
    )
    configs.check(built)
    return built


def batch_of(size=4, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
    numbers = np.arange(size, dtype=np.int32)
    zeros = np.zeros(size, np.int32)
    return {"image": images, "label": zeros, "index": numbers, "row": numbers, "bad": zeros > 0}


def mixed_batch(batch, by):
    """A batch as `before_step` leaves it where the others are `by` places in front."""
    others = {
        corruptions._OTHERS[name]: np.roll(batch[name], by, axis=0) for name in corruptions._OTHERS
    }
    return batch | others


@functools.cache
def built(argument="", **changes):
    given = config(argument, **changes)
    method = overlay.build(given, Plan(5, 10))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=1)
    return given, method, params, extra


def over_devices(fn, number, batch, key=KEY):
    """`fn(batch, key)` on some devices, each with its part of the batch; their results in a row."""
    split = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), batch)
    found = jax.pmap(
        fn, axis_name=parallel.AXIS, in_axes=(0, None), devices=jax.devices()[:number]
    )(split, key)
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), found)


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_the_rows_of_all_devices_roll_together(devices):
    rows = {"a": np.arange(12), "b": np.arange(24, dtype=np.uint8).reshape(12, 2)}
    for places in range(12):
        found = over_devices(parallel.roll, devices, rows, np.int32(places))
        for name, values in rows.items():
            np.testing.assert_array_equal(found[name], np.roll(values, places, axis=0))


def test_nobody_is_its_own_other_and_devices_agree():
    batch, met = batch_of(8), set()
    for step in range(40):
        key = jax.random.fold_in(KEY, step)
        one, two, four = (over_devices(corruptions.with_others, n, batch, key) for n in (1, 2, 4))
        jax.tree.map(np.testing.assert_array_equal, one, two)
        jax.tree.map(np.testing.assert_array_equal, one, four)
        others = one["other_index"]
        assert sorted(others) == list(range(8)) and not np.any(others == batch["index"])
        np.testing.assert_array_equal(one["other_image"], batch["image"][others])
        met.add(int(others[0]))
    assert met == set(range(1, 8))


def test_a_pair_mixes_each_with_the_other():
    found = over_devices(corruptions.with_others, 2, batch_of(2))
    assert found["other_index"].tolist() == [1, 0]


def test_mixing_by_hand_and_alpha_0_is_the_image_itself():
    images, others = np.random.default_rng(0).random((2, 3, 4, 4, 3), np.float32)
    np.testing.assert_allclose(
        mixing.overlay(images, others, 0.3), 0.3 * others + 0.7 * images, rtol=1e-6
    )
    assert mixing.overlay(images, others, 0.0) is images
    for alpha in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            mixing.overlay(images, others, alpha)


def test_mixing_commutes_with_normalisation():
    images, others = np.random.default_rng(0).random((2, 3, 4, 4, 3), np.float32)
    np.testing.assert_allclose(
        augment.normalize(mixing.overlay(images, others, 0.4)),
        mixing.overlay(augment.normalize(images), augment.normalize(others), 0.4),
        atol=2e-6,
    )


def written_out_loss(given, params, batch, by, weight):
    """The loss as the docstrings have it, image by image in float64."""
    count, number = round(16 * (1 - given.mask.ratio)), len(batch["image"])
    reference = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    clean, mask_keys = [], []
    for image, index in zip(batch["image"], batch["index"], strict=True):
        flip_key, mask_key, _ = jax.random.split(jax.random.fold_in(KEY, index), 3)
        image = image[:, ::-1] if jax.random.bernoulli(flip_key) else image
        clean.append((image / 255.0 - np.array(MEAN)) / np.array(STD))
        mask_keys.append(mask_key)
    assert not np.array_equal(clean, (batch["image"] / 255.0 - MEAN) / STD), "one is flipped"
    sums = np.zeros(2)
    for i, image in enumerate(clean):
        cut = np.asarray(patches.patchify(image[None], 4)[0], np.float64)
        order = np.arange(16)
        if given.mask.ratio:
            projection = reference["encoder"]["patch_embed"]["proj"]
            tokens = cut @ projection["kernel"] + projection["bias"]
            tokens = np.float32(tokens + patches.sincos_positions((4, 4), 24))
            order = np.asarray(masking.dpp(mask_keys[i], tokens, count, given.mask.tau)[0].order)
        mixed = given.data.alpha * clean[(i - by) % number] + (1 - given.data.alpha) * image
        pred = predict(
            reference, mixed, order, count, patch_size=4, encoder=SIZE, decoder=(32, 1, 2)
        )
        error = ((pred - cut) ** 2).mean(axis=1)
        sums += error[order[count:]].sum(), error[order[:count]].sum()
    masked, visible = number * (16 - count), number * count
    return (sums[0] + weight * sums[1]) / (masked + weight * visible)


@pytest.mark.parametrize(
    "argument,weight,counted", [("", None, 1.0), ("mask=dpp", None, 1.0), ("mask=dpp", 0.25, 0.25)]
)
def test_the_loss_is_the_method_written_out(argument, weight, counted):
    """The image alone is the target, and alone is what the mask is drawn from."""
    given, method, params, extra = built(argument, loss__visible_weight=weight)
    batch = batch_of()
    loss, (metrics, _) = jax.jit(method.turns[0].loss)(params, extra, mixed_batch(batch, 1), KEY, 0)
    np.testing.assert_allclose(loss, written_out_loss(given, params, batch, 1, counted), rtol=1e-4)
    assert ("num_greedy" in metrics) == bool(argument)
    assert (method.masks is None) == (not argument) == (method.reconstruct is None)


def test_with_alpha_0_and_masks_it_is_mae():
    given, method, params, extra = built("mask=random,alpha=0")
    assert overlay.visible_weight(given) == 0.0
    assert method.before_step(batch_of(), KEY).keys() == batch_of().keys()
    of_mae = mae.build(given, Plan(5, 10))
    ours, theirs = (
        jax.jit(m.turns[0].loss)(params, extra, batch_of(), KEY, 0)[0] for m in (method, of_mae)
    )
    assert float(ours) == float(theirs)


def test_the_weighted_loss_by_hand():
    errors = jnp.asarray([[1.0, 2.0, 4.0]])
    masked = jnp.asarray([[False, True, True]])

    def loss(pred, target, chosen):
        return jnp.sum(jnp.where(chosen, pred - target, 0)) / jnp.sum(chosen)

    found = [overlay.weighted(loss, weight, errors, 0.0, masked) for weight in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(found, [3.0, 6.5 / 2.5, 7 / 3], rtol=1e-6)


def test_a_thrown_patch_enters_neither_the_input_nor_the_loss(monkeypatch):
    """Patches 10 to 15 of each image, of which the last three are thrown."""

    def draw(keys, count, seen, most):
        order = jnp.tile(jnp.arange(16, dtype=jnp.int32), (len(keys), 1))
        return jax.vmap(lambda order: masking.base.mask_from(order, count, 3))(order), {}

    masker = masking.Masker(draw, frozenset(), "last", num_thrown=lambda number: 3)
    monkeypatch.setitem(masking.MASKERS, "last", masking.MaskerKind(lambda mask: masker))
    given = config("mask=random", mask__ratio=6 / 16, data__flip=False)
    given.mask.strategy = "last"
    method = overlay.build(given, Plan(5, 10))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=1)
    loss = jax.jit(method.turns[0].loss)

    def with_changed(patch):
        batch = batch_of()
        row, column = divmod(patch, 4)
        batch["image"][:, 4 * row :, 4 * column :][:, :4, :4] //= 2
        return float(loss(params, extra, mixed_batch(batch, 1), KEY, 0)[0])

    found = [with_changed(patch) for patch in (13, 15, 9, 12)]
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.slow
def test_a_step_on_four_devices_is_that_on_one_with_micro_batches_too():
    _, method, *_ = built("mask=random")
    method = tiny.with_optimizer(method, Optimizer(optax.sgd(1.0), lambda step: 0.1))
    batch, found = batch_of(8), []
    for devices, accum_steps in ((1, 1), (4, 2)):
        step = make_step(method, accum_steps=accum_steps, devices=jax.devices()[:devices])
        state = init_state(method, jax.random.key(0))
        split = jax.tree.map(lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), batch)
        state, metrics = step(jax.device_get(state), split, KEY)
        found.append((jax.device_get(state.params), float(metrics["loss"])))
    (one, loss), (several, same) = found
    assert same == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), several, one)


@pytest.mark.parametrize(
    "words,changes",
    [
        ("config.data.alpha=0.5 is not allowed: a number from 0 to below 0.5", {"data.alpha": 0.5}),
        ("config.data.alpha=-0.1", {"data.alpha": -0.1}),
        ("config.data.alpha=nan", {"data.alpha": float("nan")}),
        ("batch_size=1 with config.optim.accum_steps=1 makes batches of", {"batch_size": 1}),
        ("accum_steps=8 makes batches of validation of one image", {"optim.accum_steps": 8}),
        ("visible_weight=0 leaves nothing to predict", {"loss.visible_weight": 0.0}),
        ("visible_weight=-1.0", {"loss.visible_weight": -1.0}),
        ("leaves no visible patch", {"mask.ratio": 0.99}),
        ("decoder_width=30", {"model.decoder_width": 30}),
        ("Overlay has no head that predicts losses", {"mask.strategy": "hard"}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(words, changes):
    given = config()
    given.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as error:
        configs.check(given)
    assert any(part in str(error.value) for part in words.split("|"))
    assert "\n" not in str(error.value)


def test_a_batch_of_one_is_allowed_without_overlay():
    configs.check(config("mask=random", data__alpha=0.0, batch_size=1))
    configs.check(config("corruption=pixels", batch_size=1))


def test_the_baselines_corrupt_what_is_seen_and_not_what_is_predicted():
    """A step's images beside its target, where what a ViT gives is known without one."""
    batch = batch_of() | {"changed": 255 - batch_of()["image"]}
    given = {name: config(f"corruption={name}", data__zeroed=25.0) for name in NAMES}
    found = {name: corruptions.build(given[name]).of(batch, KEY) for name in NAMES}
    for name, (views, seen) in found.items():
        np.testing.assert_array_equal(views.raw, found["none"][0].raw, err_msg=name)
        pixels = np.round(255 * np.asarray(augment.denormalize(seen))).astype(int)
        clean = np.asarray(views.raw, int)
        if name == "none":
            np.testing.assert_array_equal(pixels, clean)
        elif name == "pixels":
            zeroed = np.all(pixels == 0, axis=-1)
            np.testing.assert_array_equal(pixels, np.where(zeroed[..., None], 0, clean))
            assert zeroed.sum(axis=(1, 2)).tolist() == [64] * 4 and not np.array_equal(*zeroed[:2])
        else:
            np.testing.assert_array_equal(pixels, 255 - clean, err_msg="mirrored with the image")


def test_auto_augment_leaves_the_image_and_its_crop_as_they_were():
    method = overlay.build(config("corruption=autoaugment"), Plan(5, 10))
    plain = overlay.build(config("corruption=none"), Plan(5, 10))
    assert method.loss_of_views and not plain.loss_of_views
    data = encoded(np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    made = [m.example(data, np.random.default_rng(3)) for m in (method, plain)]
    np.testing.assert_array_equal(made[0]["image"], made[1]["image"])
    assert made[0]["changed"].dtype == np.uint8 and "changed" not in made[1]
    many = [method.example(data, np.random.default_rng(seed)) for seed in range(8)]
    assert any(not np.array_equal(one["image"], one["changed"]) for one in many)
    pickle.loads(pickle.dumps(method.example))  # worker processes get it


def encoded(image):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("argument", ["", "mask=random", "corruption=pixels"])
def test_a_figure_shows_what_was_done_and_what_was_made_of_it(argument, monkeypatch):
    """With a weight for visible patches, all are as they were predicted."""
    given, _, params, extra = built(argument)
    run = Run(given, params, extra, 0)
    images, shown = batch_of(3)["image"], []
    monkeypatch.setattr(restored, "compose", lambda *args, **more: shown.extend((*args, more)))
    restored.restored_figure(run, images)
    panels, titles, captions, _, more = shown
    assert len(panels) == 3 and {len(row) for row in (*panels, *captions, titles)} == {3}
    size = panels[0][0].shape[0] // 16
    original, seen = (np.stack([row[i] for row in panels])[:, ::size, ::size] for i in (0, 1))
    np.testing.assert_array_equal(original, images)
    if not argument:
        mixed = 0.3 * np.roll(images, -1, axis=0) + 0.7 * images
        np.testing.assert_allclose(seen, mixed, atol=0.51)
        order = np.tile(np.arange(16, dtype=np.int32), (3, 1))
        changed = np.asarray(run.restored(np.float32(mixed / 255), order))
        assert not np.any(np.all(np.isclose(changed, mixed / 255, atol=1e-4), axis=-1))
    if argument == "corruption=pixels":
        zeroed = np.all(seen == 0, axis=-1)
        assert zeroed.sum(axis=(1, 2)).tolist() == [3] * 3
    assert ("1 % of the pixels" in more["note"]) == (argument == "corruption=pixels")


def resnet_config(**changes):
    small = {"model__resnet": "18", "model__resnet_width": 4, "image_size": (32, 32)}
    small |= {"model__patch_size": 32, "data__source": "shapes:size=32,train=96,val=24"}
    return config("form=resnet", **small | changes)


def resnet_batch(size=8):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    return batch_of(size) | {"image": image}


@pytest.mark.parametrize(
    "words,changes",
    [
        ("has no tokens that could be left out", {"mask.ratio": 0.5}),
        ("config.loss.norm_pix=True: ", {"loss.norm_pix": True}),
        ("config.loss.target=hog: ", {"loss.target": "hog"}),
        ("config.loss.visible_weight=1.0: ", {"loss.visible_weight": 1.0}),
        ("config.model.patch_size=16", {"model.patch_size": 16}),
    ],
)  # fmt: skip
def test_what_a_resnet_cannot_do_is_refused_in_one_line(words, changes):
    given = resnet_config()
    given.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as error:
        configs.check(given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_resnet_hides_nothing_and_keeps_statistics_that_a_step_changes():
    method = overlay.build(resnet_config(), Plan(5, 10))
    params, extra = jax.eval_shape(method.init, jax.random.key(0))
    assert (method.masks, method.features, method.reconstruct) == (None, None, None)

    def on_a_device(batch, params, extra):
        batch = method.before_step(batch, KEY)
        return method.turns[0].loss(params, extra, batch, KEY, 0)

    on_devices = jax.vmap(on_a_device, axis_name=parallel.AXIS, in_axes=(0, None, None))
    split = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), resnet_batch())
    loss, (_, aux) = jax.eval_shape(on_devices, split, params, extra)
    assert loss.shape == (2,)
    assert jax.tree.structure(method.after_step(params, extra, aux, 0)) == jax.tree.structure(extra)
    images = jax.eval_shape(method.restore, params, extra, resnet_batch(1)["image"], None)
    assert images.shape == (1, 32, 32, 3)


@pytest.mark.slow
def test_a_resnets_loss_is_that_of_all_pixels_and_its_step_is_that_of_one_device(monkeypatch):
    monkeypatch.setitem(SHAPES, "18", Shape((1, 1, 1, 1), False))
    given = resnet_config(optim__kind="sgd")
    method = overlay.build(given, Plan(5, 10))
    start, batch, found = init_state(method, jax.random.key(0)), resnet_batch(), []
    net = resnet_decoder.autoencoder(given)

    def by_hand(batch, params, statistics, key):
        _, images = corruptions.build(given).of(batch, key)
        return net.train(params, statistics, images)[0]

    for devices in (1, 4):
        step = make_step(method, devices=jax.devices()[:devices])
        split = jax.tree.map(lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), batch)
        state, metrics = step(jax.device_get(start), split, KEY)
        found.append((jax.device_get((state.params, state.extra)), float(metrics["loss"])))
    (one, loss), (four, same) = found
    assert same == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one, four)
    changed = jax.tree.map(lambda a, b: np.any(a != b), one[1], jax.device_get(start.extra))
    assert all(jax.tree.leaves(changed)), "running statistics follow"
    key = jax.random.fold_in(KEY, 0)
    mixed = over_devices(corruptions.with_others, 1, batch, key)
    pred = jax.pmap(
        by_hand, axis_name=parallel.AXIS, in_axes=(0, None, None, None), devices=jax.devices()[:1]
    )(
        jax.tree.map(lambda x: x[None], mixed),
        *jax.device_get((start.params, start.extra["batch_stats"])),
        key,
    )[0]
    seen = np.asarray(corruptions.build(given).of(mixed, key)[0].raw, np.float64) / 255
    assert loss == pytest.approx(np.mean((np.asarray(pred, np.float64) - seen) ** 2), rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_is_evaluated(tmp_path):
    """The last two of four steps anew, from the checkpoint before them."""
    given = config(
        "alpha=0.3", epochs=4 * 8 / 96, checkpoint__every=2, optim__warmup_epochs=0.0,
        evaluate__loss_images=20, evaluate__figure_images=2,
    )  # fmt: skip
    workdir = tiny.trained_and_gone_on(given, tmp_path)
    run = load_run(workdir)
    assert not run.has_masks and not run.can_reconstruct
    drawn = {path.name for path in (workdir / "figures").iterdir()}
    assert drawn == {"restored.png", "attention.png", "curves.png"}
    assert run.encode(batch_of(2)["image"])["patches"].shape == (2, 16, 24)
