"""MoCo v3: the branch of contrast, its momentum encoder, its batch norms over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import moco as recipe
from dppmask_jax import config as configs
from dppmask_jax import parallel
from dppmask_jax.errors import InputError
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.projectors import Projector, project
from dppmask_jax.models.resnet_module import SHAPES, Shape
from dppmask_jax.training.step import init_state, make_step

KEY = jax.random.key(3)
STEPS = 20
PLAIN = {
    "model__width": 24,
    "model__depth": 1,
    "model__heads": 2,
    "data__jitter_prob": 0.0,
    "data__grey_prob": 0.0,
    "data__blur_prob": (0.0, 0.0, 0.0),
    "data__solarize_prob": 0.0,
}
RESNET = {
    "model__encoder": "resnet",
    "model__resnet": "18",
    "model__resnet_width": 4,
    "model__patch_size": 32,
    "image_size": (32, 32),
    "model__projector_layers": 2,
    "model__predictor_norm": False,
}


@functools.cache
def built(**changes):
    """(config, method, params, extra), the parameters and the momentum encoder away from their
    start."""
    config = tiny.config("moco", **PLAIN | changes)
    configs.check(config)
    method = METHODS["moco"].build(config, Plan(4, STEPS, peak_lr=0.1))
    params, extra = tiny.filled(jax.eval_shape(method.init, jax.random.key(1)), seed=2)
    return config, method, params, extra


def split(tree, devices):
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), tree)


@functools.cache
def gradients(devices, **changes):
    """(params, batch) -> ((loss, (metrics, aux)), gradient); a vmap stands for the devices."""
    _, method, _, extra = built(**changes)

    def loss(params, batch):
        one = lambda batch: method.turns[0].loss(params, extra, batch, KEY, 0)  # noqa: E731
        found = jax.vmap(one, axis_name=parallel.AXIS)(split(batch, devices))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


# The projectors.


def reference_norm(x):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


@pytest.mark.parametrize("last_norm", [True, False])
def test_a_projector_by_hand_on_any_number_of_devices(last_norm):
    projector, rng = Projector((6, 5, 3), last_norm), np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: projector.init(key, x)["params"], KEY)
    assert set(shapes) == {"layer_0", "layer_1", "layer_2", "norm_0", "norm_1"}
    assert all(set(shapes[f"layer_{i}"]) == {"kernel"} for i in range(3))
    params = tiny.filled(shapes, 1)
    expected = np.float64(x)
    for i in range(3):
        expected = expected @ np.float64(params[f"layer_{i}"]["kernel"])
        if i < 2:
            norm = params[f"norm_{i}"]
            expected = reference_norm(expected) * norm["scale"] + norm["bias"]
            expected = np.maximum(expected, 0)
    expected = reference_norm(expected) if last_norm else expected
    mapped = jax.jit(jax.vmap(lambda x: project(projector, params, x), axis_name=parallel.AXIS))
    for devices in (1, 4):
        found = mapped(x.reshape(devices, -1, 4))
        np.testing.assert_allclose(found.reshape(8, 3), expected, rtol=1e-4, atol=1e-5)


# The momentum encoder.


def test_the_momentum_encoder_is_the_next_steps():
    """It follows the new parameters with the decay of the step that will use it."""
    config, method, params, extra = built()
    following = {name: params[name] for name in ("encoder", "projector")}
    for step in (0, 7, STEPS - 1):
        base = config.teacher.ema_decay
        decay = 1 - (1 - base) * (1 + np.cos(np.pi * (step + 1) / STEPS)) / 2
        after = method.after_step(params, extra, {}, step)
        jax.tree.map(
            lambda found, old, new, decay=decay: np.testing.assert_allclose(
                found, decay * np.float64(old) + (1 - decay) * new, rtol=1e-5, atol=1e-7
            ),
            after["momentum"], extra["momentum"], following,
        )  # fmt: skip
    assert set(after) == set(extra)


def test_it_starts_as_a_copy_and_from_another_runs_encoder():
    _, method, params, extra = built()
    start, of_start = jax.jit(method.init)(KEY)
    assert set(start) == {"encoder", "projector", "predictor"}
    copied = {name: start[name] for name in ("encoder", "projector")}
    jax.tree.map(np.testing.assert_array_equal, of_start, {"momentum": copied})
    assert np.abs(start["encoder"]["cls_token"]).max() < 1e-5
    params, extra = method.with_encoder(params, extra, start["encoder"])
    for encoder in (params["encoder"], extra["momentum"]["encoder"]):
        assert encoder is start["encoder"]
    params, extra = method.with_positions(params, extra)
    for encoder in (params["encoder"], extra["momentum"]["encoder"]):
        assert encoder["positions"].shape == (1, 17, 24)


# The step.


def near(found, expected, tolerance):
    """Of two trees: each tensor within a share of the largest value of all. What stands in front
    of a batch norm has gradients that are zero but for rounding."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest),
        found, expected,
    )  # fmt: skip


