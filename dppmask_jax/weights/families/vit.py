"""Vision transformers of timm (`VisionTransformer`: `vit_*`, and its `deit*`) and of transformers
(`ViTModel`), whoever trained them; heads are left aside."""

from types import MappingProxyType

from dppmask_jax.weights.families.base import HUGGINGFACE, Family

IN_TIMM = Family(
    "timm's ViT",
    networks=("module.",),
    aside=r"head\..*|fc_norm\..*",
    containers=("state_dict", "model"),
    heads=MappingProxyType({512: 8, 1408: 16, 1536: 24, 1664: 16}),
)
IN_TRANSFORMERS = Family(
    "ViT of transformers",
    HUGGINGFACE,
    networks=("vit.",),
    aside=r"(embeddings\.)?mask_token|pooler\..*|classifier\..*|decoder\..*",
    containers=("state_dict",),
)
