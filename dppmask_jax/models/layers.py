"""The layers of vision transformers (arXiv 2010.11929), up to a stack of blocks.

Parameters are float32; matrix products run in `dtype`; softmax and layer norms run in float32.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.models import packed_attention
from dppmask_jax.models.attention import attend, attention_weights
from dppmask_jax.models.fences import fence
from dppmask_jax.models.relative import RelativeBias
from dppmask_jax.models.sizes import Size

NORM_EPSILON = 1e-6
XAVIER = nn.initializers.xavier_uniform()


def uniform(bound: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(std: float):
    """A normal distribution. iBOT's code truncates it at ±2, a hundred standard deviations, which
    changes nothing."""
    return nn.initializers.normal(std)


def dense(features: int, dtype, name: str, kernel_init=XAVIER, use_bias=True) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=jnp.float32,
        kernel_init=kernel_init,
        name=name,
    )


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=NORM_EPSILON,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        use_fast_variance=False,
        name=name,
    )


@jax.custom_jvp
def gelu(x):
    """x times the normal distribution function of x, exact and computed in float32.

    Training keeps the derivative, in the type of x: `nn.gelu` would keep several intermediate
    results and evaluate erf again in the backward pass.
    """
    return _gelu_and_derivative(x)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    value, derivative = _gelu_and_derivative(*primals)
    return value, derivative * tangents[0]


def _gelu_and_derivative(x):
    wide = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(wide * 0.5**0.5))
    derivative = below + wide * jnp.exp(-0.5 * jnp.square(wide)) / (2.0 * jnp.pi) ** 0.5
    return (wide * below).astype(x.dtype), derivative.astype(x.dtype)


def branch_scales(keys, rates):
    """Stochastic depth (arXiv 1603.09382): the factors of the residual branches of each example.

    One draw serves all blocks: a draw in each of them would take the TPU compiler as much time as
    the block itself.

    Args:
      keys: (B,) keys, one an example.
      rates: the probability, 0 to below 1, that a branch is dropped; one a block.

    Returns:
      (B, blocks, 2) float32, of attention and MLP: 0, or 1 / (1 - rate) where the branch is kept.
    """
    keep = 1.0 - jnp.asarray(rates, jnp.float32)[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (len(rates), 2)))(keys)
    return jnp.where(draws < keep, 1.0 / keep, 0.0)


def _scaled(branch, scale):
    return branch if scale is None else branch * scale[:, None, None].astype(branch.dtype)


class PatchEmbed(nn.Module):
    """Linear projection of patches: the convolution with kernel and stride `patch_size`.

    The kernel is (P, D) with P in the order of `patches.patchify`. Kernel and bias start from a
    convolution's usual U(±1/sqrt(P)) where their initialiser is None.
    """

    width: int
    patch_size: patches.PatchSize
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    bias_init: Any = None

    @nn.compact
    def __call__(self, images):
        values = math.prod(patches.sides(self.patch_size)) * images.shape[-1]
        return nn.Dense(
            self.width,
            dtype=self.dtype,
            param_dtype=jnp.float32,
            kernel_init=self.kernel_init or uniform(values**-0.5),
            bias_init=self.bias_init or uniform(values**-0.5),
            name="proj",
        )(patches.patchify(images, self.patch_size))


class BlockOptions(NamedTuple):
    """Options of a block; the defaults are a plain one.

    Attributes:
      layer_scale: start of the trained scale of each branch's channels (CaiT, arXiv 2103.17239);
        0: there is none.
      qv_bias: queries and values have biases, keys have none (BEiT, arXiv 2106.08254).
      relative: (rows, columns) of patches whose relative positions the block has biases for, see
        `relative.RelativeBias`; None: it has none of its own.
      divided: the kernels that end the branches of block i start divided by sqrt(2 (i + 1)).
      mlp: of `MLPS`.
      apart: the kernels of queries, keys and values start each by itself, not as one of three times
        as many outputs (MoCo v3, arXiv 2104.02057).
    """

    layer_scale: float = 0.0
    qv_bias: bool = False
    relative: tuple[int, int] | None = None
    divided: bool = False
    mlp: str = "gelu"
    apart: bool = False


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection (order: q, k, v, then head).

    Sows its weights (B, H, query, key), float32, as the intermediate "weights", and what
    `base.BlockTrace` has of them into the collection "trace".
    """

    heads: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    out_init: Any = XAVIER
    options: BlockOptions = BlockOptions()

    @nn.compact
    def __call__(self, x, bias=None):
        """(B, L, D) -> (B, L, D); `bias` (heads, L, L) is added to the logits."""
        width = x.shape[-1]
        if self.options.relative:
            bias = RelativeBias(self.options.relative, self.heads, name="relative")()
        kernel_init = _apart(self.kernel_init) if self.options.apart else self.kernel_init
        if self.options.qv_bias:
            query_bias, value_bias = (
                self.param(name, nn.initializers.zeros, (width,), jnp.float32)
                for name in ("q_bias", "v_bias")
            )
            qkv = dense(3 * width, self.dtype, "qkv", kernel_init, use_bias=False)(x)
            biases = jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
            qkv = qkv + biases.astype(qkv.dtype)
        else:
            qkv = dense(3 * width, self.dtype, "qkv", kernel_init)(x)

        def by_heads(qkv):
            query, key, value = _heads_of(qkv, self.heads)
            mixed = attend(query, key, value, bias)
            return jnp.swapaxes(mixed.reshape(mixed.shape[0], width, -1), 1, 2)

        self._sow(qkv, bias)
        # As a TPU likes it; CPUs and GPUs attend head by head.
        if bias is None and packed_attention.pays(qkv, self.heads):
            in_groups = functools.partial(packed_attention.attend, self.heads)
            mixed = jax.lax.platform_dependent(qkv, tpu=in_groups, default=by_heads)
        else:
            mixed = by_heads(qkv)
        return dense(width, self.dtype, "proj", self.out_init)(mixed)

    def _sow(self, qkv, bias):
        """Sows the weights and the trace, each where the caller asks for it."""
        if self.is_mutable_collection("intermediates"):
            query, key, _ = _heads_of(qkv, self.heads)
            self.sow("intermediates", "weights", attention_weights(query, key, bias))
        if self.is_mutable_collection("trace"):
            query, key, value = _heads_of(qkv, self.heads)
            self.sow("trace", "attention", attention_weights(query, key, bias))
            self.sow("trace", "keys", key.mT)
            self.sow("trace", "mixed", attend(query, key, value, bias).mT)


