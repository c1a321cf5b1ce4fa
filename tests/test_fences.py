import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.models.fences import fence, seam
from dppmask_jax.models.heads import ProjectionHead
from dppmask_jax.models.layers import Block
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.models.vit_module import ViT

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def values_and_gradients(x):
    return jax.jit(jax.value_and_grad(lambda x: jnp.vdot(jnp.sin(fence(x)), x)))(x)


@pytest.mark.parametrize("apart", [fence, seam])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("first", [0.0, -3.5, np.inf, -np.inf, np.nan, 3e38])
def test_nothing_is_changed(first, dtype, apart):
    x, gradient = (jnp.asarray(X, dtype).at[0, 0, 0].set(first) for _ in range(2))
    value, pull_back = jax.vjp(jax.jit(apart), x)
    for after, before in ((value, x), (*pull_back(gradient), gradient)):
        assert np.asarray(after).tobytes() == np.asarray(before).tobytes()


def test_it_is_differentiated_and_mapped_as_the_identity():
    value, gradient = values_and_gradients(X)
    np.testing.assert_allclose(value, np.sum(np.sin(X) * X), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.cos(X) * X + np.sin(X), rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(values_and_gradients)(X)
    for i, x in enumerate(X):
        np.testing.assert_allclose(mapped[0][i], values_and_gradients(x)[0], rtol=1e-6)
        np.testing.assert_allclose(mapped[1][i], values_and_gradients(x)[1], rtol=1e-6)


def test_an_empty_batch_stays_empty():
    assert jax.jit(fence)(X[:0]).shape == (0, 5, 8)


def test_a_block_is_fenced_on_a_cpu_and_nothing_is_elsewhere():
    block = Block(heads=2, hidden=32)
    params = block.init(jax.random.key(0), X)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(block.apply(params, X)))))
    program = gradient.lower(params).compile().as_text()
    # The sums after attention and after the MLP, and their gradients.
    assert program.count(" conditional(") == 4
    for platform, fenced in (("cpu", True), ("tpu", False), ("cuda", False)):
        lowered = jax.jit(fence).trace(X).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.negate" in lowered) == fenced


def barriers(function, *inputs):
    """How often the function's program keeps apart what it computes, by platform."""

    def count(platform):
        lowered = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,))
        return lowered.as_text().count("optimization_barrier")

    return {platform: count(platform) for platform in ("cpu", "tpu", "cuda")}


def test_seams_are_around_all_blocks_and_in_the_head_on_a_tpu_alone():
    encoder = ViT(SIZES["Pi"], (16, 16), 8)
    images = jnp.zeros((2, 16, 16, 3))
    params = encoder.init(jax.random.key(0), images)
    head = ProjectionHead(hidden=6, bottleneck=4, prototypes=5, trainable_scale=False, shared=True)
    of_head = head.init(jax.random.key(0), X)
    for model, given, x, seams in ((encoder, params, images, 2), (head, of_head, X, 1)):

        def forward(params, model=model, x=x):
            return sum(jnp.sum(part) for part in model.apply(params, x))

        assert barriers(forward, given) == {"cpu": 0, "tpu": seams, "cuda": 0}
        # And as many behind, for the gradients.
        both = {"cpu": 0, "tpu": 2 * seams, "cuda": 0}
        assert barriers(jax.grad(forward), given) == both
