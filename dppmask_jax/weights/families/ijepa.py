"""I-JEPA (arXiv 2301.08243): no class token, and positions, in the file, for the patches alone.

The authors' files (`*-ep300.pth.tar`), of which the target encoder is taken and
`--strip_prefix=encoder` takes the other; transformers' `IJepaModel`.
"""

from types import MappingProxyType

from dppmask_jax.weights.families.base import HUGGINGFACE, Family

FAMILY = Family(
    "I-JEPA",
    HUGGINGFACE,
    networks=("module.", "ijepa."),
    aside=r"(embeddings\.)?mask_token|pooler\..*|classifier\..*",
    containers=("target_encoder", "encoder", "state_dict"),
    heads=MappingProxyType({1408: 16}),
    feature="patches",
)
