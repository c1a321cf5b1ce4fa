import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from dppmask_jax.models.fences import fence, seam
from dppmask_jax.models.heads import ProjectionHead
from dppmask_jax.models.layers import Block
from dppmask_jax.models.sizes import SIZES
from dppmask_jax.models.vit_module import ViT

X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def values_and_gradients(x):
    return jax.jit(jax.value_and_grad(lambda x: jnp.vdot(jnp.sin(fence(x)), x)))(x)


def on_a_tpu(*inputs, tpu=None, default=None, **others):
    return (tpu or default)(*inputs)


@pytest.mark.parametrize("apart", [fence, seam])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("first", [0.0, -3.5, np.inf, -np.inf, np.nan, 3e38])
def test_nothing_is_changed(first, dtype, apart, monkeypatch):
    if apart is seam:
        monkeypatch.setattr(jax.lax, "platform_dependent", on_a_tpu)
    x, gradient = (jnp.asarray(X, dtype).at[0, 0, 0].set(first) for _ in range(2))
    value, pull_back = jax.vjp(jax.jit(lambda x: apart(x)), x)
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


def in_order(jaxpr):
    """The names of all that a jaxpr does, inner ones in their places."""
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in_params(equation.params))
        if not inner:
            yield equation.primitive.name
        for each in inner:
            yield from in_order(each)


def products_between_seams(function, *inputs):
    """How many matrix products stand before the first seam, between seams, and after the last."""
    counts = [0]
    for name in in_order(jax.make_jaxpr(function)(*inputs).jaxpr):
        if name == "optimization_barrier":
            counts.append(0)
        counts[-1] += name in ("dot_general", "conv_general_dilated")
    return counts


def test_a_seam_is_on_either_side_of_all_blocks_and_in_the_head(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", on_a_tpu)
    encoder = ViT(SIZES["Pi"]._replace(depth=3), (16, 16), 8)
    images = jnp.zeros((2, 16, 16, 3))
    params = encoder.init(jax.random.key(0), images)
    # Patches; six products of each block.
    assert products_between_seams(encoder.apply, params, images) == [1, 3 * 6, 0]
    head = ProjectionHead(hidden=6, bottleneck=4, prototypes=5, trainable_scale=False, shared=True)
    of_head = head.init(jax.random.key(0), X)

    def class_logits(params):
        return head.apply(params, X)[0].sum()

    # Three layers; the logits of class and of patches.
    assert products_between_seams(class_logits, of_head) == [3, 2]
    assert len(products_between_seams(jax.grad(class_logits), of_head)) == 3


def test_seams_are_of_tpus_alone():
    for platform, count in (("cpu", 0), ("tpu", 1), ("cuda", 0)):
        lowered = jax.jit(seam).trace(X).lower(lowering_platforms=(platform,)).as_text()
        assert lowered.count("optimization_barrier") == count
