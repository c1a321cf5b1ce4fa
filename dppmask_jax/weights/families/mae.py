"""MAE (arXiv 2111.06377): plain vision transformers with fixed sine-cosine positions.

The authors' files, and transformers' `ViTMAEModel` or `ViTMAEForPreTraining`; decoders are left
aside.
"""

from dppmask_jax.weights.families.base import HUGGINGFACE, Family

FAMILY = Family(
    "MAE",
    networks=("module.",),
    aside=r"mask_token|decoder.*|head\..*|fc_norm\..*",
    containers=("model", "state_dict"),
    fixed=True,
    feature="patches",
)
IN_TRANSFORMERS = Family(
    "ViTMAE of transformers",
    HUGGINGFACE,
    networks=("vit.",),
    aside=r"decoder\..*|pooler\..*|classifier\..*",
    containers=("state_dict",),
    fixed=True,
    feature="patches",
)
