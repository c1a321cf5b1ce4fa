"""ADIOS's losses, as the authors' code computes them, with an encoder that is one linear layer."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from dppmask_jax.losses import contrastive, occlusion

pytestmark = oracles.MARKS


@pytest.fixture(scope="module")
def given():
    return oracles.load("adios")


def flat(images):
    """In the order of PyTorch's flattening."""
    return jnp.moveaxis(images, -1, 1).reshape(len(images), -1)


def errors_of(projection, given):
    first, second = (jnp.asarray(oracles.images(given[name])) for name in ("x1", "x2"))

    def error(images, mask):
        whole, occluded = flat(first) @ projection, flat(images) @ projection
        return contrastive.simclr(whole, occluded, float(given["temperature"])), {}

    return error, second


def test_simclr(given):
    for name, temperature in (("simclr_T02", 0.2), ("simclr_T01", 0.1)):
        found = contrastive.simclr(given["z1"], given["z2"], temperature)
        oracles.near(f"adios {name}", found, given[name], 1e-5, relative=True)


def test_the_encoder_minimises_the_sum_over_the_masks(given):
    masks = jax.nn.softmax(given["mask_logits"], axis=1)

    def loss(projection):
        return occlusion.summed_error(*errors_of(projection, given), masks)[0]

    found, gradient = jax.value_and_grad(loss)(given["projection"])
    oracles.near("adios encoder's loss", found, given["encoder_loss"], 1e-5, relative=True)
    oracles.near(
        "adios encoder's gradient", gradient, given["encoder_grad_projection"], 1e-5, relative=True
    )


@pytest.mark.parametrize("weight", (0.0, 0.5))
def test_the_mask_network_maximises_it_less_the_penalties(given, weight):
    error, second = errors_of(jnp.asarray(given["projection"]), given)

    def objective(logits):
        masks = jax.nn.softmax(logits, axis=1)
        errors, _ = occlusion.summed_error(error, second, masks)
        return occlusion.mask_objective(
            errors,
            occlusion.shares(masks),
            sparsity_weight=float(given["alpha_sparsity"]),
            entropy_weight=weight,
            batch_size=len(logits),
        )

    found, gradient = jax.value_and_grad(objective)(given["mask_logits"])
    name = f"entropy{weight}"
    oracles.near(
        f"adios masks' objective, {name}",
        found,
        given[f"mask_objective_maximised_{name}"],
        1e-5,
        relative=True,
    )
    oracles.near(
        f"adios masks' gradient, {name}", gradient, given[f"mask_grad_{name}"], 1e-5, relative=True
    )


def test_the_penalties(given):
    shares = occlusion.shares(jax.nn.softmax(given["mask_logits"], axis=1))
    oracles.near("adios shares of masks", shares, given["mean_mask"], 1e-5, relative=True)
    oracles.near(
        "adios sparsity of each mask",
        occlusion.sparsity(shares),
        given["sparsity_penalty_per_mask"],
        1e-5,
        relative=True,
    )
    entropy = np.sum(occlusion.negative_entropy(shares))
    oracles.near("adios entropy term", entropy, given["entropy_term"], 1e-5, relative=True)
