"""Losses and their gradients, of a few images at a time."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from dppmask_jax.methods import METHODS, chunks
from dppmask_jax.methods.base import Plan

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("images", "fit", "size"),
    [
        (256, 16.9, 16),
        (256, 300, 256),
        (24, 16, 12),
        (136, 16, 136),  # 8 would leave half of the memory empty
        (8, 16, 8),
        (48, 16, 16),
        (251, 16, 251),  # a prime number of images: one at a time would take too long
        (4, 0.5, 1),
    ],
)
def test_chunks_fill_the_fast_memory(images, fit, size):
    assert chunks.size_for(images, int(chunks.FAST_BYTES / fit)) == size


def squares(params, latent, others):
    """Of a linear layer, a mean over images; half of each image counts."""
    targets, counts = others
    error = latent @ params["kernel"] + params["bias"] - targets
    per_image = jnp.sum(jnp.square(error) * counts[..., None], axis=(1, 2))
    return jnp.mean(per_image / jnp.sum(counts, axis=1))


def gradients_by_hand(params, latent, targets, counts):
    """In float64: d/dW of the mean of |x W + b - t|^2 over counted tokens."""
    latent, targets = np.float64(latent), np.float64(targets)
    weights = counts / counts.sum(1, keepdims=True) / len(latent)
    error = latent @ np.float64(params["kernel"]) + np.float64(params["bias"]) - targets
    value = np.sum(np.square(error) * weights[..., None])
    of_error = 2 * error * weights[..., None]
    of_params = {
        "kernel": np.einsum("bli,blo->io", latent, of_error), "bias": of_error.sum((0, 1))
    }  # fmt: skip
    return value, of_params, of_error @ np.float64(params["kernel"]).T


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(12, 4, 5)).astype(np.float32)
    targets = rng.normal(size=(12, 4, 3)).astype(np.float32)
    counts = rng.permuted(np.tile([True, True, False, False], (12, 1)), axis=1)
    params = {
        "kernel": rng.normal(size=(5, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    return params, latent, targets, counts


@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_gradient_of_chunks_is_that_of_the_batch(size, batch):
    params, latent, *others = batch
    find = jax.value_and_grad(squares, argnums=(0, 1))
    found = jax.jit(chunks.in_chunks, static_argnums=(0, 1))(find, size, params, latent, others)
    value, *gradients = gradients_by_hand(*batch)
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 12])
def test_what_follows_the_mean_multiplies_its_gradient(size, batch):
    params, latent, *others = batch

    def loss(params, latent):
        return 3.0 * chunks.mean(squares, size, params, latent, others)

    found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, latent)
    value, *gradients = gradients_by_hand(*batch)
    np.testing.assert_allclose(found[0], 3 * value, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(params, latent), 3 * value, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, 3 * other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [{}, {"mask__strategy": "amt", "mask__thrown": 0.25}])
def test_a_decoder_in_chunks_is_the_decoder(masks, monkeypatch):
    method = METHODS["mae"].build(tiny.config("mae", model__depth=1, **masks), Plan(4, 8, 1, 4))
    rng = np.random.default_rng(1)

    def example(index):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
        return method.example(file.getvalue(), rng) | {"index": np.int32(index)}

    examples = [example(i) for i in range(8)]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    params, extra = tiny.filled(jax.eval_shape(method.init, KEY), 2)
    (turn,) = method.turns

    def loss(params):
        return turn.loss(params, extra, batch, KEY, jnp.int32(0))[0]

    def traced():  # a function of its own each time: what was traced is not found again
        return jax.jit(jax.value_and_grad(lambda params: loss(params))).trace(params)

    def loops(traced, platform):
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    at_once = traced()
    value, gradient = at_once.lower().compile()(params)
    monkeypatch.setattr(chunks, "FAST_BYTES", 2 * 2 * 17**2 * 4)  # two images at a time
    both = traced()
    assert loops(both, "tpu") == loops(at_once, "tpu") + 1
    assert loops(both, "cpu") == loops(at_once, "cpu")
    # As on a TPU.
    monkeypatch.setattr(
        jax.lax, "platform_dependent",
        lambda *args, tpu=None, cpu=None, default: (tpu or default)(*args),
    )  # fmt: skip
    other, in_chunks = traced().lower().compile()(params)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(in_chunks), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