@pytest.fixture(scope="module")
def few_blocks():
    """Compiling is what takes time: a ResNet of one block a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "18", Shape((1, 1, 1, 1), False))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes,several,tolerance",
    # Many batch norms in a row, of a few positions, enlarge the rounding.
    [({}, (2, 4), 1e-5), (RESNET, (2,), 1e-4)],
    ids=["vit", "resnet"],
)
def test_the_gradient_is_that_of_one_device(changes, several, tolerance, few_blocks):
    """Keys, batch norms and health are those of the whole batch."""
    _, _, params, _ = built(**changes)
    batch = tiny.batch_of_pairs(side=built(**changes)[0].image_size[0])
    (loss, (metrics, aux)), gradient = gradients(1, **changes)(params, batch)
    for devices in several:
        (of_many, (of_metrics, of_aux)), many = gradients(devices, **changes)(params, batch)
        np.testing.assert_allclose(of_many, loss, rtol=tolerance)
        for name, value in metrics.items():
            np.testing.assert_allclose(of_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        near(many, gradient, tolerance)
        near(of_aux, aux, tolerance) if aux else None


@pytest.mark.slow
def test_a_step_uses_the_momentum_encoder_that_followed_before_it():
    """Two steps on four devices, against the loss written out on one; the patches stay."""
    _, method, *_ = built()
    step = make_step(method)
    start = init_state(method, jax.random.key(0))
    before = parallel.to_host(start.params)
    state, _ = step(parallel.replicate(start), parallel.split_batch(tiny.batch_of_pairs()), KEY)
    params = parallel.to_host(state.params)
    decay = 1 - 0.01 * (1 + np.cos(np.pi / STEPS)) / 2
    momentum = {
        name: jax.tree.map(lambda o, n: decay * o + (1 - decay) * n, before[name], params[name])
        for name in ("encoder", "projector")
    }
    batch = tiny.batch_of_pairs(first=8)
    one = jax.jit(jax.vmap(
        lambda batch: method.turns[0].loss(
            params, {"momentum": momentum}, batch, jax.random.fold_in(KEY, 1), 1),
        axis_name=parallel.AXIS,
    ))  # fmt: skip
    (expected,), _ = one(split(batch, 1))
    state, metrics = step(state, parallel.split_batch(batch), KEY)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    same = jax.tree.map(np.array_equal, state.params["encoder"], before["encoder"])
    assert all(jax.tree.leaves(same["patch_embed"]))
    assert not any(jax.tree.leaves(same["blocks"]))  # biases and norms, too


@pytest.mark.slow
def test_accumulated_micro_batches_have_negatives_of_their_own():
    config, method, params, extra = built(optim__accum_steps=2)
    assert ("negatives", "3 of each query, of its micro-batch alone (2 a step)") in method.describe
    (whole, _), _ = gradients(1)(params, tiny.batch_of_pairs())
    of_half = [gradients(1)(params, half)[0][0] for half in halves(tiny.batch_of_pairs())]
    state = init_state(method, jax.random.key(0))._replace(params=params, extra=extra)
    found = step_on_one_device(method, config.optim.accum_steps, state, tiny.batch_of_pairs())
    np.testing.assert_allclose(found["loss"], np.mean(of_half), rtol=1e-5)
    assert found["loss"] < whole - 0.05


def halves(batch):
    return [jax.tree.map(lambda x, part=part: x[part], batch) for part in (slice(4), slice(4, 8))]


def step_on_one_device(method, accum_steps, state, batch):
    """The metrics of a step; its key is that of `gradients` at step 0 but for the fold."""
    step = make_step(method, accum_steps=accum_steps, devices=jax.devices()[:1])
    return step(state, split(batch, 1), KEY)[1]


@pytest.mark.slow
def test_a_resnet_keeps_the_statistics_of_both_views_and_its_momentum_encoder_none(few_blocks):
    _, method, params, extra = built(**RESNET)
    assert set(extra) == {"momentum", STATISTICS} and "batch_stats" not in extra["momentum"]
    assert "norm_1" not in params["predictor"] and set(params["projector"]) == {
        "layer_0", "layer_1", "norm_0",
    }  # fmt: skip
    batch = tiny.batch_of_pairs(side=32)
    (_, (_, aux)), _ = gradients(1, **RESNET)(params, batch)
    kernel = params["encoder"]["stem_conv"]["kernel"]
    mean = extra[STATISTICS]["encoder"]["stem_norm"]["mean"]
    for view in (0, 1):  # one after the other
        pixels = batch["global_views"][:, view] / np.float32(255)
        out = jax.lax.conv_general_dilated(
            pixels, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = 0.9 * mean + 0.1 * np.mean(out, axis=(0, 1, 2))
    found = aux[STATISTICS]["encoder"]["stem_norm"]["mean"]
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)
    after = method.after_step(params, extra, aux, 0)
    assert after[STATISTICS] is aux[STATISTICS] and set(after) == set(extra)
    encoder = method.encoder_of(params, after)
    assert encoder[STATISTICS] is aux[STATISTICS]["encoder"]
    assert set(encoder) == {*params["encoder"], STATISTICS}
    given = method.encoder.init(jax.random.key(9))
    params, extra = method.with_encoder(params, extra, given)
    assert extra[STATISTICS]["encoder"] is given[STATISTICS]
    assert STATISTICS not in extra["momentum"]["encoder"]


# Its config.


@pytest.mark.parametrize("method", ["moco", "adios", "hybrid"])
def test_images_that_patches_do_not_divide_are_refused(method):
    changes = {"hybrid__weight": 1.0} if method == "hybrid" else {}
    given = tiny.config(method, image_size=(32, 32), model__patch_size=6, **changes)
    with pytest.raises(InputError, match="32x32 is not a multiple of the patch size 6"):
        configs.check(given)


def test_a_query_without_negatives_is_refused():
    for changes in ({"batch_size": 1}, {"batch_size": 4, "optim__accum_steps": 4}):
        with pytest.raises(InputError, match="without negatives"):
            configs.check(tiny.config("moco", **changes))
    for method in ("moco", "adios"):  # it changes the numbers
        assert configs.fields_of(method)["optim.accum_steps"].free == ""
    assert configs.fields_of("mae")["optim.accum_steps"].free == "regrouped"


def test_presets_pass_the_checks_and_those_of_imagenet_are_the_authors():
    for dataset in recipe.ARGUMENTS["dataset"]:
        for form in recipe.ARGUMENTS["form"]:
            config = recipe.get_config(f"dataset={dataset},form={form}")
            config.data.source = config.data.source or "folder:somewhere"
            configs.check(config)
    vit = recipe.get_config("dataset=imagenet1k,size=S")
    resnet = recipe.get_config("dataset=imagenet1k,form=resnet")
    assert (vit.model.heads, vit.model.projector_layers, vit.model.predictor_norm) == (12, 3, True)
    assert (resnet.model.projector_layers, resnet.model.predictor_norm) == (2, False)
    assert (vit.optim.kind, resnet.optim.kind) == ("adamw", "lars")
    assert (vit.loss.temperature, resnet.loss.temperature) == (0.2, 1.0)
    assert tuple(vit.data.crop_scale) == (0.08, 1.0) and resnet.data.crop_scale[0] == 0.2