def _heads_of(qkv, heads: int):
    """(B, L, 3 D) -> queries, scaled, keys and values, (B, H, C, L) each."""
    batch, length, _ = qkv.shape
    query, key, value = (
        part.reshape(batch, heads, -1, length)
        for part in jnp.split(jnp.swapaxes(qkv, 1, 2), 3, axis=1)
    )
    return query * jnp.asarray(query.shape[2] ** -0.5, query.dtype), key, value


def _apart(init):
    """The initialiser of a kernel (D, 3 D') whose three parts start each by itself."""

    def start(key, shape, dtype=jnp.float32):
        inputs, outputs = shape
        keys = jax.random.split(key, 3)
        return jnp.concatenate([init(k, (inputs, outputs // 3), dtype) for k in keys], axis=1)

    return start


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    hidden: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    out_init: Any = XAVIER

    @nn.compact
    def __call__(self, x):
        hidden = dense(self.hidden, self.dtype, "fc1", self.kernel_init)(x)
        hidden = gelu(hidden)
        return dense(x.shape[-1], self.dtype, "fc2", self.out_init)(hidden)


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202) as in DINOv2: one layer makes what passes and its gate, `hidden`
    each, gate first."""

    hidden: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    out_init: Any = XAVIER

    @nn.compact
    def __call__(self, x):
        both = dense(2 * self.hidden, self.dtype, "w12", self.kernel_init)(x)
        gate, passed = jnp.split(both, 2, axis=-1)
        return dense(x.shape[-1], self.dtype, "w3", self.out_init)(nn.silu(gate) * passed)


MLPS = {"gelu": Mlp, "swiglu": GatedMlp}


class Block(nn.Module):
    """Pre-norm transformer block. `scales` (B, 2), where given, multiply its two branches."""

    heads: int
    hidden: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    out_init: Any = XAVIER
    options: BlockOptions = BlockOptions()

    @nn.compact
    def __call__(self, x, scales=None, bias=None):
        of_attention, of_mlp = (None, None) if scales is None else scales.T
        inits = (self.dtype, self.kernel_init, self.out_init)
        attention = Attention(self.heads, *inits, self.options, name="attn")
        branch = self._layer_scaled(attention(layer_norm("norm1")(x), bias), "scale1")
        x = fence(x + _scaled(branch, of_attention))
        self.sow("trace", "after_attention", x)
        mlp = MLPS[self.options.mlp](self.hidden, *inits, name="mlp")
        branch = self._layer_scaled(mlp(layer_norm("norm2")(x)), "scale2")
        x = fence(x + _scaled(branch, of_mlp))
        self.sow("trace", "after_mlp", x)
        return x

    def _layer_scaled(self, branch, name: str):
        if not self.options.layer_scale:
            return branch
        start = nn.initializers.constant(self.options.layer_scale)
        scale = self.param(name, start, branch.shape[-1:], jnp.float32)
        return branch * scale.astype(branch.dtype)


class Blocks(nn.Module):
    """A stack of blocks; drop-path rises linearly from 0 to `drop_path_rate` over the depth."""

    size: Size
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER
    options: BlockOptions = BlockOptions()

    @nn.compact
    def __call__(self, x, keys=None, bias=None):
        """(B, L, D) -> (B, L, D).

        Args:
          keys: (B,) keys for drop-path; None keeps every branch.
          bias: (heads, L, L) that all blocks add to their logits.
        """
        self.sow("trace", "embedding", x)
        block = nn.remat(Block) if self.remat else Block
        _, depth, heads, _ = self.size
        rates = [self.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        scales = branch_scales(keys, rates) if keys is not None and any(rates) else None
        for i in range(depth):
            inits = (self.kernel_init, self._out_init(i))
            x = block(heads, self.size.hidden, self.dtype, *inits, self.options, name=f"block_{i}")(
                x, None if scales is None else scales[:, i], bias
            )
        return x

    def _out_init(self, i: int):
        """Initialiser of the kernels that end the branches of block i."""
        if not self.options.divided:
            return self.kernel_init
        return lambda *args: self.kernel_init(*args) / (2.0 * (i + 1)) ** 0.5
