"""Ours or a library's attention? One layer with its projections, forward and backward.

    python benchmarks/attention.py [--batch 256] [--dtype bfloat16] [--json FILE]

The layers are those of MAE ViT-B/16 at 224 pixels: 12 heads of 64 channels and 50 tokens in the
encoder, 16 of 32 and 197 in the decoder. Contestants: `models.attention.attend`, and
`jax.nn.dot_product_attention` by XLA and, on a GPU, by cuDNN. All have the same tokens and kernels,
and gradients in both; they take turns. The table has the median and the range, and the largest
difference of an output from float64 (of 2 images), as a share of the largest output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hardware
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from dppmask_jax.models.attention import attend


class Layer(NamedTuple):
    tokens: int
    heads: int
    channels: int  # of a head


LAYERS = {"encoder": Layer(50, 12, 64), "decoder": Layer(197, 16, 32)}
OURS = "ours"


def ours(layer: Layer, qkv):
    """(B, L, 3, H, C) -> (B, L, H C)."""
    query, key, value = jnp.moveaxis(qkv, (2, 1), (0, 4))
    mixed = attend(query * jnp.asarray(layer.channels**-0.5, query.dtype), key, value)
    return jnp.moveaxis(mixed, 3, 1).reshape(*qkv.shape[:2], -1)


def library(implementation: str) -> Callable:
    def mix(layer: Layer, qkv):
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, implementation=implementation)
        return mixed.reshape(*qkv.shape[:2], -1)

    return mix


def contestants() -> dict[str, Callable]:
    found = {OURS: ours, "XLA": library("xla")}
    if jax.default_backend() == "gpu":
        found["cuDNN"] = library("cudnn")
    return found


def inputs(layer: Layer, batch: int, dtype) -> tuple:
    """(tokens, kernel of queries, keys and values, kernel of the projection), as at a start."""
    width = layer.heads * layer.channels
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((batch, layer.tokens, width), (width, 3 * width), (width, width))
    scales = (1.0, width**-0.5, width**-0.5)
    return tuple(
        (scale * jax.random.normal(key, shape)).astype(dtype)
        for key, shape, scale in zip(keys, shapes, scales, strict=True)
    )


def output(mix, layer: Layer, tokens, kernel, projection):
    qkv = (tokens @ kernel).reshape(*tokens.shape[:2], 3, layer.heads, layer.channels)
    return mix(layer, qkv) @ projection


def error(mix, layer: Layer, given) -> float:
    """The largest difference from attention in float64, as a share of the largest output."""
    given = (given[0][:2], *given[1:])
    found = np.asarray(jax.jit(lambda *x: output(mix, layer, *x))(*given), np.float64)
    tokens, kernel, projection = (np.asarray(x, np.float64) for x in given)
    qkv = (tokens @ kernel).reshape(2, layer.tokens, 3, layer.heads, layer.channels)
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    weights = np.exp(query @ key.swapaxes(2, 3) / layer.channels**0.5)
    mixed = weights / weights.sum(axis=3, keepdims=True) @ value
    exact = np.moveaxis(mixed, 1, 2).reshape(tokens.shape) @ projection
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def measure(batch: int, dtype, repetitions: int) -> dict[str, dict]:
    """{layer: {contestant: its times in ms and its error}}."""
    found = {}
    for name, layer in LAYERS.items():
        given = inputs(layer, batch, dtype)
        runs, errors = {}, {}
        for rival, mix in contestants().items():

            def loss(*x, mix=mix, layer=layer):
                return jnp.mean(jnp.square(output(mix, layer, *x).astype(jnp.float32)))

            runs[rival] = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
            jax.block_until_ready(runs[rival](*given))
            errors[rival] = error(mix, layer, given)
        times = {rival: [] for rival in runs}
        for _ in range(repetitions):
            for rival, run in runs.items():
                jax.block_until_ready(run(*given))
                start = time.perf_counter()
                jax.block_until_ready(run(*given))
                times[rival].append(1e3 * (time.perf_counter() - start))
        found[name] = {
            rival: {
                "ms": {"median": float(np.median(ms)), "min": min(ms), "max": max(ms)},
                "error": errors[rival],
            }
            for rival, ms in times.items()
        }
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=9, help="turns of each (default 9)")
    parser.add_argument("--json", help="also write the results there")
    args = parser.parse_args()
    if args.batch < 2 or args.repetitions < 1:
        parser.error("--batch must be at least 2, --repetitions at least 1")
    result = {
        "hardware": hardware.describe("jax", "jaxlib"),
        "device": jax.devices()[0].device_kind,
        "batch": args.batch,
        "dtype": args.dtype,
        "layers": measure(args.batch, jnp.dtype(args.dtype), args.repetitions),
    }
    print(f"batch {args.batch}, {args.dtype}; device {result['device']}")
    print(hardware.line(result["hardware"]) + "\n")
    for name, rivals in result["layers"].items():
        for rival, values in rivals.items():
            ms = values["ms"]
            print(
                f"{name:10}{rival:8}{ms['median']:10.3f} ms  ({ms['min']:.3f} - {ms['max']:.3f})"
                f"  error {values['error']:.1e}"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
