"""The flax module of a vision transformer that encodes images (arXiv 2010.11929), how its
parameters start, and its positions.

Positions are a fixed table as MAE's (arXiv 2111.06377, appendix A.1) and MoCo v3's (arXiv
2104.02057), or learned as iBOT's and a fine-tuned classifier's (arXiv 2111.07832, section 3), or
there are none, as in SimMIM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.models.fences import seam
from dppmask_jax.models.layers import XAVIER, BlockOptions, Blocks, PatchEmbed, layer_norm, normal
from dppmask_jax.models.relative import RelativeBias
from dppmask_jax.models.sizes import Size


class Start(NamedTuple):
    """Initialisers of the parameters.

    Attributes:
      tokens: class token, registers and learned positions.
      kernels: of the blocks.
      patch_kernel, patch_bias: of the patch embedding; None is a convolution's usual
        U(±1/sqrt(P)).
      divided, apart: see `layers.BlockOptions`.
    """

    tokens: Callable
    kernels: Callable
    patch_kernel: Callable | None = None
    patch_bias: Callable | None = None
    divided: bool = False
    apart: bool = False


MAE_START = Start(normal(0.02), XAVIER, XAVIER)
# The code of MoCo v3 (arXiv 2104.02057): its class token hardly differs from zero.
MOCO_START = Start(normal(1e-6), XAVIER, XAVIER, nn.initializers.zeros, apart=True)


def normal_start(std: float) -> Start:
    """The start of iBOT's code."""
    return Start(normal(std), normal(std))


def cut_start(std: float) -> Start:
    """The start of SimMIM's code: a normal distribution cut at ±1 standard deviation."""
    cut = nn.initializers.truncated_normal(std, lower=-1.0, upper=1.0)
    return Start(cut, cut, cut, nn.initializers.zeros, divided=True)


def given_or_fixed(
    module: nn.Module,
    grid: tuple[int, int],
    width: int,
    of_class: bool = True,
    first_axis: str = "column",
):
    """(1, 1 + N, D): the parameter "positions" of a module where it has one, else the sine-cosine
    table of the grid, with zeros for the class token; (1, N, D) without `of_class`.

    No module makes that parameter. `Method.with_positions` and `Encoder.trainable` put it there,
    for images of another size: their positions are the table of the old grid, resized.
    """
    if module.has_variable("params", "positions"):
        return module.get_variable("params", "positions")
    return fixed_table(grid, width, of_class, first_axis)


def fixed_table(grid: tuple[int, int], width: int, of_class: bool, first_axis: str):
    """(1, 1 + N, D) sine-cosine positions of a grid, with zeros for the class token; (1, N, D)
    without `of_class`. `first_axis` as for `patches.sincos_positions`."""
    table = patches.fixed_positions(grid, width, first_axis)
    return table if of_class else table[:, 1:]


