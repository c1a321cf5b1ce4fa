"""Where the time of an iBOT step goes, and what choosing patches before the heads saves.

    python benchmarks/ibot_step.py [--preset dataset=shapes,mask=dpp] [--batch 64] [--json FILE]

Times the parts of the step by themselves, each compiled alone, on random images; the parts that
training differentiates are timed with their gradients. The heads are timed as the step has them,
after the patches a loss needs were chosen, and as a plain step would have them, on all patches.
Runs on whatever JAX finds; the parts on one device, the whole step on all. GFLOP is the compiler's
own count, in which a loop's body counts once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import spread

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import ibot as preset
from dppmask_jax import parallel, patches
from dppmask_jax.data.images import views
from dppmask_jax.losses import distillation
from dppmask_jax.methods import ibot, ibot_masks
from dppmask_jax.training.build import method_from, plan_from
from dppmask_jax.training.step import init_state, make_step

WHOLE = "whole step: loss, gradient, optimiser, teacher"


def random_batch(config, size):
    rng = np.random.default_rng(0)

    def images(views, shape):
        return rng.integers(0, 256, (size, views, *shape, 3), dtype=np.uint8)

    batch = {
        "global_views": images(2, config.image_size),
        "index": np.arange(size, dtype=np.int32),
        "row": np.arange(size, dtype=np.int32),
        "label": np.zeros(size, np.int32),
        "bad": np.zeros(size, bool),
    }
    if config.data.local_views:
        batch["local_views"] = images(config.data.local_views, config.data.local_size)
    return batch


def colors_of(config):
    return {"jitter": tuple(config.data.jitter), "solarize_prob": config.data.solarize_prob}


def local_parts(config, size, encoder, params, batch, key):
    """(name, function, arguments ...) of the parts that see local views."""
    num_local = config.data.local_views * size
    raw = batch["local_views"].reshape(num_local, *config.data.local_size, 3)
    images = jax.random.normal(key, (num_local, *config.data.local_size, 3))
    keys = jax.random.split(key, num_local)

    def student(params, images):
        return jnp.sum(encoder.encode(params["encoder"], images, keys).cls)

    augment = functools.partial(views.augment_view, blur_prob=0.5, **colors_of(config))
    yield "augment local views", lambda x: augment(x, keys), raw
    yield "student backbone, local views, with gradient", jax.grad(student), params, images


def patch_loss(head, teacher, mask, chosen: int):
    """The gradient of the patch loss from the backbones' tokens, of `chosen` patches a view."""

    def on(network, x, which):
        return head.apply({"params": network["head"]}, x, method=which)

    def loss(params, tokens):
        projected = on(teacher, tokens, "project")
        center = jnp.mean(projected, axis=(0, 1))
        target = distillation.teacher_probabilities(
            on(teacher, projected[:, -chosen:], "patch_logits"),
            on(teacher, center, "patch_logits"),
            0.05,
        )
        student = on(params, on(params, tokens[:, -chosen:], "project"), "patch_logits")
        return distillation.patch_token_loss(target, student, mask[:, -chosen:], 0.1)

    return jax.grad(loss, argnums=(0, 1))


def parts_of(config, size):
    """{name: (function, arguments)} of the step's parts, and the number of chosen patches."""
    plan = plan_from(config, 50 * size)
    method = method_from(config, plan)
    encoder, head = ibot.model_from(config)
    key = jax.random.key(0)
    params, extra = jax.jit(method.init)(key)
    batch = jax.device_put(random_batch(config, size))
    num_global = 2 * size
    rows, columns = patches.grid_shape(tuple(config.image_size), config.model.patch_size)
    num_patches, most = rows * columns, method.num_hidden[1]
    keys = jax.random.split(key, num_global)
    drop = jax.random.split(key, num_global)
    global_images = jax.random.normal(key, (num_global, *config.image_size, 3))
    tokens = jax.random.normal(key, (num_global, num_patches, encoder.width))
    mask = jnp.arange(num_patches)[None] + jnp.zeros((num_global, 1)) >= num_patches - most
    table = {}

    def add(name, fn, *args):
        table[name] = (jax.jit(fn), args)

    raw = batch["global_views"].reshape(num_global, *config.image_size, 3)
    augment = functools.partial(views.augment_view, blur_prob=0.5, **colors_of(config))
    add("augment global views", lambda x: augment(x, keys), raw)

    add("teacher backbone", encoder.attended, params["encoder"], global_images)

    draw = ibot_masks.drawer(config, method.masker, plan)
    weights = jax.random.uniform(key, (num_global, 1, num_patches))
    add(
        f"masks ({config.mask.strategy})",
        lambda tokens: (
            draw(keys, key, 0, features=lambda: tokens, attention=lambda: weights)[0].order
        ),
        tokens,
    )

    def student_global(params, images):
        tokens = encoder.encode(params["encoder"], images, drop, mask, params["mask_embed"])
        return jnp.sum(tokens.cls) + jnp.sum(tokens.patches)

    add(
        "student backbone, global views, with gradient",
        jax.grad(student_global),
        params,
        global_images,
    )
    if config.data.local_views:
        for name, fn, *args in local_parts(config, size, encoder, params, batch, key):
            add(name, fn, *args)
    for words, chosen in (("chosen", most), ("all", num_patches)):
        loss = patch_loss(head, extra["teacher"], mask, chosen)
        add(f"patch heads and loss, {words} patches, with gradient", loss, params, tokens)
    add(
        "whole loss with gradient",
        jax.grad(lambda p, b: method.turns[0].loss(p, extra, b, key, 0)[0]),
        params,
        batch,
    )
    return table, most, num_patches


