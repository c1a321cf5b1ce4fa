"""Vision transformer blocks, and the encoder of MAE (arXiv 2111.06377, appendix A.1).

Parameters are float32; matrix products run in `dtype`; softmax and layer norms run in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.fields import FLAG, Field, fraction_below_1, one_of, pair, whole
from dppmask_jax.models.attention import attend, attention_weights
from dppmask_jax.models.fences import fence

NORM_EPSILON = 1e-6
XAVIER = nn.initializers.xavier_uniform()


class Size(NamedTuple):
    """Width D, number of blocks and number of attention heads of an encoder."""

    width: int
    depth: int
    heads: int


SIZES = {
    "Pi": Size(96, 4, 3),
    "Mu": Size(128, 6, 4),
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
    "H": Size(1280, 32, 16),
}
FIELDS = {
    "image_size": Field(
        (224, 224),
        pair(whole(1, 16384), "(height, width) in pixels, such as (224, 224)"),
        "size of the images that the model sees, multiples of the patches",
        fixed=True,
    ),
    "model.size": Field("B", one_of(*SIZES), "width, depth and heads of the encoder", fixed=True),
    "model.patch_size": Field(16, whole(1), "height and width of a patch, in pixels", fixed=True),
    "model.drop_path": Field(
        0.0, fraction_below_1, "probability that an image passes by the last block"
    ),
    "model.dtype": Field(
        "bfloat16",
        one_of("float32", "bfloat16"),
        "of activations; parameters, softmax, norms and loss are float32",
    ),
    "model.remat": Field(
        False, FLAG, "compute activations twice, which takes less memory", free="carried out"
    ),
}

MOST_PATCHES = 2**14  # of an image; the selector's kernel has their square


def checked_patches(field: str, size, patch_size: int) -> int:
    """How many patches images of a config's field have.

    Raises:
      InputError: they are not whole, or more than `MOST_PATCHES`.
    """
    try:
        rows, columns = patches.grid_shape(tuple(size), patch_size)
    except ValueError as error:
        raise InputError(f"config.{field}, config.model.patch_size: {error}") from error
    if rows * columns > MOST_PATCHES:
        raise InputError(
            f"config.{field}, config.model.patch_size: {rows * columns} patches are more than "
            f"{MOST_PATCHES}; take larger patches or smaller images"
        )
    return rows * columns


def uniform(bound: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(std: float):
    """What iBOT's code calls truncated: at ±2, which is a hundred of its standard deviations."""
    return nn.initializers.normal(std)


def dense(features: int, dtype, name: str, kernel_init=XAVIER) -> nn.Dense:
    return nn.Dense(
        features, dtype=dtype, param_dtype=jnp.float32, kernel_init=kernel_init, name=name
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

    Training keeps the slope, in the type of x: `nn.gelu` would keep several intermediate results
    and evaluate erf again in the backward pass.
    """
    return _gelu_and_slope(x)[0]


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    value, slope = _gelu_and_slope(*primals)
    return value, slope * tangents[0]


def _gelu_and_slope(x):
    wide = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(wide * 0.5**0.5))
    slope = below + wide * jnp.exp(-0.5 * jnp.square(wide)) / (2.0 * jnp.pi) ** 0.5
    return (wide * below).astype(x.dtype), slope.astype(x.dtype)


def branch_scales(keys, rates):
    """Stochastic depth (arXiv 1603.09382): the factors of the residual branches of each example.

    Drawn for all blocks at once: a draw in each of them would cost the TPU compiler as much time
    as the block itself.

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

    The kernel is (P, D) with P in the order of `patches.patchify`. The bias, and the kernel where
    `kernel_init` is None, have a convolution's usual U(±1/sqrt(P)).
    """

    width: int
    patch_size: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER

    @nn.compact
    def __call__(self, images):
        values = self.patch_size * self.patch_size * images.shape[-1]
        return nn.Dense(
            self.width,
            dtype=self.dtype,
            param_dtype=jnp.float32,
            kernel_init=self.kernel_init or uniform(values**-0.5),
            bias_init=uniform(values**-0.5),
            name="proj",
        )(patches.patchify(images, self.patch_size))


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection (order: q, k, v, then head).

    Sows its weights (B, H, query, key), float32, as the intermediate "weights".
    """

    heads: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER

    @nn.compact
    def __call__(self, x):
        batch, length, width = x.shape
        head_width = width // self.heads
        qkv = jnp.swapaxes(dense(3 * width, self.dtype, "qkv", self.kernel_init)(x), 1, 2)
        query, key, value = (
            part.reshape(batch, self.heads, head_width, length)
            for part in jnp.split(qkv, 3, axis=1)
        )
        query = query * jnp.asarray(head_width**-0.5, query.dtype)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(query, key))
        mixed = attend(query, key, value).reshape(batch, width, length)
        mixed = jnp.swapaxes(mixed, 1, 2)
        return dense(width, self.dtype, "proj", self.kernel_init)(mixed)


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    hidden: int
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER

    @nn.compact
    def __call__(self, x):
        hidden = dense(self.hidden, self.dtype, "fc1", self.kernel_init)(x)
        hidden = gelu(hidden)
        return dense(x.shape[-1], self.dtype, "fc2", self.kernel_init)(hidden)


