"""The families of published encoders, by the name of their format.

A new family is a file that sets `FAMILY`, and a line in `FAMILIES`; where encoders have what
`models.vit` has not, the option comes first.
"""

from __future__ import annotations

from dppmask_jax.weights.families import deit3, dino, dinov2, ijepa, mae, moco_v3, simmim, vit
from dppmask_jax.weights.families.base import Family

FAMILIES: dict[str, Family] = {
    "dino": dino.FAMILY,
    "dinov2": dinov2.FAMILY,
    "deit3": deit3.FAMILY,
    "moco-v3": moco_v3.FAMILY,
    "ijepa": ijepa.FAMILY,
    "simmim": simmim.FAMILY,
    "vit": vit.IN_TRANSFORMERS,
    "timm": vit.IN_TIMM,
    "mae": mae.FAMILY,
    "hf-encoder": mae.IN_TRANSFORMERS,
}
# Families that are known and cannot be had, and why.
REFUSED = {
    "capi": "CAPI's encoders have rotary positions, which no encoder here has",
    "dinov3": "DINOv3's encoders have rotary positions, which no encoder here has",
}
