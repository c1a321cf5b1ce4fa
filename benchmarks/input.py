"""How fast are images read? The training loader against tf.data and plain Pillow, core by core.

    DPPMASK_TEST_DATA=/data python benchmarks/input.py             # reads /data/photos
    python benchmarks/input.py --images ~/photos --tf_python ~/tfenv/bin/python --json input.json

Everyone reads JPEG files, decodes them, cuts random resized crops (area 0.2 to 1, to 224 pixels; or
iBOT's 2 of 224 and 10 of 96 pixels) and stacks batches of uint8. Each is a process of its own that
may run on so many cores and no more. They take turns, and are stopped between them, so that nobody
reads ahead; a turn is a number of images that is not timed and one that is. So that the few files
of a test cost no more to shuffle than those of a data set, each stands there under many names.
The error is the mean difference, in grey levels of 256, from Pillow's antialiased bicubic of the
same boxes.

tf.data needs an interpreter with TensorFlow, this one or `--tf_python`; without, it is left out and
the report says so. Run it on an idle machine. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import hardware
import input_readers
import numpy as np
import spread

ROOT = Path(__file__).parent.parent
BATCH, UNTIMED, SIZE = 32, 320, 224
NAMES = 20_000  # at least
PACKAGES = ("Pillow", "simplejpeg", "cykooz.resizer", "grain", "numpy")
VIEWS = {
    "one crop": [{"count": 1, "size": SIZE, "scale": [0.2, 1.0]}],
    "2 + 10 crops": [
        {"count": 2, "size": SIZE, "scale": [0.25, 1.0]},
        {"count": 10, "size": 96, "scale": [0.05, 0.25]},
    ],
}
FILTERS = {
    "ours": "antialiased bicubic",
    "Pillow": "antialiased bicubic",
    "tf.data": "bicubic, not antialiased",
    "tf.data, antialiased": "antialiased bicubic",
}


class Reader:
    """A process of input_readers.py on the first `cores` cores."""

    def __init__(self, python, kind, folder, settings):
        available = sorted(os.sched_getaffinity(0))[: settings["cores"]]
        self._process = subprocess.Popen(
            [python, input_readers.__file__, kind, folder, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
            if python == sys.executable
            else {k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            preexec_fn=lambda: os.sched_setaffinity(0, available),
            start_new_session=True,  # one group with the processes that it starts
        )
        self._answer()
        self._signal(signal.SIGSTOP)

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a reader ended with status {self._process.wait()}; its words are above")
        return json.loads(line)

    def _signal(self, number):
        os.killpg(self._process.pid, number)

    def orders(self, *orders):
        """The answer to the last of them; afterwards the reader and its workers stand still."""
        self._signal(signal.SIGCONT)
        for order in orders:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self):
        if self._process.poll() is not None:
            return
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()


def many_names(folder, to):
    """Fills the folder `to` with links to the files of `folder`, so many to each."""
    files = input_readers.files_of(folder)
    for number in range(math.ceil(NAMES / len(files))):
        for file in files:
            os.symlink(os.path.abspath(file), os.path.join(to, f"{number}_{Path(file).name}"))


def contestants(tf_python, core_counts):
    """{name: (interpreter, reader, settings)}; `cores` and, for ours, `workers` vary."""
    table = {}
    for cores in core_counts:
        for workers in (0, 1, 2):
            name = "ours, " + (
                "threads" if not workers else f"{workers} worker" + "s" * (workers > 1)
            )
            table[name, cores] = (sys.executable, "ours", {"workers": workers})
        table["Pillow", cores] = (sys.executable, "pillow", {})
        if tf_python:
            for name, antialias in (("tf.data", False), ("tf.data, antialiased", True)):
                table[name, cores] = (tf_python, "tf.data", {"antialias": antialias})
    # A plain loop has one thread.
    return {key: value for key, value in table.items() if key != ("Pillow", 2)}


def measure(table, folder, views, images, repetitions):
    """{(name, cores): seconds of each turn}."""
    with contextlib.ExitStack() as stack:
        readers = {}
        for (name, cores), (python, kind, settings) in table.items():
            settings = settings | {"cores": cores, "views": views, "batch": BATCH}
            readers[name, cores] = Reader(python, kind, folder, settings)
            stack.callback(readers[name, cores].close)
        times = {key: [] for key in table}
        for _ in range(repetitions):
            for key, reader in readers.items():
                times[key].append(reader.orders({"images": UNTIMED}, {"images": images}))
    return times


def errors(table, folder, count=64):
    """{name: mean error in grey levels} over random boxes of one crop, against Pillow's."""
    rng, boxes = random.Random(0), []
    from PIL import Image

    for file in input_readers.files_of(folder)[:count]:
        with Image.open(file) as image:
            boxes.append([file, [input_readers.random_box(rng, *image.size, (0.2, 1.0))]])
    made = {}
    with tempfile.TemporaryDirectory() as temporary:
        for (name, cores), (python, kind, settings) in table.items():
            if name.split(",")[0] == "ours":
                name = "ours"
            if name in made:
                continue
            settings = settings | {"cores": cores, "views": VIEWS["one crop"], "batch": BATCH}
            reader = Reader(python, kind, folder, settings)
            path = os.path.join(temporary, "crops.npy")
            reader.orders({"crops": boxes, "size": SIZE, "to": path})
            reader.close()
            made[name] = np.load(path, allow_pickle=False).astype(int)
    return {name: float(np.mean(np.abs(crops - made["Pillow"]))) for name, crops in made.items()}


