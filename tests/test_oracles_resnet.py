"""The autoencoder against its authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import reference_resnet

from dppmask_jax import parallel
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.resnet_decoder import AutoencoderModule, Decoder
from dppmask_jax.models.resnet_module import SHAPES, ResNet

pytestmark = oracles.MARKS


def computed(layers, training, dtype):
    """(variables, final map, pixels) of the oracle's four images.

    Args:
      training: whether statistics are those of the batch, which a vmap with the name of the
        devices' axis splits in two.
    """
    oracle, shape = oracles.load(f"autoencoder_resnet{layers}"), SHAPES[str(layers)]
    variables = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), reference_resnet.variables(oracle, shape)
    )
    module = AutoencoderModule(ResNet(shape, dtype=dtype), Decoder(shape, dtype=dtype))
    images = reference_resnet.images()
    np.testing.assert_allclose(images[0], np.moveaxis(oracle["input_image0"], 0, -1), atol=1e-6)
    images = jnp.asarray((images - MEAN) / STD, dtype)

    # What is closed over would stand in the compiled program.
    def run(variables, images, mutable):
        found = module.apply(variables, images, method=_both, mutable=mutable)
        return found[0] if mutable else found

    if not training:
        return oracle, variables, *jax.jit(functools.partial(run, mutable=False))(variables, images)
    halves = images.reshape(2, 2, *images.shape[1:])
    of_halves = functools.partial(run, mutable=[STATISTICS])
    split = jax.vmap(of_halves, axis_name=parallel.AXIS, in_axes=(None, 0))
    final, pixels = jax.jit(split)(variables, halves)
    return oracle, variables, final.reshape(4, *final.shape[2:]), pixels.reshape(images.shape)


def _both(module, images):
    final = module.encoder.final_map(images)
    return final, module.decoder(final)


def compare(layers, training, dtype, tolerance):
    oracle, variables, final, pixels = computed(layers, training, dtype)
    kind = "train" if training else "eval"
    name = f"autoencoder, ResNet-{layers}, {kind}: "
    for part, count in (("encoder", "num_encoder_parameters"), (None, "num_parameters")):
        tree = variables["params"][part] if part else variables["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == oracle[count]
    latent = np.asarray(final)[:2, :, :, ::16]
    oracles.near(name + "latent", latent, oracles.images(oracle[f"latent_{kind}"]), tolerance)
    seen = np.asarray(pixels)[:2, ::2, ::2]
    oracles.near(name + "pixels", seen, oracles.images(oracle[f"output_{kind}"]), tolerance)
    error = np.mean(np.square(np.asarray(pixels) - reference_resnet.images()))
    oracles.near(name + "mean square error", error, oracle[f"mse_{kind}"], tolerance)


@pytest.mark.parametrize("layers", [18, 50])
def test_the_autoencoder_by_running_statistics(layers):
    compare(layers, False, jnp.float32, 1e-5)


def test_the_autoencoder_by_the_statistics_of_the_batch():
    compare(18, True, jnp.float32, 1e-3)


@pytest.mark.parametrize("layers", [18, 50])
def test_the_autoencoder_by_the_statistics_of_the_batch_in_float64(layers):
    with jax.enable_x64(True):
        compare(layers, True, jnp.float64, 1e-5)
