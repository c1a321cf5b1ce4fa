"""SimMIM (arXiv 2111.09886): biases by relative position, which all blocks share, no absolute
positions, layer scale, biases of queries and values alone. Such an encoder takes images of its own
size.

The authors' files (`simmim_pretrain__vit_base__*.pth`); in those that were fine-tuned each block
has biases of its own.
"""

from dppmask_jax.weights.families.base import GAMMAS, Family

FAMILY = Family(
    "SimMIM",
    GAMMAS,
    networks=("module.encoder.", "encoder.", "module."),
    aside=r"mask_token|(module\.)?decoder\..*|head\..*|fc_norm\..*",
    containers=("model", "state_dict"),
    feature="patches",
)
