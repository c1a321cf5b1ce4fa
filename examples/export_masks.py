"""Masks for somebody else's pipeline, as NumPy arrays: python examples/export_masks.py"""

import numpy as np

from dppmask_jax.masking import export_masks


def main():
    images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
    mask = export_masks(images, patch_size=16, ratio=0.75, strategy="dpp", tau=0.9, seed=0)
    print("order", mask.order.shape, "mask", mask.mask.shape, "visible", mask.count)
    print("of which the DPP picked", mask.num_greedy)
    return mask


if __name__ == "__main__":
    main()
