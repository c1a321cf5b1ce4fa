"""MoCo v3 (arXiv 2104.02057): plain vision transformers with sine-cosine positions, which its files
hold; their order of axes is another than MAE's. ViT-S has 12 heads.

The authors' files (`vit-*.pth.tar`), of which the base encoder is taken;
`--strip_prefix=module.momentum_encoder` takes the other.
"""

from types import MappingProxyType

from dppmask_jax.weights.families.base import Family

FAMILY = Family(
    "MoCo v3",
    networks=("module.base_encoder.", "base_encoder.", "module."),
    aside=r"(module\.)?(momentum_encoder|predictor)\..*|head\..*",
    containers=("state_dict", "model"),
    heads=MappingProxyType({384: 12}),
)
