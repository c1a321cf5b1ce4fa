"""How often the loops of the selection run before their work is done, for a chip's batch of views.

    DPPMASK_TEST_DATA=/data python benchmarks/trips.py            # reads /data/photos
    python benchmarks/trips.py --images ~/photos --batch 256

A batch shares one loop, which works until its last image is done. The picks of DPPMask depend on
the images: the features are those of an untrained model of each recipe. The rectangles of block
masks depend on chance alone. `benchmarks/tpu.py` takes the largest figures as its TRIPS.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

from benchmarks.selector import load_photographs  # noqa: E402
from configs import ibot, mae  # noqa: E402
from dppmask_jax import masking, patches  # noqa: E402
from dppmask_jax.training.build import method_from, plan_from  # noqa: E402


def picks(preset, images) -> np.ndarray:
    """Greedy picks of each image, with an untrained model of a preset's recipe."""
    config = preset.get_config("dataset=imagenet1k,mask=dpp")
    config.model.dtype = "float32"
    method = method_from(config, plan_from(config, 1_281_167))
    params, extra = jax.jit(method.init)(jax.random.key(0))
    patch_count = (config.image_size[0] // config.model.patch_size) ** 2
    count = patch_count - method.num_hidden[0]
    draw = jax.jit(lambda images, keys: method.masks(params, extra, images, keys, count=count)[1])
    keys = jax.random.split(jax.random.key(1), len(images))
    found = [
        np.asarray(draw(images[i : i + 32], keys[i : i + 32])["num_greedy"])
        for i in range(0, len(images), 32)
    ]
    return np.concatenate(found)


def rectangles(preset, batch: int) -> np.ndarray:
    """Tries of each image until its block mask is done, at the recipe's largest share of masks."""
    config = preset.get_config("dataset=imagenet1k,mask=block")
    grid = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    method = method_from(config, plan_from(config, 1_281_167))
    visible = grid[0] * grid[1] - method.num_hidden[1]
    tries = []
    loop = lax.while_loop

    def counting_loop(condition, body, start):
        count, end = loop(
            lambda carried: condition(carried[1]),
            lambda carried: (carried[0] + 1, body(carried[1])),
            (0, start),
        )
        tries.append(count)
        return end

    def one(key):
        tries.clear()
        masking.block(key, grid, visible)
        return tries[-1]

    lax.while_loop = counting_loop
    try:
        return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), batch)))
    finally:
        lax.while_loop = loop


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", help="folder of photographs; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--batch", type=int, default=256, help="views (default 256)")
    args = parser.parse_args()
    folder = args.images or os.path.join(os.environ.get("DPPMASK_TEST_DATA", ""), "photos")
    images, files = load_photographs(folder, args.batch)
    print(f"{args.batch} views of {files} photographs{'':8}mean   max")
    for name, preset in (("MAE", mae), ("iBOT", ibot)):
        for what, counts in (
            ("greedy picks", picks(preset, images)),
            ("tries of rectangles", rectangles(preset, args.batch)),
        ):
            print(f"{name + ', ' + what:36}{counts.mean():6.1f}{counts.max():6}")


if __name__ == "__main__":
    main()