class Block(nn.Module):
    """Pre-norm transformer block; its branches are scaled by `scales` (B, 2) where there are."""

    heads: int
    mlp_ratio: int = 4
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER

    @nn.compact
    def __call__(self, x, scales=None):
        of_attention, of_mlp = (None, None) if scales is None else scales.T
        attention = Attention(self.heads, self.dtype, self.kernel_init, name="attn")
        x = fence(x + _scaled(attention(layer_norm("norm1")(x)), of_attention))
        hidden = self.mlp_ratio * x.shape[-1]
        branch = Mlp(hidden, self.dtype, self.kernel_init, name="mlp")(layer_norm("norm2")(x))
        return fence(x + _scaled(branch, of_mlp))


class Blocks(nn.Module):
    """A stack of blocks; drop-path rises linearly from 0 to `drop_path_rate` over the depth."""

    depth: int
    heads: int
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    kernel_init: Any = XAVIER

    @nn.compact
    def __call__(self, x, keys=None):
        block = nn.remat(Block) if self.remat else Block
        rates = [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
        scales = branch_scales(keys, rates) if keys is not None and any(rates) else None
        for i in range(self.depth):
            x = block(
                self.heads, dtype=self.dtype, kernel_init=self.kernel_init, name=f"block_{i}"
            )(x, None if scales is None else scales[:, i])
        return x


def fixed_or_given(module: nn.Module, grid: tuple[int, int], width: int):
    """(N, D): "positions" of a module's parameters without the class token's where they are there,
    else the sine-cosine table of the grid.

    A model does not make that parameter. It is put there where one is to take images of another
    size than it was trained with, whose grid would have a table of its own.
    """
    if module.has_variable("params", "positions"):
        return module.get_variable("params", "positions")[0, 1:]
    return patches.sincos_positions(grid, width)


class Encoder(nn.Module):
    """ViT encoder with fixed positions, see `fixed_or_given`, and a class token.

    `embed` gives the patch tokens with their positions; `__call__` runs the blocks on any subset
    of them.
    """

    size: Size
    image_size: tuple[int, int]
    patch_size: int
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    @property
    def grid(self) -> tuple[int, int]:
        return patches.grid_shape(self.image_size, self.patch_size)

    def setup(self):
        self.patch_embed = PatchEmbed(self.size.width, self.patch_size, self.dtype)
        self.cls_token = self.param(
            "cls_token", nn.initializers.normal(0.02), (1, 1, self.size.width), jnp.float32
        )
        self.blocks = Blocks(
            self.size.depth, self.size.heads, self.drop_path_rate, self.remat, self.dtype
        )
        self.norm = layer_norm(None)

    def embed(self, images):
        """(B, H, W, 3) normalised images -> (B, N, D) patch embeddings plus positions."""
        if images.shape[1:3] != tuple(self.image_size):
            raise ValueError(
                f"the encoder was built for images of {self.image_size[0]}x{self.image_size[1]}, "
                f"got {images.shape[1]}x{images.shape[2]}"
            )
        positions = fixed_or_given(self, self.grid, self.size.width)
        return self.patch_embed(images) + jnp.asarray(positions, self.dtype)

    def __call__(self, tokens, keys=None):
        """Runs the blocks on the class token and `tokens`.

        Args:
          tokens: (B, K, D) from `embed`, all of them or the visible ones in any order.
          keys: (B,) keys for drop-path; None in evaluation.

        Returns:
          (latent, prenorm): both (B, 1 + K, D), class token first, after and before the final
          layer norm; latent is float32.
        """
        cls = jnp.broadcast_to(
            self.cls_token.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2])
        )
        prenorm = self.blocks(jnp.concatenate([cls, tokens], axis=1), keys)
        return self.norm(prenorm), prenorm
