"""DeiT III (arXiv 2204.07118): layer scale, no position for the class token. Classifiers, whose
head is left aside.

The authors' files (`deit_3_*.pth`, layer scale as `gamma_1`) and timm's `deit3_*`.
"""

from types import MappingProxyType

from dppmask_jax.weights.families.base import GAMMAS, Family

FAMILY = Family(
    "DeiT III",
    GAMMAS,
    networks=("module.",),
    aside=r"head\..*",
    containers=("model", "state_dict"),
    heads=MappingProxyType({512: 8}),
)
