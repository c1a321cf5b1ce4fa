import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dppmask_jax.models import layers, packed_attention

# Heads that fill 128 lanes by twos, by fours and by eights.
SIZES = [(6, 64, 50), (4, 32, 20), (8, 16, 13)]


def inputs(heads, channels, length):
    rng = np.random.default_rng(0)
    width = heads * channels
    return rng.normal(size=(2, length, 3 * width)), rng.normal(size=(2, length, width))


def reference(qkv, cotangent, heads):
    """Attention and its gradient in float64, written out."""
    batch, length, _ = qkv.shape
    query, key, value = np.moveaxis(qkv.reshape(batch, length, 3, heads, -1), (2, 3), (0, 2))
    channels = query.shape[-1]
    logits = np.einsum("bhqc,bhkc->bhqk", query, key) / channels**0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    of_out = np.moveaxis(cotangent.reshape(batch, length, heads, -1), 2, 1)
    of_weights = np.einsum("bhqc,bhkc->bhqk", of_out, value)
    of_logits = weights * (of_weights - (weights * of_weights).sum(-1, keepdims=True))
    parts = (
        np.einsum("bhqk,bhkc->bhqc", of_logits, key) / channels**0.5,
        np.einsum("bhqk,bhqc->bhkc", of_logits, query) / channels**0.5,
        np.einsum("bhqk,bhqc->bhkc", weights, of_out),
    )
    joined = [
        np.moveaxis(part, 1, 2).reshape(batch, length, -1) for part in (weights @ value, *parts)
    ]
    return joined[0], np.concatenate(joined[1:], axis=-1)


def distance(a, b):
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize(("heads", "channels", "length"), SIZES)
def test_value_and_gradient_equal_float64(heads, channels, length, dtype, error):
    qkv, cotangent = (
        np.asarray(jnp.asarray(x, dtype), np.float64) for x in inputs(heads, channels, length)
    )
    expected, gradient = reference(qkv, cotangent, heads)
    attend = lambda x: packed_attention.attend(heads, x)  # noqa: E731
    out, backward = jax.vjp(attend, jnp.asarray(qkv, dtype))
    (found,) = backward(jnp.asarray(cotangent, dtype))
    assert out.dtype == found.dtype == dtype
    assert distance(out, expected) < error
    for got, want in zip(np.split(found, 3, axis=-1), np.split(gradient, 3, axis=-1), strict=True):
        assert distance(got, want) < error


def test_large_logits_are_as_exact_as_float32_has_them():
    qkv, cotangent = inputs(*SIZES[0])
    qkv = np.asarray(40 * qkv, np.float32)
    expected, _ = reference(qkv.astype(np.float64), cotangent, SIZES[0][0])
    out, backward = jax.vjp(lambda x: packed_attention.attend(SIZES[0][0], x), qkv)
    assert distance(out, expected) < 1e-3
    assert np.isfinite(backward(jnp.asarray(cotangent, jnp.float32))[0]).all()


@pytest.mark.parametrize(
    ("shape", "heads", "pays"),
    [
        ((256, 50, 768), 12, True),  # MAE's encoder of a ViT-B, a quarter of 196 patches visible
        ((16, 50, 768), 12, False),  # few images stay in the fast memory
        ((160, 37, 384), 6, False),  # so do iBOT's local views
        ((256, 64, 768), 12, True),
        ((256, 65, 768), 12, False),
        ((256, 197, 768), 12, False),  # a whole image has more keys than a head has channels
        ((256, 50, 192), 3, False),  # three heads of 64 are one group and a half
        ((256, 50, 1280), 16, False),  # 80 channels do not fill 128 lanes
        ((256, 50, 1024), 8, False),  # 128 channels do so by themselves
    ],
)
def test_it_is_for_many_short_sequences_of_heads_that_fill_the_lanes(shape, heads, pays):
    batch, length, width = shape
    qkv = jax.ShapeDtypeStruct((batch, length, 3 * width), jnp.bfloat16)
    assert packed_attention.pays(qkv, heads) == pays


LAYER = layers.Attention(heads=6)


def test_a_layer_attends_alike_either_way(monkeypatch):
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(size=(2, 13, 384)), jnp.float32) for _ in range(2))
    variables = LAYER.init(jax.random.key(0), x)

    def computed():
        out, backward = jax.vjp(LAYER.apply, variables, x)
        return out, backward(cotangent)

    by_heads = computed()
    monkeypatch.setattr(packed_attention, "pays", lambda *_: True)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, *, tpu, default: tpu(x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), computed(), by_heads
    )


def test_a_tpu_alone_attends_in_groups():
    x = jax.ShapeDtypeStruct((512, 50, 384), jnp.float32)
    variables = jax.eval_shape(LAYER.init, jax.random.key(0), x)
    traced = jax.jit(LAYER.apply).trace(variables, x)
    of_groups, of_heads = "tensor<512x3x100x128", "tensor<512x6x64x50"
    for platform in ("tpu", "cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert (of_groups in text) == (platform == "tpu")
        assert (of_heads in text) == (platform != "tpu")


def test_a_program_for_any_batch_attends_by_heads():
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 50, 384), jnp.float32)
    variables = jax.eval_shape(LAYER.init, jax.random.key(0), jnp.zeros((1, 50, 384)))
    exported = jax.export.export(jax.jit(LAYER.apply), platforms=["tpu"])(variables, x)
    assert exported.out_avals[0].shape == (batch, 50, 384)
