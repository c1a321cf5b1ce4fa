"""ADIOS: what its encoder is trained to do, at another size and at the ends of what masks cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import adios as recipe
from dppmask_jax import config as configs
from dppmask_jax import optim, patches
from dppmask_jax.losses import occlusion
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.adios_objectives import covered_error
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs.image_sizes import resized


def shapes_of(**changes):
    config = tiny.config("adios", **changes)
    configs.check(config)
    method = METHODS["adios"].build(config, Plan(4, 20, peak_lr=0.1))
    return config, jax.eval_shape(method.init, jax.random.key(0))


@pytest.mark.parametrize("objective", ["reconstruct", "simclr"])
def test_positions_at_another_size(objective):
    config, shapes = shapes_of(loss__objective=objective)
    params, extra = tiny.filled(shapes, seed=1)
    found, _, how = resized(params, extra, config, (24, 16))
    if objective == "simclr":
        assert how.endswith(": learned positions resized")
        assert found["encoder"]["positions"].shape[-2] == 6 * 4 + 1
        return
    assert how.endswith(": fixed positions resized, the decoder's as well")
    width_of = {part: params[part]["norm"]["scale"].shape[0] for part in ("encoder", "decoder")}
    for part, width in width_of.items():
        table = patches.fixed_positions((4, 4), width)
        expected = patches.resize_positions(table, (4, 4), (6, 4), 0.0)
        np.testing.assert_allclose(found[part]["positions"], expected, rtol=1e-6, err_msg=part)
    assert "positions" not in params["encoder"] and "positions" not in params["decoder"]


@pytest.mark.parametrize("covered", [0.0, 1e-38])
def test_a_mask_that_covers_nothing_has_a_finite_error(covered):
    """A softmax gives 0 where a logit is far below the others."""
    mask = jnp.full((1, 2, 4), covered).at[0, 0, 0].set(0.0)

    def of(mask, pred):
        return covered_error(pred, jnp.zeros((1, 2, 12)), mask)

    value, gradients = jax.value_and_grad(of, argnums=(0, 1))(mask, jnp.full((1, 2, 12), 3.0))
    assert 0 <= value <= 9
    assert all(np.all(np.isfinite(x)) for x in gradients)


def test_the_penalty_of_masks_that_cover_nearly_all_is_that_of_nearly_nothing():
    shares = jnp.asarray([[0.0, 1e-7, 1.0, 1 - 2.0**-22, 2.0**-22]])
    found = occlusion.sparsity(shares)
    assert np.all(found > 1)
    np.testing.assert_allclose(found[:3], [1e10, 1 / (np.pi * 1e-7 + 1e-10), 1e10], rtol=1e-5)
    np.testing.assert_allclose(found[3], found[4], rtol=1e-6)
    slope = jax.grad(lambda s: jnp.sum(occlusion.sparsity(s)))
    expected = -np.pi * np.cos(np.pi * 0.2) / np.sin(np.pi * 0.2) ** 2
    np.testing.assert_allclose(
        slope(jnp.asarray([[0.2, 0.5, 0.8]]))[0], [expected, 0, -expected], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", ["adios", "moco"])
def test_masks_are_a_cause_of_noise_where_they_are_learned(method):
    config = tiny.config(method)
    watch = METHODS[method].build(config, Plan(4, 20, peak_lr=0.1)).watch()
    noise = {
        "positive_cosine": 0.1,
        "negative_cosine": 0.1,
        "spread": 0.9,
        "effective_rank": 9.0,
    }
    assert watch(0, noise) == ""
    warning = watch(100, noise)
    assert "collapse to noise" in warning and "config.data.crop_scale" in warning
    assert ("config.masks.sparsity" in warning) == (method == "adios")


@pytest.mark.parametrize(
    ("argument", "of_encoder", "of_masks"),
    [
        ("dataset=imagenet100,form=resnet", 0.18956, 0.49876),
        ("dataset=imagenet100s,form=resnet", 0.11128, 0.014515),
        ("dataset=imagenet100s,form=vit", 0.11572, 0.033401),
    ],
)
def test_learning_rates_of_the_authors_scripts(argument, of_encoder, of_masks):
    """They are those of a batch of 128."""
    config = recipe.get_config(argument)
    for settings, rate in ((config.optim, of_encoder), (config.masks.optim, of_masks)):
        found = optim.scaled_learning_rate(settings.base_lr, config.batch_size)
        assert config.batch_size == 128 and found == pytest.approx(rate, rel=0.01)
