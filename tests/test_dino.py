"""iBOT without the loss of patches is DINO, and computes nothing for what it leaves out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_ibot as reference
import test_ibot_method
import tiny
from jax.extend.core import jaxprs_in_params
from test_ibot_method import KEY, batch_of

from configs import dino
from dppmask_jax import config as config_checks
from dppmask_jax import masking
from dppmask_jax.data.images.augment import normalize
from dppmask_jax.errors import InputError
from dppmask_jax.methods import ibot
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.base import Tokens

UNMASKED = {"mask__ratio": (0.0,), "mask__ratio_var": (0.0,)}
built = functools.partial(test_ibot_method.built, loss__patch_weight=0.0)


def mean_colours(config, model_from=ibot.model_from):
    """The network with an encoder that compiles at once: a linear map of an image's mean colour."""
    net = model_from(config)

    def encode(params, images, *given):
        return Tokens(jnp.mean(images, axis=(1, 2)) @ params["map"], None, None)

    encoder = net.encoder._replace(
        init=lambda key: {"map": jax.random.normal(key, (3, net.encoder.width))},
        encode=encode,
        attended=None,
    )
    return net._replace(encoder=encoder)


def test_the_loss_is_that_of_class_tokens_written_out(monkeypatch):
    monkeypatch.setattr(ibot, "model_from", mean_colours)
    config = tiny.config(
        "ibot", **test_ibot_method.PLAIN, **UNMASKED, loss__class_weight=0.5, loss__patch_weight=0.0
    )
    method, batch = ibot.build(config, Plan(4, 20)), batch_of()
    params, extra = tiny.filled(jax.eval_shape(method.init, KEY), seed=2)
    loss, (metrics, aux) = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, 9)

    def class_logits(network, images):  # views are normalised and no more
        colours = np.mean(np.asarray(normalize(images), np.float64), axis=(1, 2))
        return reference.head(colours @ network["encoder"]["map"], network["head"])

    raw = [batch["global_views"][:, i] for i in range(2)]
    of_teacher = [class_logits(extra["teacher"], view) for view in raw]
    raw += [batch["local_views"][:, i] for i in range(2)]
    of_student = [class_logits(params, view) for view in raw]
    temp = config.loss.class_temp
    temperature = reference.teacher_temperatures(temp.start, temp.end, temp.warmup_epochs, 5)[2]
    center = np.asarray(extra["class_center"])
    expected = reference.class_loss(of_teacher, of_student, center, temperature)
    np.testing.assert_allclose(metrics["loss_class"], expected, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.5 * expected, rtol=1e-4)
    after = method.after_step(params, extra, aux, 9)
    moved = reference.new_center(center, np.stack(of_teacher))
    np.testing.assert_allclose(after["class_center"], moved, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after["patch_center"], extra["patch_center"])
    assert jax.tree.structure(after) == jax.tree.structure(extra)
    assert "loss_patch" not in metrics
    assert "patch_center_norm" not in method.report(after, aux, 9)