class ViT(nn.Module):
    """Encoder of images.

    `__call__` takes whole images. `embed` gives their patch tokens alone, and `encode` runs the
    blocks on any of these, as MAE does on the visible ones.

    Attributes:
      position: "fixed", see `given_or_fixed`; "learned", which are interpolated for images of
        another size than `image_size`; or "none".
      first_axis: what the first half of the channels of fixed positions encodes: "column" (MAE) or
        "row" (MoCo v3).
      registers: number of further tokens between the class token and the patches; they have no
        positions (arXiv 2309.16588).
      relative: "" or relative position biases, "shared" by all blocks or of "each" block; see
        `relative.RelativeBias`. Such an encoder takes whole images of `image_size`.
      layer_scale, qv_bias, mlp: see `layers.BlockOptions`.
      class_token: whether there is one (I-JEPA has none); registers and relative positions need
        it.
      class_position: whether the class token has a position (DeiT III gives it none).
    """

    size: Size
    image_size: tuple[int, int]
    patch_size: patches.PatchSize
    position: str = "learned"
    drop_path_rate: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32
    start: Start = normal_start(0.02)
    registers: int = 0
    relative: str = ""
    layer_scale: float = 0.0
    qv_bias: bool = False
    class_token: bool = True
    class_position: bool = True
    mlp: str = "gelu"
    first_axis: str = "column"

    @property
    def prefix(self) -> int:
        """How many tokens stand in front of the patches: the class token and the registers."""
        return int(self.class_token) + self.registers

    @property
    def of_class(self) -> bool:
        """Whether the first position is the class token's."""
        return self.class_token and self.class_position

    @property
    def grid(self) -> tuple[int, int]:
        return patches.grid_shape(self.image_size, self.patch_size)

    def setup(self):
        width, (rows, columns), start = self.size.width, self.grid, self.start
        self.patch_embed = PatchEmbed(
            width, self.patch_size, self.dtype, start.patch_kernel, start.patch_bias
        )
        if self.class_token:
            self.cls_token = self.param("cls_token", start.tokens, (1, 1, width), jnp.float32)
        if self.position == "learned":
            shape = (1, self.of_class + rows * columns, width)
            self.learned = self.param("positions", start.tokens, shape, jnp.float32)
        if self.registers:
            shape = (1, self.registers, width)
            self.register_tokens = self.param("registers", start.tokens, shape, jnp.float32)
        if self.relative == "shared":
            self.relative_bias = RelativeBias(self.grid, self.size.heads)
        options = BlockOptions(
            self.layer_scale,
            self.qv_bias,
            self.grid if self.relative == "each" else None,
            start.divided,
            self.mlp,
            start.apart,
        )
        self.blocks = Blocks(
            self.size, self.drop_path_rate, self.remat, self.dtype, start.kernels, options
        )
        self.norm = layer_norm(None)

    def __call__(self, images, keys=None, *, mask=None, mask_token=None):
        """
        Args:
          images: (B, H, W, C) normalised.
          keys: (B,) keys for drop-path; None keeps every branch.
          mask: (B, N) bool; the embeddings of patches that are True give way to `mask_token`,
            before positions are added.
          mask_token: (1, D).

        Returns:
          (latent, prenorm): both (B, prefix + N, D), class token first and patches last, after and
          before the final layer norm; latent is float32.
        """
        prenorm = self.prenorm(images, keys, mask=mask, mask_token=mask_token)
        return self.norm(prenorm), prenorm

    def prenorm(self, images, keys=None, *, mask=None, mask_token=None):
        """As `__call__`, but without the final layer norm, whose parameters it does not make."""
        x = self._placed(self._masked(self.patch_embed(images), mask, mask_token), images)
        bias = None
        if self.relative:
            self._check_grid(images)
            bias = self.relative_bias() if self.relative == "shared" else None
        # Without the seams the step of iBOT takes the TPU compiler a twelfth longer.
        return seam(self.blocks(seam(self._with_registers(x)), keys, bias))

    def _masked(self, tokens, mask, mask_token):
        if mask is None:
            return tokens
        return jnp.where(mask[..., None], mask_token.astype(tokens.dtype), tokens)

    def _placed(self, tokens, images):
        """(B, N, D) embeddings -> (B, 1 + N, D) with the class token, if any, and positions."""
        has_positions = self.position != "none"
        if has_positions and not self.of_class:
            tokens = tokens + self._positions(images).astype(tokens.dtype)
        if self.class_token:
            tokens = jnp.concatenate([self._class_token(tokens), tokens], axis=1)
        if has_positions and self.of_class:
            tokens = tokens + self._positions(images).astype(tokens.dtype)
        return tokens

    def embed(self, images, mask=None, mask_token=None):
        """(B, H, W, C) normalised images -> (B, N, D) patch embeddings plus positions; `mask` and
        `mask_token` as in `__call__`."""
        tokens = self._masked(self.patch_embed(images), mask, mask_token)
        if self.position == "none":
            return tokens
        positions = self._positions(images)[0, int(self.of_class) :]
        return tokens + jnp.asarray(positions, self.dtype)

    def encode(self, tokens, keys=None):
        """Runs the blocks on the class token, if there is one, and `tokens`.

        Args:
          tokens: (B, K, D) from `embed`, all of them or the visible ones in any order.
          keys: (B,) keys for drop-path; None in evaluation.

        Returns:
          As `__call__`, of K patches.
        """
        if self.class_token:
            cls = self._class_token(tokens)
            if self.position == "learned" and self.of_class:
                cls = cls + self.learned[:, :1].astype(tokens.dtype)
            tokens = jnp.concatenate([cls, tokens], axis=1)
        prenorm = self.blocks(self._with_registers(tokens), keys)
        return self.norm(prenorm), prenorm

    def _with_registers(self, x):
        if not self.registers:
            return x
        shape = (x.shape[0], self.registers, self.size.width)
        registers = jnp.broadcast_to(self.register_tokens.astype(x.dtype), shape)
        return jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

    def _class_token(self, tokens):
        return jnp.broadcast_to(
            self.cls_token.astype(tokens.dtype), (tokens.shape[0], 1, self.size.width)
        )

    def _positions(self, images):
        """(1, 1 + N, D), or (1, N, D) where the class token has none."""
        if self.position == "learned":
            grid = patches.grid_shape(images.shape[1:3], self.patch_size)
            return patches.resize_positions(self.learned, self.grid, grid)
        self._check_grid(images)
        return given_or_fixed(self, self.grid, self.size.width, self.of_class, self.first_axis)

    def _check_grid(self, images):
        if patches.grid_shape(images.shape[1:3], self.patch_size) != self.grid:
            raise ValueError(
                f"the encoder was built for images of {self.image_size[0]}x{self.image_size[1]}, "
                f"got {images.shape[1]}x{images.shape[2]}"
            )
