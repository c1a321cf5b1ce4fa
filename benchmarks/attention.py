"""Ours or a library's attention? One layer with its projections, forward and backward.

    python benchmarks/attention.py [--batch 256] [--dtype bfloat16] [--json FILE]

The layers are those of MAE ViT-B/16 at 224 pixels: 12 heads of 64 channels and 50 tokens in the
encoder, 16 of 32 and 197 in the decoder. Contestants: `models.layers.Attention`, and
`jax.nn.dot_product_attention` between the same projections, by XLA and, in bfloat16 on a GPU, by
cuDNN. All give gradients in the tokens and in the parameters. They take turns; in a turn --calls of
them are queued and waited for once. The table has the median and the range of a call, and the
largest difference of an output from float64 (of 2 images), as a share of the largest output; the
rounding of the projections is part of it, and the same for all.
"""

from __future__ import annotations

import argparse
import functools
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
import spread

sys.path.insert(0, str(Path(__file__).parent.parent))

from dppmask_jax.models.layers import Attention


class Layer(NamedTuple):
    tokens: int
    heads: int
    channels: int  # of a head

    @property
    def width(self) -> int:
        return self.heads * self.channels


LAYERS = {"encoder": Layer(50, 12, 64), "decoder": Layer(197, 16, 32)}
OURS = "ours"


def ours(layer: Layer, params, tokens):
    """(B, L, D) -> (B, L, D), as the models have it."""
    return Attention(layer.heads, tokens.dtype).apply({"params": params}, tokens)


def library(implementation: str, layer: Layer, params, tokens):
    """The same by `jax.nn.dot_product_attention`."""

    def dense(name, x):
        kernel, bias = (params[name][part].astype(x.dtype) for part in ("kernel", "bias"))
        return x @ kernel + bias

    shape = (*tokens.shape[:2], 3, layer.heads, layer.channels)
    query, key, value = jnp.moveaxis(dense("qkv", tokens).reshape(shape), 2, 0)
    mixed = jax.nn.dot_product_attention(query, key, value, implementation=implementation)
    return dense("proj", mixed.reshape(tokens.shape))


def contestants(dtype) -> dict[str, Callable]:
    found = {OURS: ours, "XLA": functools.partial(library, "xla")}
    if jax.default_backend() == "gpu" and dtype == jnp.bfloat16:
        found["cuDNN"] = functools.partial(library, "cudnn")
    return found


def exact(layer: Layer, params, tokens):
    """The same in NumPy and float64."""
    tokens = np.asarray(tokens, np.float64)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    qkv = tokens @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    qkv = qkv.reshape(*tokens.shape[:2], 3, layer.heads, layer.channels)
    query, key, value = np.moveaxis(qkv, (2, 3), (0, 2))
    weights = np.exp(query @ key.swapaxes(2, 3) / layer.channels**0.5)
    mixed = weights / weights.sum(axis=3, keepdims=True) @ value
    mixed = np.moveaxis(mixed, 1, 2).reshape(tokens.shape)
    return mixed @ params["proj"]["kernel"] + params["proj"]["bias"]


def measure(batch: int, dtype, repetitions: int, calls: int) -> dict[str, dict]:
    """{layer: {contestant: ms of a call, and its error}}."""
    found = {}
    for name, layer in LAYERS.items():
        tokens = jax.random.normal(jax.random.key(0), (batch, layer.tokens, layer.width), dtype)
        params = Attention(layer.heads, dtype).init(jax.random.key(1), tokens[:1])["params"]
        right = exact(layer, params, tokens[:2])
        runs, errors = {}, {}
        for rival, apply in contestants(dtype).items():
            output = functools.partial(apply, layer)

            def loss(params, tokens, output=output):
                return jnp.mean(jnp.square(output(params, tokens).astype(jnp.float32)))

            runs[rival] = jax.jit(jax.grad(loss, argnums=(0, 1)))
            jax.block_until_ready(runs[rival](params, tokens))
            off = np.asarray(jax.jit(output)(params, tokens[:2]), np.float64) - right
            errors[rival] = float(np.abs(off).max() / np.abs(right).max())
        times = {rival: [] for rival in runs}
        for _ in range(repetitions):
            for rival, run in runs.items():
                jax.block_until_ready(run(params, tokens))
                start = time.perf_counter()
                jax.block_until_ready([run(params, tokens) for _ in range(calls)])
                times[rival].append(1e3 * (time.perf_counter() - start) / calls)
        found[name] = {
            rival: {
                "ms": spread.of(ms),
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
    parser.add_argument("--calls", type=int, default=5, help="calls of a turn (default 5)")
    parser.add_argument("--json", help="also write the results there")
    args = parser.parse_args()
    if args.batch < 2 or min(args.repetitions, args.calls) < 1:
        parser.error("--batch must be at least 2, --repetitions and --calls at least 1")
    result = {
        "hardware": hardware.describe("jax", "jaxlib", "nvidia-cudnn-cu13"),
        "device": jax.devices()[0].device_kind,
        "batch": args.batch,
        "dtype": args.dtype,
        "layers": measure(args.batch, jnp.dtype(args.dtype), args.repetitions, args.calls),
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
