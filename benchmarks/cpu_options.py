"""What options of the process do to the training step on a CPU: allocators, XLA's routes.

    python benchmarks/cpu_options.py [--json FILE] [--models small,vit_b] [--rounds 3]

Takes MAE's step as train.py takes it, in a process for each option, turn by turn in the same order,
`--rounds` times. The table has the median wall time of a step, how many times faster that is than
without the option (medians over rounds; the range is that of the rounds), the processor's time in
the program and in the kernel, how often a page of memory had to be brought in, and the rate of a
large product in float32 in the same process. Losses are compared with those without the option: the
same to the last bit, or how far off. Where PyTorch and transformers are installed, its step of the
same model takes its turns too, as in train_step.py.

The options are variables of the environment that are read at start-up. `glibc`: what a process does
without any. `huge pages`: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 asks for pages of 2 MB, so that
memory which was given back after a step comes again in few pieces. `tcmalloc`: LD_PRELOAD of
libtcmalloc_minimal.so.4, which gives nothing back (left out where it is not installed; Debian:
libtcmalloc-minimal4). The others are XLA_FLAGS.
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hardware
import train_step

TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
XLA = (
    "--xla_cpu_experimental_ynn_fusion_type=invalid",
    "--xla_cpu_experimental_xnn_fusion_type=dot",
    "--xla_cpu_experimental_onednn_custom_call=true",
    "--xla_cpu_prefer_vector_width=512",
)
PLAIN = "glibc"


class Model(NamedTuple):
    """A model whose steps are timed."""

    title: str
    config: Callable[[], Any]
    steps: int  # of a turn


class Option(NamedTuple):
    """Whose step is taken, and the variables of the environment that its process has."""

    variables: dict[str, str]
    contestant: str = train_step.OURS


def _small():
    from dppmask_jax.recipes.studies import cpu

    return cpu.method()


def _vit_b():
    from dppmask_jax.recipes import mae

    config = mae.get_config("dataset=imagenet1k")
    config.batch_size, config.model.dtype = 8, "float32"
    return config


MODELS = {
    "small": Model("the recipe of the study cpu", _small, 20),
    "vit_b": Model("ViT-B/16, 224 px, batch 8, float32", _vit_b, 4),
}


def options() -> dict[str, Option]:
    """{name: option}; the first is what the others are compared with."""
    found = {PLAIN: Option({}), "huge pages": Option(TUNABLES)}
    if library := ctypes.util.find_library("tcmalloc_minimal"):
        found["tcmalloc"] = Option({"LD_PRELOAD": library, "TCMALLOC_RELEASE_RATE": "0"})
    found |= {flag: Option({"XLA_FLAGS": flag}) for flag in XLA}
    if all(map(importlib.util.find_spec, ("torch", "transformers"))):
        for name in (train_step.EAGER, train_step.COMPILED):
            found[name] = Option({}, name)
            if library:
                found[f"{name}, tcmalloc"] = Option(found["tcmalloc"].variables, name)
    return found


def one_turn(name: str, contestant: str) -> dict:
    """Steps of one model in this process: seconds, page faults, the last loss; and a product."""
    _, config, steps = MODELS[name]
    config = config()
    config.mask.strategy = "random"
    images = train_step.random_images(config)
    if contestant == train_step.OURS:
        run, rate = train_step.our_step(config, images), train_step.matmul_rate("float32")
    else:
        run, rate = train_step.their_steps(config, images)[contestant], torch_rate()
    for _ in range(3):
        run()
    before, times = resource.getrusage(resource.RUSAGE_SELF), []
    for _ in range(steps):
        start = time.perf_counter()
        loss = run()
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step": statistics.median(times),
        "user": (after.ru_utime - before.ru_utime) / steps,
        "kernel": (after.ru_stime - before.ru_stime) / steps,
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
        "product": rate,
        "loss": loss,
    }


def torch_rate() -> float:
    """As `train_step.matmul_rate`, in PyTorch."""
    import torch

    rates = []
    for side in (1024, 2048):
        left, times = torch.rand(side, side), []
        for _ in range(10):
            start = time.perf_counter()
            torch.mm(left, left)
            times.append(time.perf_counter() - start)
        rates.append(2 * side**3 / statistics.median(times[1:]))
    return max(rates)


def turn_of(model: str, option: Option, compiled: str) -> dict | None:
    """`one_turn` in a process with these variables; None if it failed."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_COMPILATION_CACHE_DIR": compiled,
    }
    done = subprocess.run(
        [sys.executable, __file__, f"--turn={model}", f"--contestant={option.contestant}"],
        env=environment | option.variables,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"{option}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure(models, rounds: int) -> dict:
    """{model: {option: its turns}}."""
    found = {model: {} for model in models}
    with tempfile.TemporaryDirectory() as compiled:
        for model in models:
            for _ in range(rounds):
                for name, option in options().items():
                    if turn := turn_of(model, option, compiled):
                        found[model].setdefault(name, []).append(turn)
    return found


def table(turns: dict[str, list[dict]]) -> str:
    """The turns of one model, as Markdown."""
    lines = [
        "| option | ms a step | times faster | processor, ms | kernel | page faults "
        "| product, TFLOP/s | loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = turns[PLAIN]
    for option, own in turns.items():
        ratios = [a["step"] / b["step"] for a, b in zip(plain, own, strict=False)]
        mid = {key: statistics.median(turn[key] for turn in own) for key in own[0]}
        apart = abs(mid["loss"] - plain[0]["loss"])
        ours = options()[option].contestant == train_step.OURS
        loss = "of other weights" if not ours else f"{apart:.1e} off" if apart else "the same"
        lines.append(
            f"| {option} | {1e3 * mid['step']:.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {1e3 * (mid['user'] + mid['kernel']):.1f} "
            f"| {1e3 * mid['kernel']:.1f} | {mid['faults']:,.0f} | {mid['product'] / 1e12:.2f} "
            f"| {loss} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", default=",".join(MODELS), help=" or ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each option (default 3)")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--turn", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--contestant", default=train_step.OURS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(one_turn(args.turn, args.contestant)))
        return
    models = args.models.split(",")
    if unknown := set(models) - set(MODELS):
        parser.error(f"--models: {', '.join(sorted(unknown))} is none of {', '.join(MODELS)}")
    described = hardware.describe("jax", "jaxlib", "torch", "transformers")
    print(hardware.line(described))
    found = measure(models, args.rounds)
    for model, turns in found.items():
        print(f"\nMAE, {MODELS[model].title}\n\n{table(turns)}")
    if args.json:
        args.json.write_text(json.dumps({"hardware": described, "turns": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
