"""The MAE training step against Hugging Face's in PyTorch, eager and compiled.

    python benchmarks/train_step.py [--json FILE]                 # ViT-B/16, batch 8, float32
    python benchmarks/train_step.py --batch 256 --dtype bfloat16  # for a GPU

Each contestant takes whole training steps on images that are on the device already: forward,
backward, AdamW. Ours is the step that train.py takes, with random masks: it flips and normalises
uint8 images, computes the gradient's norm and refuses steps that are not finite. Theirs is
transformers' ViTMAEForPreTraining on normalised images with PyTorch's fused attention and AdamW,
under autocast where the type is bfloat16. Both have the same sizes, batch, mask ratio and per-patch
standardised targets, and all cores. All are warmed up, then take turns in one process; a turn is a
pause (idle threads of either library spin on for a while), a step that is not timed and some that
are. The table gives the median and the range over all timed steps. The rate of a large matrix
product, in the same type and the same run, says what share of the chip the step reaches.

Without PyTorch and transformers (`pip install '.[peer]'`) ours is timed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import hardware
import spread

from configs import mae as preset
from dppmask_jax import parallel
from dppmask_jax.data.images import augment
from dppmask_jax.models.sizes import size_of
from dppmask_jax.training.build import method_from, plan_from
from dppmask_jax.training.step import init_state, make_step

SETTLE = 0.5  # s
OURS, EAGER, COMPILED = "ours", "PyTorch eager", "PyTorch torch.compile"


def config_of(args):
    config = preset.get_config(f"dataset=imagenet1k,mask={args.mask},size={args.size}")
    config.batch_size = args.batch
    config.model.dtype = args.dtype
    return config


def random_images(config):
    shape = (config.batch_size, *config.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def our_step(config, images):
    """A function that takes one training step and returns the loss."""
    plan = plan_from(config, 1000 * config.batch_size)
    method = method_from(config, plan)
    step = make_step(method)
    state = parallel.replicate(init_state(method, jax.random.key(0)))
    size = config.batch_size
    batch = {
        "image": images,
        "index": np.arange(size, dtype=np.int32),
        "row": np.arange(size, dtype=np.int32),
        "label": np.zeros(size, np.int32),
        "bad": np.zeros(size, bool),
    }
    batch = jax.device_put(parallel.split_batch(batch))
    key = jax.random.key(1)

    def run():
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return run


def their_steps(config, images):
    """{name: a function that takes one training step and returns the loss}; {} without PyTorch.

    Attention is PyTorch's fused one (`scaled_dot_product_attention`).
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # transformers imports torchvision where it is installed, though nothing here needs it; a wheel
    # for CUDA beside PyTorch for CPUs cannot be imported, and would leave PyTorch out.
    sys.modules["torchvision"] = None
    try:
        import torch
        from transformers import ViTMAEConfig, ViTMAEForPreTraining
    except ImportError as error:
        reason = str(error).splitlines()[0]
        print(f"{reason}; ours alone is timed", file=sys.stderr)
        return {}
    torch.set_num_threads(hardware.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, model = size_of(config.model), config.model
    module = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=size.width,
            num_hidden_layers=size.depth,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.width,
            image_size=config.image_size[0],
            patch_size=model.patch_size,
            decoder_hidden_size=model.decoder_width,
            decoder_num_hidden_layers=model.decoder_depth,
            decoder_num_attention_heads=model.decoder_heads,
            decoder_intermediate_size=4 * model.decoder_width,
            mask_ratio=config.mask.ratio,
            norm_pix_loss=config.loss.norm_pix,
            attn_implementation="sdpa",
        )
    ).to(device)
    module.train()
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=1e-4,
        betas=(config.optim.b1, config.optim.b2),
        weight_decay=config.optim.weight_decay,
        fused=True,
    )
    normalised = np.array(augment.normalize(jnp.asarray(images)))
    pixels = torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))).to(device)
    reduced = config.model.dtype == "bfloat16"

    def stepping(forward):
        def run():
            with torch.autocast(device, torch.bfloat16, enabled=reduced):
                loss = forward(pixel_values=pixels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.item()

        return run

    return {EAGER: stepping(module), COMPILED: stepping(torch.compile(module))}


def matmul_rate(dtype: str) -> float:
    """FLOP a second of the better of a few large square products, by the median."""
    rates = []
    for side in (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192):
        left = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
        product = jax.jit(jnp.matmul)
        product(left, left).block_until_ready()
        times = []
        for _ in range(9):
            start = time.perf_counter()
            product(left, left).block_until_ready()
            times.append(time.perf_counter() - start)
        rates.append(2 * side**3 / float(np.median(times)))
    return max(rates)


def matmul_flop(config) -> float:
    """FLOP of the matrix products of one step, counted by hand: a backward pass is twice a forward
    one, except that the images get no gradient. Norms, softmax and optimiser are left out."""
    model, size = config.model, size_of(config.model)
    patches = (config.image_size[0] // model.patch_size) * (
        config.image_size[1] // model.patch_size
    )
    values, width = 3 * model.patch_size**2, model.decoder_width
    visible = round(patches * (1 - config.mask.ratio))

    def blocks(depth, tokens, width):
        return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)

    embed = 2 * patches * values * size.width
    rest = (
        blocks(size.depth, 1 + visible, size.width)
        + 2 * (1 + visible) * size.width * width
        + blocks(model.decoder_depth, 1 + patches, width)
        + 2 * patches * width * values
    )
    return config.batch_size * (2 * embed + 3 * rest)


