"""What a device is asked for: step, selection, attention, input, with the sizes that suit it.

    python benchmarks/all.py OUT [--images FOLDER] [--tf_python INTERPRETER] [--page docs/speed.md]

Writes OUT/NAME.json and OUT/NAME.txt, what each benchmark printed, OUT/hardware.json and all of it
as a table, OUT/table.md, which --page puts between the marks of a page if all went well. On a GPU
install `jax[cuda13]`, PyTorch with CUDA and transformers first; of several the first is used, as
PyTorch uses one. Stops at nothing: what failed is named at the end, with status 1. Takes some ten
minutes on two CPU cores; run it on an idle machine. --tiny tries all of it in some minutes, with
sizes that say nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import all_table, hardware, marked

HERE = Path(__file__).parent
SCRIPT, TABLE = "benchmarks/all.py", "accelerator"  # of the marks in a page
_DPP = ["--mask=dpp", "--alone"]  # PyTorch's masks are random
# {name: (script, arguments)}
ON_CPU = {
    "selector": ("selector.py", []),
    "selector_sizes": ("selector_sizes.py", []),
    "train_step": ("train_step.py", []),
    "train_step_dpp": ("train_step.py", _DPP),
    "ibot_step": ("ibot_step.py", []),
    "attention": ("attention.py", []),
}
ON_ACCELERATOR = {
    "selector": ("selector.py", ["--batch=1024"]),
    "selector_sizes": ("selector_sizes.py", ["--batch=32"]),
    "train_step": ("train_step.py", ["--batch=256", "--dtype=bfloat16"]),
    "train_step_512": ("train_step.py", ["--batch=512", "--dtype=bfloat16"]),
    "train_step_dpp": ("train_step.py", ["--batch=256", "--dtype=bfloat16", *_DPP]),
    "ibot_step": ("ibot_step.py", ["--preset=dataset=imagenet1k", "--batch=32"]),
    "attention": ("attention.py", ["--batch=256", "--dtype=bfloat16"]),
}
# What --tiny adds to each, the input's included.
_STEP = ["--batch=2", "--repetitions=1", "--steps=1"]
TINY = {
    "selector": ["--batch=2", "--repetitions=1"],
    "selector_sizes": ["--batch=1", "--rounds=1"],
    "train_step": ["--size=Ti", *_STEP],
    "train_step_512": ["--size=Ti", *_STEP],
    "train_step_dpp": ["--size=Ti", *_STEP],
    "ibot_step": ["--preset=dataset=shapes", "--batch=4", "--repetitions=1"],
    "attention": ["--batch=2", "--repetitions=1", "--calls=1"],
    "input": ["--repetitions=1", "--timed=32", "--views=one crop"],
}


def commands(backend, images, tf_python, tiny: bool):
    """{name: command}, without --json."""
    folder = [f"--images={images}"] if images else []
    table = {
        name: [sys.executable, str(HERE / script), *arguments]
        for name, (script, arguments) in (ON_CPU if backend == "cpu" else ON_ACCELERATOR).items()
    }
    for name in ("selector", "selector_sizes"):
        table[name] += folder
    table["input"] = [sys.executable, str(HERE / "input.py"), *folder]
    if tf_python:
        table["input"].append(f"--tf_python={tf_python}")
    if tiny:
        table = {name: command + TINY[name] for name, command in table.items()}
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, help="folder for the results; made if missing")
    parser.add_argument("--images", help="folder of JPEG files; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--tf_python", help="interpreter with TensorFlow, for input.py")
    parser.add_argument("--page", type=Path, help="of an accelerator: page to put the table into")
    parser.add_argument("--tiny", action="store_true", help="try the command, with tiny sizes")
    args = parser.parse_args()
    if args.page and args.tiny:
        parser.error("--page is for figures, and --tiny makes none")
    if args.page:
        marked.check(args.page, SCRIPT, [TABLE])
    args.out.mkdir(parents=True, exist_ok=True)
    # In a process of its own: one that holds an accelerator would keep it from the benchmarks.
    found = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind)"
    environment = {"CUDA_VISIBLE_DEVICES": "0"} | os.environ
    words = subprocess.run(
        [sys.executable, "-c", found], stdout=subprocess.PIPE, text=True, env=environment
    )
    words.check_returncode()
    backend, count, kind = words.stdout.strip().split(" ", 2)
    if args.page and backend == "cpu":
        parser.error("--page is for an accelerator's figures, and JAX finds a CPU")
    described = hardware.describe("jax", "jaxlib", "torch", "transformers", "numpy")
    described |= {"backend": backend, "devices": int(count), "device_kind": kind}
    (args.out / "hardware.json").write_text(json.dumps(described, indent=1) + "\n")
    print(f"{count} x {kind} ({backend}); {hardware.line(described)}", flush=True)

    failed = []
    for name, command in commands(backend, args.images, args.tf_python, args.tiny).items():
        (args.out / f"{name}.json").unlink(missing_ok=True)  # of another run
        command = [*command, f"--json={args.out / name}.json"]
        print(f"\n{' '.join(command)}", flush=True)
        with open(args.out / f"{name}.txt", "w") as file:
            status = subprocess.run(command, stdout=file, env=environment).returncode
        print((args.out / f"{name}.txt").read_text(), flush=True)
        if status:
            failed.append(f"{name} (status {status})")
    table = all_table.table(all_table.read(args.out))
    (args.out / "table.md").write_text(table + "\n")
    print(f"\n{table}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if args.page:
        marked.write(args.page, SCRIPT, {TABLE: table})


if __name__ == "__main__":
    main()
