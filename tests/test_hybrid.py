"""One encoder, two losses: their sum, what is left of it at either end, and what is masked."""

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

from configs import hybrid as recipe
from configs import mae as mae_recipe
from configs import simmim as simmim_recipe
from dppmask_jax import config as configs
from dppmask_jax import parallel
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.fields import flatten
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.methods import augmented_views, hybrid, mae, moco, simmim, single_view
from dppmask_jax.methods.base import Plan
from dppmask_jax.optim import Optimizer
from dppmask_jax.pixel_format import RGB
from dppmask_jax.runs.run import load_run
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(7)
PLAN = Plan(5, 10, 2, 0, 1e-3)
MIM = {"mae": mae, "simmim": simmim}
SMALL = {"model.width": 24, "model.depth": 1, "model.heads": 2, "model.drop_path": 0.0}
# One change of colours, which is quick to compile.
SMALL |= {"data.jitter_prob": 0.0, "data.blur_prob": (0.0, 0.0, 0.0), "data.solarize_prob": 0.0}
SMALL |= {"data.grey_prob": 0.5}


RESNET = {"model.encoder": "resnet", "model.patch_size": 32, "image_size": (32, 32)}


def config(argument="", **changes):
    built = recipe.get_config(f"dataset=shapes,{argument}")
    fields = tiny.OVERRIDES["hybrid"] | SMALL
    built.update_from_flattened_dict(
        fields | {name.replace("__", "."): value for name, value in changes.items()}
    )
    configs.check(built)
    return built


@pytest.mark.parametrize("mim,recipe_of", [("mae", mae_recipe), ("simmim", simmim_recipe)])
def test_a_recipe_is_that_of_its_masked_method(mim, recipe_of):
    """All but the crop, which is that of a separate view, and the token that is probed."""
    for dataset in ("shapes", "small"):
        ours = flatten(recipe.get_config(f"dataset={dataset},mim={mim},mask=amt"))
        theirs = flatten(recipe_of.get_config(f"dataset={dataset},mask=amt"))
        crop = theirs.pop("data.crop_scale")
        assert ours["hybrid.crop_scale"] == crop != ours["data.crop_scale"]
        differ = {name for name, value in theirs.items() if ours[name] != value}
        assert differ <= {"method", "evaluate.loss_images", "epochs", "evaluate.knn_feature"}
        assert ours["evaluate.knn_feature"] == "cls"


def batch_of(size=4, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, 3, 16, 16, 3), dtype=np.uint8)
    numbers = np.arange(size, dtype=np.int32)
    zeros = np.zeros(size, np.int32)
    views = {"image": pixels[:, 0], "global_views": pixels[:, 1:]}
    return {**views, "label": zeros, "index": numbers, "row": numbers, "bad": zeros > 0}


@functools.cache
def built(argument="", **changes):
    given = config(argument, **changes)
    method = hybrid.build(given, PLAN)
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=1)
    return given, method, params, extra


def gradient(method, params, extra, batch, key=KEY, step=3):
    """(loss, metrics, gradient) on one device."""

    def on_a_device(batch, params):
        def loss(params):
            return method.turns[0].loss(params, extra, batch, key, step)

        (value, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, grads

    over = jax.jit(jax.vmap(on_a_device, axis_name=parallel.AXIS, in_axes=(0, None)))
    found = over(jax.tree.map(lambda x: x[None], batch), params)
    return jax.tree.map(lambda x: x[0], found)


def key_data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


MASKED = jax.random.fold_in(KEY, 2**31 + 1)  # the key of the masked loss


def second_view(given, batch):
    """The batch as a method of one view has it where the second augmented view is its image."""
    keys = augmented_views.keys_of_views(given.data, KEY, batch["index"])[:, 0]
    _, image = augmented_views.augmented_globals(given.data, batch, keys)
    return batch | {"image": augment.denormalize(image)}


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["mim=mae,mask=random", "mim=simmim"])
@pytest.mark.parametrize("view", ["shared", "separate"])
def test_the_gradient_is_the_weighted_sum_of_both(argument, view):
    given, method, params, extra = built(argument, hybrid__view=view, hybrid__weight=0.3)
    batch = batch_of()
    loss, metrics, found = gradient(method, params, extra, batch)
    single, seen = given.copy_and_resolve_references(), batch
    if view == "shared":
        seen, single.data.flip = second_view(given, batch), False
    mim = MIM[given.hybrid.mim]
    of_mim = gradient(mim.build(single, PLAN), params, extra, seen, MASKED)
    of_pairs = gradient(moco.build(given, PLAN, mim.encoder_from(given)), params, extra, batch)
    np.testing.assert_allclose(metrics["loss_mim"], of_mim[0], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_contrast"], of_pairs[0], rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * of_mim[0] + 0.3 * of_pairs[0], rtol=1e-5)
    expected = jax.tree.map(lambda a, b: 0.7 * a + 0.3 * b, of_mim[2], of_pairs[2])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected
    )
    for grads in (of_mim[2], of_pairs[2]):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(grads["encoder"]))
    assert "hybrid_weight" not in metrics