def whole_step(config, size):
    """A function that takes one training step: optimiser, teacher and centres included."""
    plan = plan_from(config, 50 * size)
    method = method_from(config, plan)
    step = make_step(method)
    state = parallel.replicate(init_state(method, jax.random.key(0)))
    batch = parallel.split_batch(random_batch(config, size))

    def run():
        nonlocal state
        state, metrics = step(state, batch, jax.random.key(1))
        return metrics

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", default="dataset=shapes", help="arguments of configs/ibot.py")
    parser.add_argument("--batch", type=int, help="images; default the preset's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default the preset's")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", help="also write the results there")
    args = parser.parse_args()
    config = preset.get_config(args.preset)
    size = args.batch or config.batch_size
    if size < 1 or args.repetitions < 1:
        parser.error("--batch and --repetitions must be at least 1")
    if args.dtype:
        config.model.dtype = args.dtype

    table, most, num_patches = parts_of(config, size)
    flops = {}
    for name, (run, arguments) in table.items():
        cost = run.lower(*arguments).compile().cost_analysis()
        flops[name] = float((cost or {}).get("flops", float("nan")))
        jax.block_until_ready(run(*arguments))
    table = {name: functools.partial(run, *arguments) for name, (run, arguments) in table.items()}
    table[WHOLE] = whole_step(config, size)
    jax.block_until_ready(table[WHOLE]())
    times = {name: [] for name in table}
    for _ in range(args.repetitions):
        for name, run in table.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1e3 * (time.perf_counter() - start))

    device = jax.devices()[0]
    result = {
        "preset": args.preset,
        "dtype": config.model.dtype,
        "batch": size,
        "device": f"{device.device_kind} ({device.platform})",
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "patches_of_a_view": num_patches,
        "chosen_patches": most,
        "ms": {name: spread.of(ms) for name, ms in times.items()},
        "gflop": {name: count / 1e9 for name, count in flops.items()},
    }
    print(f"configs/ibot.py:{args.preset}, {config.model.dtype}, batch {size}; ", end="")
    print(f"{most} of {num_patches} patches of each global view chosen for the heads")
    print(f"{result['device']}, {result['cores']} cores, jax {result['jax']}\n")
    print(f"{'':52}{'ms':>9}  {'(min - max)':21}{'GFLOP':>9}")
    for name, values in result["ms"].items():
        limits = f"({values['min']:.1f} - {values['max']:.1f})"
        count = f"{result['gflop'][name]:9.2f}" if name in result["gflop"] else ""
        print(f"{name:52}{values['median']:9.1f}  {limits:21}{count}".rstrip())
    chosen, everything = (
        f"patch heads and loss, {which} patches, with gradient" for which in ("chosen", "all")
    )
    saved = result["ms"][everything]["median"] - result["ms"][chosen]["median"]
    whole = result["ms"][WHOLE]["median"]
    result["saved_share_of_step"] = saved / (whole + saved)
    print(
        f"\nChoosing patches before the heads saves {saved:.1f} ms of what would be "
        f"{whole + saved:.1f} ms: {result['saved_share_of_step']:.0%} of the step, and "
        f"{1 - result['gflop'][chosen] / result['gflop'][everything]:.0%} of the heads' FLOP."
    )
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
