"""Would lazy updates make greedy selection faster? One kernel after another, under jit, on a CPU.

    python benchmarks/selector_lazy.py --images ~/photos --json out.json

`dpp.greedy_order` updates the gain of every patch after every pick. As a gain never rises, a lazy
selection (Minoux 1978; for a DPP's Cholesky factor Hemmi, Oki, Sakaue, Fujii and Iwata, NeurIPS
2022) brings the patch with the largest gain up to date alone, and picks it when it still leads. It
is written here with `lax.while_loop`: a pass either picks or updates one patch, entry by entry.
Both get the same kernels and have to pick the same patches in the same order, but for one in a
hundred, where rounding decides between gains that are nearly equal; a quarter of them is kept.

The table has medians and ranges in milliseconds an image, the passes a pick, and the share of the
factor's entries that lazy updates compute. That share is what they can save anywhere; times are
those of XLA's loops, of which lazy updates have one trip an entry, and a pass looks through all
gains, as there is no heap. Ours also makes the final order with its random rest. Without --images
textures are generated, which are no photographs.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import hardware
import jax
import jax.numpy as jnp
import marked
import numpy as np
import selector
import spread
from jax import lax

from dppmask_jax import dpp

SIZES = (224, 512)
TAUS = (0.9, 0.5, 0.0)


def lazy_order(kernel, noise, num_keep: int, tau):
    """(picks (k,), -1 where there is none, passes, entries of the factor that were computed)."""

    def entry(t, state, j):
        gains, factor, picks, of_picks, roots = state
        known = jnp.dot(factor[j], of_picks[t], precision=lax.Precision.HIGHEST)
        value = (kernel[picks[t], j] - known) / roots[t]
        gain = jnp.maximum(gains[j] - jnp.square(value), 0.0)
        return gains.at[j].set(gain), factor.at[j, t].set(value), *state[2:]

    def goes_on(carry):
        m, _, _, (gains, *_), *_ = carry
        return (m < num_keep) & (jnp.max(gains) >= tau)

    def one_pass(carry):
        m, passes, entries, state, done = carry
        largest = jnp.max(state[0])
        j = jnp.argmin(jnp.where(state[0] == largest, noise, jnp.inf))
        # Without a branch, which would copy the factor: no trip where the patch is up to date.
        current, more = done[j] == m, m - done[j]
        gains, factor, picks, of_picks, roots = lax.fori_loop(
            done[j], m, functools.partial(entry, j=j), state
        )
        where = jnp.where(current, m, num_keep)  # beyond the end, where nothing is written
        state = (
            gains.at[j].set(jnp.where(current, -jnp.inf, gains[j])),
            factor,
            picks.at[where].set(j, mode="drop"),
            of_picks.at[where].set(factor[j], mode="drop"),
            roots.at[where].set(jnp.sqrt(jnp.maximum(largest, 1e-10)), mode="drop"),
        )
        return m + current, passes + 1, entries + more, state, done.at[j].set(m)

    size = len(kernel)
    state = (
        jnp.diagonal(kernel),
        jnp.zeros((size, num_keep)),
        jnp.full(num_keep, -1),
        jnp.zeros((num_keep, num_keep)),
        jnp.ones(num_keep),
    )
    start = (jnp.int32(0), jnp.int32(0), jnp.int32(0), state, jnp.zeros(size, jnp.int32))
    _, passes, entries, state, _ = lax.while_loop(goes_on, one_pass, start)
    return state[2], passes, entries


def contestants(folder, batch: int, size: int):
    """(source, patches, {name: a call for a tau}) of a batch of square images of `size` pixels."""
    source, images = selector.chosen_images(folder, batch, size)
    features = jnp.asarray(selector.features_of(images))
    keep = features.shape[1] // 4
    kernels = lax.map(dpp.gaussian_kernel, features)
    keys = jax.random.split(jax.random.key(0), batch)
    noise = jax.vmap(lambda key: jax.random.uniform(key, (features.shape[1],)))(keys)

    @jax.jit
    def ours(tau):
        return jax.vmap(lambda kernel, u: dpp.greedy_order(kernel, u, keep, tau))(kernels, noise)

    @jax.jit
    def lazy(tau):
        return lax.map(lambda one: lazy_order(*one, keep, tau), (kernels, noise))

    return source, features.shape[1], {"ours": ours, "lazy": lazy}


def check(ours, lazy) -> None:
    """Ends the program where other patches were picked."""
    for order, count, picks in zip(*map(np.asarray, (*ours, lazy[0])), strict=True):
        found, expected = picks[picks >= 0], order[:count]
        if set(found) != set(expected) or np.sum(found != expected) > count / 100:
            sys.exit("lazy updates picked other patches; nothing that follows would mean anything")


def measure(folder, batch: int, rounds: int) -> list[dict]:
    found = []
    for size in SIZES:
        source, num_patches, calls = contestants(folder, batch, size)
        for tau in TAUS:
            times = {name: [] for name in calls}
            for call in calls.values():
                jax.block_until_ready(call(tau))
            for _ in range(rounds):
                answers = {}
                for name, call in calls.items():
                    start = time.perf_counter()
                    answers[name] = jax.block_until_ready(call(tau))
                    times[name].append(1e3 * (time.perf_counter() - start) / batch)
            check(answers["ours"], answers["lazy"])
            picks = float(np.mean(answers["ours"][1]))
            _, passes, entries = answers["lazy"]
            found.append(
                {
                    "images": source,
                    "patches": num_patches,
                    "tau": tau,
                    "picks": picks,
                    "passes_a_pick": float(np.mean(passes)) / picks,
                    "entries": float(np.mean(entries)) / (picks * num_patches),
                    "ms": {name: spread.of(ms) for name, ms in times.items()},
                }
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", help="folder of photographs; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--json", help="also write the results there")
    parser.add_argument("--batch", type=int, default=16, help="images (default 16)")
    parser.add_argument("--rounds", type=int, default=7, help="timed batches (default 7)")
    args = parser.parse_args()
    if args.batch < 1 or args.rounds < 1:
        parser.error("--batch and --rounds must be at least 1")
    described = hardware.describe("jax", "jaxlib")
    found = measure(args.images, args.batch, args.rounds)
    print(f"{found[0]['images']}; batch {args.batch}; {hardware.line(described)}")
    heads = ("patches", "tau", "greedy picks", "passes a pick", "entries", "ours", "lazy", "times")
    told = "{median:.3f} ({min:.3f} to {max:.3f})".format_map
    rows = [
        (
            f"{one['patches']:,}",
            f"{one['tau']:g}",
            f"{one['picks']:.1f}",
            f"{one['passes_a_pick']:.0f}",
            f"{one['entries']:.0%}",
            told(one["ms"]["ours"]),
            told(one["ms"]["lazy"]),
            f"{one['ms']['lazy']['median'] / one['ms']['ours']['median']:.0f}",
        )
        for one in found
    ]
    print(marked.markdown(heads, rows))
    if args.json:
        result = {"hardware": described, "batch": args.batch, "found": found}
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