def single_of(name, given):
    """The single method at either end."""
    return {"mae": mae, "simmim": simmim, "moco": moco}[name].build(given, PLAN)


ENDS = [
    ("weight=0", {"hybrid__view": "separate"}, "mae"),
    ("weight=0,mim=simmim", {"hybrid__view": "separate"}, "simmim"),
    ("weight=1", {"hybrid__encoder": "moco", "loss__moco_factor": True}, "moco"),
]


@pytest.mark.parametrize("argument,changes,name", ENDS)
def test_at_its_ends_it_is_the_single_method(argument, changes, name):
    """To the bit: its start and its step are compiled from the same text."""
    given = config(argument, **changes)
    texts = []
    for method in (hybrid.build(given, PLAN), single_of(name, given)):
        state = jax.eval_shape(functools.partial(init_state, method), jax.random.key(0))
        batch = jax.tree.map(lambda x: x[None], batch_of())
        step = make_step(method, devices=jax.devices()[:1])
        start = jax.jit(functools.partial(init_state, method)).lower(jax.random.key(0))
        texts.append((start.as_text(), step.lower(state, batch, KEY).as_text()))
    assert texts[0] == texts[1]


def test_a_weight_of_1_with_the_masked_methods_encoder_has_its_optimiser():
    given, method, params, _ = built("weight=1")
    _, both, of_both, _ = built("weight=0.2")
    assert method.masks is None and method.reconstruct is None and "decoder" not in params
    shapes = jax.tree.map(jnp.shape, of_both)
    assert jax.tree.map(jnp.shape, params) == {name: shapes[name] for name in params}
    assert set(shapes) - set(params) == {"decoder"}
    rates = [float(m.turns[0].optimizer.learning_rate(4)) for m in (method, both)]
    of_mae = mae.build(given, PLAN).turns[0].optimizer
    assert rates == [float(of_mae.learning_rate(4))] * 2


def test_a_weight_of_0_has_no_second_loss():
    _, method, params, extra = built("weight=0")
    assert set(params) == {"encoder", "decoder"} and not extra and method.loss_of_views
    assert set(method.schedules) == {"mask.tau"} and method.masks


@pytest.mark.slow
def test_a_weight_of_0_of_a_shared_view_is_the_loss_of_that_view():
    given, method, params, extra = built("weight=0")
    batch = batch_of()
    loss, metrics, _ = gradient(method, params, extra, batch)
    given.data.flip = False
    seen = second_view(given, batch)
    expected, *_ = gradient(mae.build(given, PLAN), params, extra, seen, MASKED)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert "loss_contrast" not in metrics


def test_a_weight_can_move():
    """Both losses are computed, and their metrics kept."""
    _, method, params, extra = built("mask=random", hybrid__weight=0.0, hybrid__weight_end=0.9)
    weight_at = method.schedules["weight of the contrastive loss"]
    np.testing.assert_allclose([weight_at(step) for step in (0, 3, 9)], [0, 0.3, 0.9], rtol=1e-6)
    assert "weight of the contrastive loss" not in built("weight=0.2")[1].schedules

    def on_a_device(batch):
        return method.turns[0].loss(params, extra, batch, KEY, 3)

    batch = jax.tree.map(lambda x: x[None], batch_of())
    loss, (metrics, _) = jax.jit(jax.vmap(on_a_device, axis_name=parallel.AXIS))(batch)
    np.testing.assert_allclose(metrics["hybrid_weight"], 0.3, rtol=1e-6)
    assert 0 < metrics["loss_mim"] != metrics["loss_contrast"] > 0
    expected = 0.7 * metrics["loss_mim"] + 0.3 * metrics["loss_contrast"]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert {"positive_cosine", "spread", "effective_rank"} <= metrics.keys()