def measure(contestants, repetitions: int, steps: int):
    """{name: step times in s}; the contestants take turns."""
    for run in contestants.values():
        for _ in range(3):
            run()
    times = {name: [] for name in contestants}
    for _ in range(repetitions):
        for name, run in contestants.items():
            time.sleep(SETTLE)
            run()
            for _ in range(steps):
                start = time.perf_counter()
                loss = run()
                times[name].append(time.perf_counter() - start)
            if not np.isfinite(loss):
                sys.exit(f"{name}: the loss is {loss}; nothing that follows would mean anything")
    return times


def report(result):
    print(
        f"MAE ViT-{result['size']}/16, batch {result['batch']}, {result['dtype']}, "
        f"{result['mask']} masks; device {result['device']}"
    )
    print(hardware.line(result["hardware"]) + "\n")
    print(f"{'':24}{'images/s':>9}{'ms a step':>11}  {'(min - max)':19}")
    for name, values in result["contestants"].items():
        low, high = values["ms"]["min"], values["ms"]["max"]
        print(
            f"{name:24}{values['images_per_sec']:9.2f}{values['ms']['median']:11.1f}  "
            f"({low:.1f} - {high:.1f})"
        )
    if result["times_faster"]:
        print(f"\nours against the better of PyTorch: {result['times_faster']:.2f} times")
    print(
        f"\na large matrix product reaches {result['matmul_flop_per_sec'] / 1e12:.3f} TFLOP/s; "
        f"ours {result['share_of_matmul_rate']:.0%} of that "
        f"({result['matmul_flop_of_step'] / 1e9:.0f} GFLOP of products a step)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=8, help="images (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", choices=("Ti", "S", "B", "L"), default="B")
    parser.add_argument("--mask", choices=preset.ARGUMENTS["mask"], default="random")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a turn (default 2)")
    parser.add_argument("--alone", action="store_true", help="leave PyTorch out")
    parser.add_argument("--json", help="also write the results there")
    args = parser.parse_args()
    if min(args.batch, args.repetitions, args.steps) < 1:
        parser.error("--batch, --repetitions and --steps must be at least 1")
    # On a GPU JAX would take three quarters of the memory at once, and PyTorch needs its share.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    config = config_of(args)
    parallel.check_batch(config.batch_size, 1, "--batch")
    images = random_images(config)
    contestants = {OURS: our_step(config, images)}
    if not args.alone:
        contestants |= their_steps(config, images)
    times = measure(contestants, args.repetitions, args.steps)
    rate, flop = matmul_rate(args.dtype), matmul_flop(config)

    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    theirs = [seconds for name, seconds in medians.items() if name != OURS]
    result = {
        "hardware": hardware.describe("jax", "flax", "optax", "torch", "transformers"),
        "device": parallel.describe(),
        "size": args.size,
        "batch": args.batch,
        "dtype": args.dtype,
        "mask": args.mask,
        "contestants": {
            name: {
                "images_per_sec": args.batch / medians[name],
                "ms": spread.of(seconds, 1e3),
            }
            for name, seconds in times.items()
        },
        "times_faster": min(theirs) / medians[OURS] if theirs else None,
        "matmul_flop_per_sec": rate,
        "matmul_flop_of_step": flop,
        "share_of_matmul_rate": flop / medians[OURS] / rate,
    }
    report(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
