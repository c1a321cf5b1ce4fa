"""What a family of published encoders is, and the names that libraries give to their tensors.

The names here are those of timm's `VisionTransformer`, with those of DINOv2 for a gated MLP and of
BEiT for what timm has not. Weights that a file keeps apart have names of their own:

  attn.q, attn.k, attn.v       together attn.qkv
  mlp.fc1_g, mlp.fc1_x, mlp.fc2    a gated MLP: the first two together are mlp.w12, the last mlp.w3
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

Spellings = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    """Encoders of one origin.

    Attributes:
      label: its name in messages.
      spellings: (pattern, replacement) for the names of a file, one after the other; they end in
        the names here.
      networks: what may stand before the names of the network that is taken, the most wanted first.
      aside: a pattern of what else there may be and is left aside: whole names, as they are in the
        file or behind what stands before those of the network.
      containers: keys under which a .pth file may keep the tensors, the most wanted first.
      heads: width -> number of heads, where they are others than those of the usual sizes.
      fixed: whether a file without positions has MAE's.
      feature: which tokens were trained to stand for the image, "cls" or "patches".
    """

    label: str
    spellings: Spellings = ()
    networks: tuple[str, ...] = ()
    aside: str = r"(?!)"
    containers: tuple[str, ...] = ("state_dict", "model")
    heads: Mapping[int, int] = MappingProxyType({})
    fixed: bool = False
    feature: str = "cls"

    @property
    def anchor(self) -> str:
        """The name here of a tensor that every file has."""
        return "patch_embed.proj.weight"

    def respell(self, names: Iterable[str]) -> dict[str, str]:
        """{name in the file: name here}."""
        return {name: self._spelled(name) for name in names}

    def _spelled(self, name: str) -> str:
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name


# transformers 4, whose names stand in files, and 5 in memory.
HUGGINGFACE: Spellings = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.(layernorm_before|norm1)\.", ".norm1."),
    (r"\.(layernorm_after|norm2)\.", ".norm2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(attention\.)?([qkv])(uery|ey|alue|_proj)\.", r".attn.\2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.w3."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"^layernorm\.", "norm."),
)
# Layer scale in the code of CaiT, BEiT and DeiT III.
GAMMAS: Spellings = ((r"\.gamma_(\d)$", r".ls\1.gamma"),)