@pytest.mark.parametrize("encoder", ["mim", pytest.param("moco", marks=pytest.mark.slow)])
def test_all_copies_start_as_the_encoder_and_follow_it(encoder):
    given = config("mask=attention", hybrid__encoder=encoder)
    method = hybrid.build(given, PLAN)
    params, extra = jax.jit(method.init)(jax.random.key(0))
    copies = extra["momentum"]["encoder"], extra["mask_teacher"]["encoder"]
    for copy in copies:
        jax.tree.map(np.testing.assert_array_equal, copy, params["encoder"])
    moved = jax.tree.map(lambda x: x + 1.0, params)
    after = method.after_step(moved, extra, {}, 0)
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    for copy, decay in zip(
        (after["momentum"]["encoder"], after["mask_teacher"]["encoder"]), (None, 0.999), strict=True
    ):
        steps = jax.tree.map(lambda a, b: float(np.mean(a - b)), copy, params["encoder"])
        assert all(step > 0 for step in jax.tree.leaves(steps))
        if decay:
            np.testing.assert_allclose(jax.tree.leaves(steps), 1 - decay, rtol=1e-2)
    other = jax.tree.map(jnp.zeros_like, params["encoder"])
    changed, kept = method.with_encoder(params, extra, other)
    found = changed["encoder"], kept["momentum"]["encoder"], kept["mask_teacher"]["encoder"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))
    placed, kept = method.with_positions(params, extra)
    found = placed["encoder"], kept["momentum"]["encoder"], kept["mask_teacher"]["encoder"]
    assert all("positions" in tree for tree in (*found, placed["decoder"]))


def test_masks_are_of_the_view_that_is_masked():
    """Maps of parts come with each view; the masked one has its own."""
    given = config("weight=0", mask__strategy="parts", mask__num_parts=4)
    method = hybrid.build(given, PLAN)
    assert method.extras == ("parts",)
    image = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(image, format="PNG")
    parts = np.random.default_rng(1).integers(0, 4, (24, 20)).astype(np.uint8)
    example = pickle.loads(pickle.dumps(method.example))  # worker processes get it
    made = example(image.getvalue(), np.random.default_rng(3), {"parts": parts})
    batch = batch_of(1) | {name: value[None] for name, value in made.items()}
    seen = hybrid._as_single(RGB, batch, np.zeros((1, 16, 16, 3), np.float32))
    np.testing.assert_array_equal(seen["parts"], made["global_parts"][None, 1])
    np.testing.assert_allclose(seen["image"][0, 3, 5], MEAN, rtol=1e-6)
    assert not any(name.startswith("global_") for name in seen)


def test_each_view_has_its_own_changes():
    given = config(
        data__blur_prob=(1.0, 0.0, 0.0), data__solarize_prob=1.0, data__grey_prob=0.0
    ).data  # fmt: skip
    batch = batch_of()
    keys = augmented_views.keys_of_views(given, KEY, batch["index"])[:, 0]
    first, second = augmented_views.augmented_globals(given, batch, keys)
    alone = augmented_views.augmented_second(given, batch, keys)
    raw = batch["global_views"].astype(np.float32)
    assert np.abs(augment.denormalize(first) - raw[:, 0] / 255).mean() > 0.1  # noise, blurred
    solarized = np.where(raw[:, 1] < 128, raw[:, 1], 255 - raw[:, 1]) / 255
    for view in (second, alone):
        np.testing.assert_allclose(augment.denormalize(view), solarized, atol=1e-5)


def test_the_shared_view_is_the_second_and_its_masks_have_keys_of_their_own(monkeypatch):
    """Keys of the two views stay out of the masks' draws."""
    given = config("weight=0,mask=random")
    single = hybrid._masked(given, PLAN)
    spy = single.turns[0]._replace(loss=lambda params, extra, batch, key, step: (batch, key))
    monkeypatch.setattr(hybrid, "_masked", lambda *_: single._replace(turns=(spy,)))
    second = np.ones((1, 16, 16, 3), np.float32)
    monkeypatch.setattr(augmented_views, "augmented_second", lambda *_: second)
    batch = batch_of(1)
    seen, key = hybrid.build(given, PLAN).turns[0].loss({}, {}, batch, KEY, 3)
    np.testing.assert_allclose(seen["image"][0, 3, 5], np.add(MEAN, STD), rtol=1e-6)
    of_image = jax.random.fold_in(KEY, 0)
    of_views = [key_data(jax.random.fold_in(of_image, view)) for view in (0, 1)]
    drawn = single_view.views_of(given, seen, key)
    assert key_data(drawn.mask_keys[0]) not in of_views
    # ...which this would be without a key of their own:
    assert key_data(single_view.views_of(given, seen, KEY).mask_keys[0]) in of_views


