"""One analysis of an encoder, timed by part; `inside.py` runs it in a process of its own.

    python benchmarks/inside_task.py prepare RUN OUT.json --source SHAPES --size 128 --patch 16
    python benchmarks/inside_task.py measure RUN OUT.json --source SOURCE --task soap --images 2000

`prepare` makes a run with random weights, draws the shapes, and times a large matrix product and
the encoder alone. `measure` runs a task as eval.py does. Parts are told apart where a task crosses
from one room to another, so the task itself is the one that users run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import train_step

from configs import mae as preset
from dppmask_jax import command, evaluate, parallel
from dppmask_jax.data import loader
from dppmask_jax.data.images import augment
from dppmask_jax.data.sources import opening
from dppmask_jax.errors import InputError
from dppmask_jax.models.sizes import size_of
from dppmask_jax.runs import checkpoint, workdir
from dppmask_jax.runs.run import load_run
from dppmask_jax.tasks import checks
from dppmask_jax.training.build import method_from, plan_from

LOADING, DEVICE, COMPILING, FIGURES, HOST = "loading", "device", "compiling", "figures", "host"
OWN_NUMBER = ("tsne",)  # tasks that look at a few images, whatever there are
_COMPILER = "/jax/core/compile/"  # of JAX's events: tracing, lowering, compiling


class Clock:
    """Seconds by part, which sum up to all that went by; only the main thread's.

    What is a part inside another one does not count for the outer one. All that is in none counts
    for HOST.
    """

    def __init__(self):
        self.seconds = dict.fromkeys((LOADING, DEVICE, COMPILING, FIGURES, HOST), 0.0)
        self._parts, self._last = [HOST], time.perf_counter()
        self._compiled: list[tuple[float, float]] = []  # (when it began, seconds)

    def charge(self) -> None:
        """Counts what went by since the last call for the part that it was spent in."""
        now = time.perf_counter()
        self.seconds[self._parts[-1]] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str):
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.charge()
        self._parts.append(name)
        try:
            yield
        finally:
            self.charge()
            self._parts.pop()

    def on_event(self, name: str, seconds: float, **_) -> None:
        """Takes what JAX says that it compiled. Tracing may hold other events, which came first."""
        main = threading.current_thread() is threading.main_thread()
        if not main or not name.startswith(_COMPILER):
            return
        self.charge()
        began = self._last - seconds
        within = [event for event in self._compiled if event[0] >= began]
        self._compiled = [event for event in self._compiled if event[0] < began]
        self._compiled.append((began, seconds))
        new = seconds - sum(each for _, each in within)
        self.seconds[self._parts[-1]] -= new
        self.seconds[COMPILING] += new

    def timed(self, name: str, function):
        @functools.wraps(function)
        def call(*arguments, **named):
            with self.part(name):
                return function(*arguments, **named)

        return call


class Counts:
    """`streams`: readable images of each pass over a source; `rows`: {(height, width), None where
    no images were given: how many went through the devices}; `batch`: the largest batch."""

    def __init__(self):
        self.streams: dict[loader.Batches, int] = {}
        self.rows: dict[tuple[int, int] | None, int] = {}
        self.batch = 1


def watch(clock: Clock, counts: Counts) -> None:
    """Puts the clock where batches are loaded, where devices compute, and where is drawn; for the
    rest of the process."""
    jax.monitoring.register_event_duration_secs_listener(clock.on_event)
    following = loader.Batches.__next__

    def next_batch(stream):
        with clock.part(LOADING):
            batch = following(stream)
        counts.streams[stream] = counts.streams.get(stream, 0) + int(batch["valid"].sum())
        return batch

    loader.Batches.__next__ = next_batch
    mapping = parallel.data_parallel_map

    def mapped(function):
        call = clock.timed(DEVICE, mapping(function))

        def counted(state, batch):
            leaves = jax.tree.leaves(batch)
            size = next((leaf.shape[1:3] for leaf in leaves if leaf.ndim == 4), None)
            counts.rows[size] = counts.rows.get(size, 0) + len(leaves[0])
            counts.batch = max(counts.batch, len(leaves[0]))
            return call(state, batch)

        return counted

    parallel.data_parallel_map = mapped
    for module in [m for name, m in sys.modules.items() if name.startswith("dppmask_jax.")]:
        for name, value in list(vars(module).items()):
            drawn = name.startswith(("draw", "save")) and inspect.isfunction(value)
            if drawn and value.__module__.startswith("dppmask_jax.figures"):
                setattr(module, name, clock.timed(FIGURES, value))


def megabytes() -> float:
    """The most memory that this process has had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**20 if sys.platform == "darwin" else 1024)


