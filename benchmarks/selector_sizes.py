"""What do more patches cost the selector? Time and memory of jit(vmap(select)) by image size.

    python benchmarks/selector_sizes.py --images ~/photos --json out.json

Features as in benchmarks/selector.py; a quarter of the patches is kept. The sizes take turns; the
table gives medians and ranges in milliseconds an image, how many times the first size's that is,
and the temporaries of the compiled program, in MB. tau 0 picks every kept patch greedily. The
TPU's estimates are from benchmarks/tpu_selection.py. Takes minutes; run it on an idle machine.
"""

import argparse
import json
import os
import time
from pathlib import Path

import hardware
import jax
import jax.numpy as jnp
import numpy as np
import selector
import spread

from dppmask_jax import dpp

SIZES = (224, 448, 512, 896)
TAUS = (0.9, 0.0)


def contestant(folder, batch: int, size: int):
    """(source, patches, {tau: a call on a whole batch}, bytes of temporaries) of a size."""
    source, images = selector.chosen_images(folder, batch, size)
    features = jnp.asarray(selector.features_of(images))
    patches = features.shape[1]
    keys = jax.random.split(jax.random.key(0), batch)
    choose = jax.jit(
        jax.vmap(lambda key, x, tau: dpp.select(key, x, patches // 4, tau), in_axes=(0, 0, None))
    )
    compiled = choose.lower(keys, features, 0.9).compile()
    calls = {tau: lambda tau=tau: compiled(keys, features, tau) for tau in TAUS}
    return source, patches, calls, compiled.memory_analysis().temp_size_in_bytes


def measure(folder, batch: int, rounds: int) -> list[dict]:
    """One record a size and tau; tau 0 is timed once a size."""
    table = {size: contestant(folder, batch, size) for size in SIZES}
    times = {(size, tau): [] for tau in TAUS for size in SIZES}
    picks = {}
    for turn in range(rounds):
        for size, tau in times:
            if turn and not tau:
                continue
            call = table[size][2][tau]
            if tau:
                jax.block_until_ready(call())
            start = time.perf_counter()
            _, picks[size, tau] = jax.block_until_ready(call())
            times[size, tau].append((time.perf_counter() - start) * 1e3 / batch)
    return [
        {
            "size": size,
            "tau": tau,
            "images": table[size][0],
            "patches": table[size][1],
            "picks": float(np.mean(picks[size, tau])),
            "temporaries": table[size][3],
            "ms": spread.of(ms),
        }
        for (size, tau), ms in times.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", help="folder of photographs; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--json", help="also write the results there")
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--rounds", type=int, default=11, help="timed batches (default 11)")
    args = parser.parse_args()
    if args.batch < 1 or args.rounds < 1:
        parser.error("--batch and --rounds must be at least 1")
    found = measure(args.images, args.batch, args.rounds)
    print(
        f"{found[0]['images']}; batch {args.batch}; {hardware.cpu_name()}, {os.cpu_count()} cores"
    )
    print(f"device {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| pixels | patches | tau | greedy picks | ms an image | times the first | MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    first = {one["tau"]: one["ms"] for one in reversed(found)}
    for one in found:
        ms, megabytes = one["ms"], one["temporaries"] / 1e6
        ratio = ms["median"] / first[one["tau"]]["median"]
        print(
            f"| {one['size']} | {one['patches']} | {one['tau']:g} | {one['picks']:.1f} | "
            f"{ms['median']:.3f} ({ms['min']:.3f} to {ms['max']:.3f}) | {ratio:.1f} | "
            f"{megabytes:.1f} |"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
