"""Features of a trained encoder: python examples/encode.py runs/quickstart"""

import sys

import numpy as np

import dppmask_jax


def main(workdir):
    encoder = dppmask_jax.load_encoder(workdir)
    height, width = encoder.image_size
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    features = encoder(images)
    print("cls", features["cls"].shape, "patches", features["patches"].shape)
    return features


if __name__ == "__main__":
    main(sys.argv[1])
