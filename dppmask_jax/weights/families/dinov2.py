"""DINOv2 (arXiv 2304.07193): layer scale, patches of 14, positions for images of 518 pixels;
registers (arXiv 2309.16588) in some, gated MLPs in the giant.

The authors' files: a backbone (`dinov2_vit*14[_reg4]_pretrain.pth`), or the teacher of a training,
whose blocks stand in chunks, `blocks.CHUNK.BLOCK`. timm's `vit_*_dinov2`, and transformers'
`Dinov2Model` and `Dinov2WithRegistersModel`.
"""

from types import MappingProxyType

from dppmask_jax.weights.families.base import HUGGINGFACE, Family

FAMILY = Family(
    "DINOv2",
    (
        *HUGGINGFACE,
        (r"^register_tokens$", "reg_token"),
        # A chunk has empty places for the blocks before it: the second number is the block's.
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    ),
    networks=("module.backbone.", "backbone.", "module.", "dinov2.", "dinov2_with_registers."),
    aside=r"(embeddings\.)?mask_token|(module\.)?((dino|ibot)_head|head)\..*|classifier\..*",
    containers=("teacher", "model", "state_dict"),
    heads=MappingProxyType({1536: 24}),
)
