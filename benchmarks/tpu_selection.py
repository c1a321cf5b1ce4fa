"""What the selection by itself costs on a TPU, by the compiler's estimate. No TPU is needed.

    python benchmarks/tpu_selection.py                       # 256 images, 49 of 196 patches, v5e
    python benchmarks/tpu_selection.py --width 384 --topology v4:2x2x1

Compiles `dpp.select` for one chip and adds up the estimated cycles after some trips of its loop and
after as many as there are picks; and what the estimate leaves out, bounded by hand as in
benchmarks/tpu.py, with --row cycles for each row of the Gram matrix that is gathered. Of more than
256 patches there are two loops, the second of which starts where the first has ended; so many trips
are counted of each. Needs libtpu (`make .venv-tpu/.tpu`); takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from benchmarks import hlo, tpu
from dppmask_jax import command, dpp
from dppmask_jax.errors import InputError


def compiled(args):
    """The selection, compiled for one chip."""
    place = SingleDeviceSharding(tpu.devices_of(args.topology)[0])

    def shaped(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def choose(seed, features):
        keys = jax.random.split(jax.random.wrap_key_data(seed), args.images)
        return jax.vmap(lambda key, image: dpp.select(key, image, args.keep, 0.9))(keys, features)

    features = shaped((args.images, args.patches, args.width), jnp.float32)
    return jax.jit(choose).lower(shaped((2,), jnp.uint32), features).compile()


def main(args):
    program, chip = compiled(args), tpu.CHIPS[args.topology.partition(":")[0]]
    module, memory = hlo.parse(program.as_text()), program.memory_analysis()
    print(
        f"{args.images} images, {args.keep} of {args.patches} patches, on one {args.topology}; "
        f"temporaries {memory.temp_size_in_bytes / 1e6:.0f} MB"
    )
    print("trips  estimate  sorts  moved  rows  in all, M cycles")
    for trips in args.trips or sorted({args.keep, min(5, args.keep)}):
        ran = list(hlo.executions(module, lambda op, trips=trips: trips))
        bounds = tpu.bounds_by_hand(module, ran, chip)
        rows = trips * args.images * args.row
        cycles = [hlo.total_cycles(ran), bounds["sorts"], bounds["moved"], rows]
        estimate, sorts, moved, rows, in_all = (part / 1e6 for part in (*cycles, sum(cycles)))
        print(f"{trips:5} {estimate:9.2f} {sorts:6.2f} {moved:6.2f} {rows:5.2f} {in_all:7.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--keep", type=int, default=49)
    parser.add_argument("--trips", type=int, nargs="*", help="default: 5, and all")
    parser.add_argument("--row", type=float, default=50, help="cycles for a gathered row")
    arguments = parser.parse_args()
    if arguments.images < 1 or arguments.width < 1 or not 1 <= arguments.keep <= arguments.patches:
        parser.error("--images and --width are at least 1, --keep is from 1 to --patches")
    try:
        main(arguments)
    except InputError as fault:
        command.fail(fault)
