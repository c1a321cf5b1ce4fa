"""SimMIM against the authors' code (arXiv 2111.09886)."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from test_oracles_encoders import simmim_params

from configs import simmim as recipe
from dppmask_jax import patches
from dppmask_jax.data.images import augment
from dppmask_jax.methods import simmim
from dppmask_jax.methods.base import Plan
from dppmask_jax.targets.base import masked_absolute_error

pytestmark = oracles.MARKS


def test_the_loss_is_the_absolute_error_of_masked_pixels():
    found = oracles.load("simmim_loss")
    pred, target = (patches.patchify(oracles.images(found[k]), 16) for k in ("pred", "target"))
    mask = found["mask"].reshape(len(pred), -1).astype(bool)
    loss = masked_absolute_error(pred, target, mask)
    oracles.near("simmim_loss", loss, found["loss"], 1e-6, relative=True)
    nothing = masked_absolute_error(pred, target, np.zeros_like(mask))
    assert nothing == found["loss_nothing_masked"] == 0


def by_patch(values):
    """(3 * 8 * 8, ...), channel first within a patch as PyTorch's pixel shuffle has it -> ours."""
    return np.moveaxis(values.reshape(3, 8, 8, *values.shape[1:]), 0, 2).reshape(values.shape)


def test_the_method_is_the_authors():
    """Masks come with the images, so that they can be the authors'."""
    oracle = oracles.load("simmim")
    config = recipe.get_config()
    config.image_size, config.model.patch_size, config.data.flip = (32, 32), 8, False
    config.model.width, config.model.depth, config.model.heads = 24, 2, 3
    config.model.drop_path, config.mask.strategy, config.mask.ratio = 0.0, "file", 0.75
    method = simmim.build(config, Plan(5, 10))
    params = {
        "encoder": simmim_params(oracle),
        "mask_token": jnp.asarray(oracle["param_encoder.mask_token"][0]),
        "head": {
            "kernel": by_patch(oracle["param_decoder.0.weight"][:, :, 0, 0]).T,
            "bias": by_patch(oracle["param_decoder.0.bias"]),
        },
    }
    shapes, _ = jax.eval_shape(method.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    images = np.asarray(augment.denormalize(oracles.images(oracle["x"])))
    masks = oracle["mask"].reshape(2, 16).astype(bool)
    batch = {"image": images, "index": np.arange(2), "proposed": masks}

    def loss(params):
        return method.turns[0].loss(params, {}, batch, jax.random.key(0), 0)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    oracles.near("simmim, loss", value, oracle["loss"], 1e-6, relative=True)
    encoder = gradient["encoder"]
    for name, found in {
        "encoder_mask_token": gradient["mask_token"][None],
        "encoder_patch_embed_proj_bias": encoder["patch_embed"]["proj"]["bias"],
        "encoder_rel_pos_bias_relative_position_bias_table": encoder["relative_bias"]["table"],
        "encoder_blocks_0_gamma_1": encoder["blocks"]["block_0"]["scale1"],
    }.items():
        # The smallest are below the absolute tolerance.
        expected = oracle[f"grad_{name}"]
        oracles.near(f"simmim, gradient of {name}", found, expected, 1e-5, relative=True)
    of_bias = by_patch(oracle["grad_decoder_0_bias"])
    found = gradient["head"]["bias"]
    oracles.near("simmim, gradient of the head", found, of_bias, 1e-5, relative=True)

    painted = jax.jit(method.reconstruct)(params, {}, images, np.argsort(masks, axis=1))
    expected = np.asarray(augment.denormalize(oracles.images(oracle["reconstruction"])))
    hidden = (patches.patchify(x, 8)[masks] for x in (painted, np.clip(expected, 0, 1)))
    oracles.near("simmim, reconstruction", *hidden, 1e-5)