def seconds_a_batch(run, batch: int) -> float:
    """Of the encoder alone, from uint8 images to patch tokens, on all devices; the median."""
    encoder = run.method.encoder

    def forward(params, images):
        return encoder.encode(params, augment.normalize(images)).patches.mean(axis=(1, 2))

    mapped = parallel.data_parallel_map(forward)
    images = np.random.default_rng(0).integers(0, 256, (batch, *run.image_size, 3), np.uint8)
    mapped(run.encoder, images)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mapped(run.encoder, images)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def config_of(task: str, source: str, images: int):
    config = checks.defaults(task)
    config.data.source = source
    config.data.val_fraction = 0.0  # a folder without a validation split is looked at as a whole
    for field in ("images", "train_images"):
        if field in config and task not in OWN_NUMBER:
            config[field] = images
    if task == "shift":  # what changed does not matter here
        config.changed = source
    return config


def measure(args) -> dict:
    """Runs a task, and times the encoder alone at the sizes that the task had it at."""
    clock, counts, before = Clock(), Counts(), megabytes()
    unwatched = parallel.data_parallel_map
    watch(clock, counts)
    config = config_of(args.task, args.source, args.images)
    with tempfile.TemporaryDirectory() as folder:
        evaluate.evaluate(config, args.run, folder)
    clock.charge()
    seconds, peak = dict(clock.seconds), megabytes()
    parallel.data_parallel_map = unwatched
    encoder = 0.0
    for size, rows in counts.rows.items():
        run = load_run(args.run, image_size=size)
        encoder += rows * seconds_a_batch(run, counts.batch) / counts.batch
    return {
        "task": args.task,
        "images": max(counts.streams.values()),
        "read": sum(counts.streams.values()),
        "encoded": sum(counts.rows.values()),
        "seconds": {
            LOADING: seconds[LOADING],
            "encoder": encoder,
            "statistic": seconds[DEVICE] - encoder,
            HOST: seconds[HOST],
            FIGURES: seconds[FIGURES],
            COMPILING: seconds[COMPILING],
        },
        "total": sum(seconds.values()),
        "megabytes": {"before": before, "peak": peak},
    }


def forward_flop(config) -> float:
    """FLOP of the matrix products of the encoder for one image, all patches visible."""
    size, patch = size_of(config.model), config.model.patch_size
    patches = (config.image_size[0] // patch) * (config.image_size[1] // patch)
    tokens, width = 1 + patches, size.width
    block = tokens * width * (8 * width + 4 * size.hidden) + 4 * tokens**2 * width
    return 2 * patches * 3 * patch**2 * width + size.depth * block


def prepare(args) -> dict:
    """Makes a run of random weights, and the shapes."""
    config = preset.get_config("dataset=shapes")
    config.data.source, config.image_size = args.source, (args.size, args.size)
    config.model.size, config.model.patch_size = args.model, args.patch
    train, _ = opening.open_splits(args.source)
    method = method_from(config, plan_from(config, len(train)))
    params, extra = jax.jit(method.init)(jax.random.key(0))
    checkpoints = checkpoint.Checkpoints(Path(args.run) / checkpoint.FOLDER)
    meta = {"config": workdir.to_json(config)}
    checkpoints.save(0, {"params": params, "extra": extra}, meta)
    checkpoints.close()
    batch = parallel.round_up(64)
    seconds = seconds_a_batch(load_run(args.run), batch) / batch
    return {
        "device": parallel.describe(),
        "matmul_flop_per_sec": train_step.matmul_rate("float32"),
        "encoder_flop": forward_flop(config),
        "encoder_ms": 1000 * seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("prepare", "measure"))
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--task", default="soap")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--model", default="S")
    args = parser.parse_args()
    found = {"prepare": prepare, "measure": measure}[args.what](args)
    args.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        command.fail(error)
