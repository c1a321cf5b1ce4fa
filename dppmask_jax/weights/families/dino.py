"""DINO (arXiv 2104.14294): plain vision transformers, S and B, patches of 8 and 16.

The authors' files: the teacher's backbone alone (`dino_*_pretrain.pth`) or the whole training
(`dino_*_full_checkpoint.pth`), of which the teacher is taken and `--strip_prefix=student` takes the
student. timm's `vit_*.dino` have the same names, transformers' `ViTModel` its own.
"""

from dppmask_jax.weights.families.base import HUGGINGFACE, Family

FAMILY = Family(
    "DINO",
    HUGGINGFACE,
    networks=("module.backbone.", "backbone.", "module.", "vit."),
    aside=r"(module\.)?head\..*|fc_norm\..*|pooler\..*|classifier\..*",
    containers=("teacher", "state_dict", "model"),
)