def products(jaxpr):
    """The output shapes of all matrix products of a jaxpr, those of inner ones among them."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("masked", [False, True])
def test_patches_go_through_no_head(masked):
    """All products of the heads, forwards and backwards, are of class tokens: 2 x 5 of the teacher
    and 4 x 5 of the student; or they are gradients of their weights."""
    sizes = {"model__head_hidden": 37, "model__head_bottleneck": 29, "model__prototypes": 31}

    def rows(build, **changes):
        _, method, params, extra = build(**sizes, **changes)
        step = jax.value_and_grad(method.turns[0].loss, has_aux=True)
        jaxpr = jax.make_jaxpr(step)(params, extra, batch_of(5), KEY, 9).jaxpr
        shapes = [shape for shape in products(jaxpr) if shape[-1] in sizes.values()]
        return {math.prod(shape[:-1]) for shape in shapes} - set(sizes.values())

    assert rows(built, **({} if masked else UNMASKED)) == {10, 20}
    if masked:  # 12 patches of 10 views, alone and with the class; the mean of all of the teacher's
        assert rows(test_ibot_method.built) == {10, 20, 1, 10 * 12, 20 + 10 * 12, 10 * 17}


def test_nothing_is_drawn_where_nothing_is_masked(monkeypatch):
    def draw(*given):
        raise AssertionError("a mask was drawn")

    idle = masking.Masker(draw, frozenset({"attention"}), "idle")
    monkeypatch.setitem(masking.MASKERS, "idle", masking.MaskerKind(lambda mask: idle))
    config = tiny.config("ibot", mask__strategy="idle", loss__patch_weight=0.0, **UNMASKED)
    config_checks.check(config)
    method = ibot.build(config, Plan(4, 20))
    params, extra = jax.eval_shape(method.init, KEY)
    _, (_, aux) = jax.eval_shape(
        functools.partial(method.turns[0].loss, key=KEY, step=0), params, extra, batch_of()
    )
    assert method.masks is method.masker is method.num_hidden is None and not method.describe
    assert method.attention is not None and "of_masks" not in aux


@pytest.mark.slow
def test_dpp_masks_of_the_teachers_tokens_hide_what_the_student_sees():
    """The same masks as iBOT's, and its loss of class tokens."""
    _, method, params, extra = built("dpp")
    _, of_ibot, *_ = test_ibot_method.built("dpp")
    given, loss_of = (extra, batch_of(8), KEY, 9), jax.jit(method.turns[0].loss)
    loss, (metrics, aux) = loss_of(params, *given)
    _, (wanted, wanted_aux) = jax.jit(of_ibot.turns[0].loss)(params, *given)
    np.testing.assert_allclose(loss, wanted["loss_class"], rtol=1e-5)
    assert 0.2 < metrics["masked_share"] < 0.7
    assert metrics["masked_share"] == wanted["masked_share"]
    assert aux["of_masks"].keys() == {"num_greedy"} and aux["of_masks"]["num_greedy"] > 0
    assert aux["of_masks"]["num_greedy"] == wanted_aux["of_masks"]["num_greedy"]
    # Not a shift of all channels, which layer norms take away.
    other, _ = loss_of({**params, "mask_embed": -params["mask_embed"]}, *given)
    assert abs(other - loss) > 1e-3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (UNMASKED, "masks none of the 16 patches"),
        (UNMASKED, "config.loss.patch_weight=0"),
        (
            {"loss__patch_weight": 0.0, "mask__ratio": (0.01,), "mask__ratio_var": (0.0,)},
            "masks none",
        ),
        ({"loss__patch_weight": 0.0, "model__shared_head": False}, "config.model.shared_head=True"),
    ],
)
def test_what_has_no_sense_is_refused_in_a_line(fields, words):
    with pytest.raises(InputError) as refused:
        config_checks.check(tiny.config("ibot", **fields))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_recipes():
    for mask in dino.MASKS:
        config = dino.get_config(f"dataset=shapes,mask={mask}")
        config_checks.check(config)
        assert config.method == "ibot" and config.loss.patch_weight == 0
        assert masking.hides_any(config.mask) == (mask != "none")
    config = dino.get_config("dataset=imagenet1k")
    config_checks.check(config)
    assert (config.epochs, config.model.size, config.model.prototypes) == (300, "S", 65536)
    assert (config.data.local_views, *config.data.local_size) == (8, 96, 96)
    assert (*config.data.crop_scale, *config.data.local_scale) == (0.4, 1, 0.05, 0.4)
    temperature = config.loss.class_temp
    assert (temperature.start, temperature.end, temperature.warmup_epochs) == (0.04, 0.07, 30)
    assert dino.get_config("dataset=imagenet1k,epochs=50").epochs == 50
    assert dino.get_config("dataset=imagenet100").epochs == 100


@pytest.mark.slow
def test_a_run_from_its_start_to_its_figures(tmp_path):
    run = tmp_path / "run"
    changes = {"loss__patch_weight": 0.0, "evaluate__figure_images": 2, **UNMASKED}
    done = tiny.run(tiny.command(run, method="ibot", **changes))
    assert done.returncode == 0, done.stderr
    assert "of 16 patches" not in done.stdout
    names = sorted(path.name for path in (run / "figures").iterdir())
    assert names == ["attention.png", "curves.png"]