def test_a_separate_view_is_that_of_the_single_method():
    given = config("weight=0.2", hybrid__view="separate", hybrid__crop_scale=(0.3, 0.5))
    alone = config("weight=0", hybrid__view="separate", hybrid__crop_scale=(0.3, 0.5))
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, format="PNG")
    both, single = (
        hybrid.build(c, PLAN).example(file.getvalue(), np.random.default_rng(3))
        for c in (given, alone)
    )
    np.testing.assert_array_equal(both["image"], single["image"])
    assert set(both) == {"image", "global_views"} and set(single) == {"image"}
    assert both["global_views"].shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    "words,argument,changes",
    [
        ("config.hybrid.weight=1.5 is not allowed", "", {"hybrid.weight": 1.5}),
        ("config.hybrid.weight_end=-0.1", "", {"hybrid.weight_end": -0.1}),
        ("config.hybrid.mim='ibot'", "", {"hybrid.mim": "ibot"}),
        ("use 'vit', or --config=moco", "", RESNET),
        ("decoder_width=30", "", {"model.decoder_width": 30}),
        ("leaves no visible patch", "mim=simmim", {"mask.ratio": 0.99}),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, argument, changes):
    given = config(argument)
    given.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as error:
        configs.check(given)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_step_with_masks_of_any_kind_fits_its_state():
    """Shapes alone: what a mask needs is there, and what a step returns fits its state."""
    for argument in ("mask=hard", "mim=simmim,mask=amt"):
        method = hybrid.build(config(argument, hybrid__encoder="moco"), PLAN)
        state = jax.eval_shape(functools.partial(init_state, method), jax.random.key(0))
        batch = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch_of(8))
        step = make_step(method, accum_steps=2, devices=jax.devices()[:2])
        after, metrics = jax.eval_shape(step, state, batch, KEY)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert {"loss_mim", "loss_contrast", "positive_cosine", "spread"} <= metrics.keys()


@pytest.mark.slow
# SimMIM's class tokens start nearly alike: batch norms enlarge their differences and the rounding
# with them. Its step changes parameters by up to 1.
@pytest.mark.parametrize(("argument", "error"), [("mask=dpp", 1e-5), ("mim=simmim", 1e-3)])
def test_a_step_on_four_devices_is_that_on_one(argument, error):
    method = hybrid.build(config(argument), PLAN)
    method = tiny.with_optimizer(method, Optimizer(optax.sgd(1.0), lambda step: 0.1))
    start, batch, found = init_state(method, jax.random.key(0)), batch_of(8), []
    for devices in (1, 4):
        step = make_step(method, devices=jax.devices()[:devices])
        split = jax.tree.map(lambda x, n=devices: x.reshape(n, -1, *x.shape[1:]), batch)
        state, metrics = step(jax.device_get(start), split, KEY)
        found.append((jax.device_get((state.params, state.extra)), float(metrics["loss"])))
    (one, loss), (four, same) = found
    assert same == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=error), four, one)


@pytest.mark.slow
def test_accumulated_micro_batches_have_their_own_negatives():
    """The step is the mean of the steps of its halves, each with the masks of the step."""
    method = hybrid.build(config("mask=random"), PLAN)
    method = tiny.with_optimizer(method, Optimizer(optax.sgd(1.0), lambda step: 0.1))
    start, batch = init_state(method, jax.random.key(0)), batch_of(8)
    steps = {n: make_step(method, accum_steps=n, devices=jax.devices()[:1]) for n in (1, 2)}

    def after(batch, accum_steps=1):
        step = steps[accum_steps]
        state, metrics = step(jax.device_get(start), jax.tree.map(lambda x: x[None], batch), KEY)
        return jax.device_get(state.params), float(metrics["loss"])

    whole, loss = after(batch, 2)
    halves = [after(jax.tree.map(lambda x, i=i: x[i : i + 4], batch)) for i in (0, 4)]
    assert loss == pytest.approx((halves[0][1] + halves[1][1]) / 2, rel=1e-5)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-4, atol=1e-5),
        whole,
        halves[0][0],
        halves[1][0],
    )
    assert abs(after(batch)[1] - loss) > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_shows_its_masks(tmp_path):
    """The last two of four steps anew, from the checkpoint before them."""
    given = config(
        "mask=attention", epochs=4 * 8 / 96, checkpoint__every=2, optim__warmup_epochs=0.0,
        evaluate__loss_images=24, evaluate__figure_images=2, hybrid__weight_end=0.5,
    )  # fmt: skip
    workdir = tiny.trained_and_gone_on(given, tmp_path)
    run = load_run(workdir)
    assert run.has_masks and run.can_reconstruct
    drawn = {path.name for path in (workdir / "figures").iterdir()}
    assert drawn == {"masks.png", "attention.png", "curves.png"}
    assert run.encode(batch_of(2)["image"])["patches"].shape == (2, 16, 24)
