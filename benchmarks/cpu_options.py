"""What options of the process do to the training step on a CPU: allocators, XLA's routes.

    python benchmarks/cpu_options.py [--json FILE] [--models small,vit_b] [--rounds 3]

Takes MAE's step as train.py takes it, in a process for each option, turn by turn in the same order,
`--rounds` times. The table has the median wall time of a step, how many times faster that is than
without the option (medians over rounds; the range is that of the rounds), the processor's time in
the program and in the kernel, and how often a page of memory had to be brought in. Losses are
compared with those without the option: the same to the last bit, or how far off.

The options are variables of the environment that are read at start-up. `glibc`: what a process does
without any. `huge pages`: GLIBC_TUNABLES=glibc.malloc.hugetlb=1 asks for pages of 2 MB, so that
memory which was given back after a step comes again in few pieces. `tcmalloc`: LD_PRELOAD of
libtcmalloc_minimal.so.4, which gives nothing back (left out where it is not installed; Debian:
libtcmalloc-minimal4). The others are XLA_FLAGS.
"""

from __future__ import annotations

import argparse
import ctypes.util
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


def variants() -> dict[str, dict[str, str]]:
    """{option: variables of the environment}."""
    found = {PLAIN: {}, "huge pages": TUNABLES}
    if library := ctypes.util.find_library("tcmalloc_minimal"):
        found["tcmalloc"] = {"LD_PRELOAD": library, "TCMALLOC_RELEASE_RATE": "0"}
    return found | {flag: {"XLA_FLAGS": flag} for flag in XLA}


def one_turn(name: str) -> dict:
    """Steps of one model in this process: seconds, page faults, the last loss."""
    import train_step

    _, config, steps = MODELS[name]
    config = config()
    config.mask.strategy = "random"
    run = train_step.our_step(config, train_step.random_images(config))
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
        "loss": loss,
    }


def turn_of(model: str, variables: dict[str, str], compiled: str) -> dict | None:
    """`one_turn` in a process with these variables; None if it failed."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled}
    done = subprocess.run(
        [sys.executable, __file__, f"--turn={model}"],
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"{variables}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def measure(models, rounds: int) -> dict:
    """{model: {option: its turns}}."""
    found = {model: {} for model in models}
    with tempfile.TemporaryDirectory() as compiled:
        for model in models:
            for _ in range(rounds):
                for option, variables in variants().items():
                    if turn := turn_of(model, variables, compiled):
                        found[model].setdefault(option, []).append(turn)
    return found


def table(turns: dict[str, list[dict]]) -> str:
    """The turns of one model, as Markdown."""
    lines = [
        "| option | ms a step | times faster | processor, ms | kernel | page faults | loss |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    plain = turns[PLAIN]
    for option, own in turns.items():
        ratios = [a["step"] / b["step"] for a, b in zip(plain, own, strict=False)]
        mid = {key: statistics.median(turn[key] for turn in own) for key in own[0]}
        apart = abs(mid["loss"] - plain[0]["loss"])
        lines.append(
            f"| {option} | {1e3 * mid['step']:.1f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {1e3 * (mid['user'] + mid['kernel']):.1f} "
            f"| {1e3 * mid['kernel']:.1f} | {mid['faults']:,.0f} "
            f"| {'the same' if not apart else f'{apart:.1e} off'} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", default=",".join(MODELS), help=" or ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each option (default 3)")
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--turn", choices=MODELS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(one_turn(args.turn)))
        return
    models = args.models.split(",")
    if unknown := set(models) - set(MODELS):
        parser.error(f"--models: {', '.join(sorted(unknown))} is none of {', '.join(MODELS)}")
    described = hardware.describe("jax", "jaxlib")
    print(hardware.line(described))
    found = measure(models, args.rounds)
    for model, turns in found.items():
        print(f"\nMAE, {MODELS[model].title}\n\n{table(turns)}")
    if args.json:
        args.json.write_text(json.dumps({"hardware": described, "turns": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
