"""Features of a trained encoder: python examples/encode.py [RUN]

RUN is the workdir of train.py, such as runs/quickstart, or the file of an encoder. Without it one
that comes with the package is taken.
"""

import sys

import numpy as np

import dppmask_jax


def main(workdir="zoo:mae-dpp-pi8-shapes"):
    encoder = dppmask_jax.load_encoder(workdir)
    height, width = encoder.image_size
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    features = encoder(images)
    print("cls", features["cls"].shape, "patches", features["patches"].shape)
    return features


if __name__ == "__main__":
    main(*sys.argv[1:])