def has_tensorflow(python) -> bool:
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('tensorflow') is None)"
    return subprocess.run([python, "-c", found]).returncode == 0


def report(result):
    print(hardware.line(result["hardware"]))
    print(f"{result['files']} JPEG files of {result['images']}\n")
    for views, rates in result["images_per_sec"].items():
        print(f"{views:28}{'cores':>6}{'images/s':>10}  {'(min - max)':17}{'per core':>9}")
        for row in rates:
            print(
                f"{row['name']:28}{row['cores']:6}{row['median']:10.0f}  "
                f"{'({:.0f} - {:.0f})'.format(row['min'], row['max']):17}"
                f"{row['median'] / row['cores']:9.0f}"
            )
        print()
    print(f"{'':28}{'error':>6}  filter")
    for name, error in result["mean_error"].items():
        print(f"{name:28}{error:6.2f}  {FILTERS[name]}")
    for name, ratio in result["ratio"].items():
        print(f"\nours (threads) against {name}: {ratio:.2f}", end="")
    print("" if result["tensorflow"] else "\ntf.data was left out: no TensorFlow, see --tf_python")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", help="folder of JPEG files; default $DPPMASK_TEST_DATA/photos")
    parser.add_argument("--tf_python", default=sys.executable, help="interpreter with TensorFlow")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each (default 5)")
    parser.add_argument("--timed", type=int, default=320, help="images of a turn (default 320)")
    parser.add_argument("--views", choices=tuple(VIEWS), help="default both")
    parser.add_argument("--json", help="also write the results there")
    args = parser.parse_args()
    folder = args.images
    if folder is None and os.environ.get("DPPMASK_TEST_DATA"):
        folder = os.path.join(os.environ["DPPMASK_TEST_DATA"], "photos")
    if folder is None or not os.path.isdir(folder) or not input_readers.files_of(folder):
        parser.error("give --images a folder of JPEG files, or set DPPMASK_TEST_DATA")
    if args.repetitions < 1 or args.timed < BATCH or args.timed % BATCH:
        parser.error(f"--repetitions must be at least 1, --timed a multiple of {BATCH}")

    with_tf = has_tensorflow(args.tf_python)
    counts = [1, 2] if hardware.cores() > 1 else [1]
    table = contestants(args.tf_python if with_tf else None, counts)
    rates, ratio = {}, {}
    for views in [args.views] if args.views else VIEWS:
        images = args.timed if views == "one crop" else max(args.timed // 4 // BATCH, 1) * BATCH
        with tempfile.TemporaryDirectory() as named:
            many_names(folder, named)
            times = measure(table, named, VIEWS[views], images, args.repetitions)
        speed = {key: images / np.array(seconds) for key, seconds in times.items()}
        rates[views] = [
            {"name": name, "cores": cores, **spread.of(values)}
            for (name, cores), values in speed.items()
        ]
        ours = np.median(speed["ours, threads", 1])
        for (name, cores), values in speed.items():
            if cores == 1 and not name.startswith("ours"):
                ratio[f"{name}, {views}, 1 core"] = float(ours / np.median(values))
    result = {
        "hardware": hardware.describe(*PACKAGES),
        "images": folder,
        "files": len(input_readers.files_of(folder)),
        "tensorflow": with_tf,
        "images_per_sec": rates,
        "ratio": ratio,
        "mean_error": errors(table, folder),
    }
    report(result)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
