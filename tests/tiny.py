"""A run small enough for tests: 16 px shapes, 16 patches of 4 px, a four-block encoder."""

import contextlib
import functools
import itertools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import compiling
import forked
import jax
import numpy as np

from configs import adios, hybrid, ibot, mae, moco, simmim
from configs import eval as evaluations
from dppmask_jax import pretrain
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.workdir import to_json

ROOT = Path(__file__).parent.parent
# Below those that Linux gives to whoever asks for any, and other ones in each worker.
_FIRST_PORT = 20_000 + 200 * (os.getpid() % 60)
_PORTS = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + 200))
COMMON = {
    "data.source": "shapes:size=16,train=96,val=24",
    "image_size": (16, 16),
    "batch_size": 8,
    "epochs": 1.0,
    "log_every": 1,
    "model.size": "Pi",
    "model.patch_size": 4,
    "optim.warmup_epochs": 0.5,
    "checkpoint.every": 4,
    "evaluate.every_epochs": 0.5,
    "evaluate.knn_images": 96,
    "evaluate.knn_k": 5,
    "evaluate.figure_images": 0,
}
RECIPES = {
    "mae": mae,
    "ibot": ibot,
    "simmim": simmim,
    "moco": moco,
    "hybrid": hybrid,
    "adios": adios,
}
OVERRIDES = {
    "mae": COMMON
    | {
        "model.decoder_width": 32,
        "model.decoder_depth": 1,
        "model.decoder_heads": 2,
        "evaluate.loss_images": 24,
    },
    "simmim": COMMON | {"evaluate.loss_images": 24},
    "moco": COMMON
    | {
        "model.projector_hidden": 16,
        "model.projector_out": 8,
        "model.predictor_hidden": 16,
        "evaluate.loss_images": 24,
    },
    "hybrid": COMMON
    | {
        "model.decoder_width": 32,
        "model.decoder_depth": 1,
        "model.decoder_heads": 2,
        "model.projector_hidden": 16,
        "model.projector_out": 8,
        "model.predictor_hidden": 16,
        "evaluate.loss_images": 24,
    },
    "adios": COMMON
    | {
        "model.projector_hidden": 16,
        "model.projector_out": 8,
        "masks.count": 3,
        "masks.optim.warmup_epochs": 0.5,
        "evaluate.loss_images": 24,
    },
    "ibot": COMMON
    | {
        "data.local_views": 2,
        "data.local_size": (8, 8),
        "model.head_hidden": 32,
        "model.head_bottleneck": 16,
        "model.prototypes": 24,
        "model.init_std": 0.02,
        "model.norm_last_layer": False,
        "optim.freeze_last_layer_epochs": 0.25,
        "evaluate.loss_images": 0,
    },
}


def config(method="mae", **changes):
    """The tiny config; names of changed fields are written with __ for a dot."""
    built = RECIPES[method].get_config("dataset=shapes")
    fields = OVERRIDES[method] | {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in fields.items():
        *path, leaf = name.split(".")
        node = built
        for part in path:
            node = node[part]
        node[leaf] = value
    return built


def command(workdir, *extra, method="mae", **changes):
    """The train.py command line of `config(method, **changes)`, with two blocks instead of four:
    a command compiles or traces all of them. A field that is None is left as it is."""
    changes = {"model__depth": 2} | changes
    fields = OVERRIDES[method] | {name.replace("__", "."): value for name, value in changes.items()}
    # A tuple given twice would be taken for one long tuple.
    replaced = {word.split("=")[0] for word in extra}
    overrides = [
        f"--config.{name}={value}"
        for name, value in fields.items()
        if f"--config.{name}" not in replaced and value is not None
    ]
    return [
        sys.executable,
        "train.py",
        f"--config=configs/{method}.py:dataset=shapes",
        f"--workdir={workdir}",
        *overrides,
        *extra,
    ]


def environment(devices, *, as_users=False):
    """The environment of a command that is to see so many devices.

    What one command compiles, the next one finds.

    Args:
      as_users: compiled as users have it; see compiling.py.
    """
    return os.environ | {
        "XLA_FLAGS": compiling.xla_flags(devices, as_users=as_users),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ["DPPMASK_TESTS_COMPILED"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_COMPILATION_CACHE_MAX_SIZE": "10000000000",  # JAX locks a cache that has a limit only
    }


def free_port() -> int:
    """A port that nobody listens at, and hardly anybody is given before a command listens."""
    for port in itertools.islice(_PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port of 200 is free")


def start(arguments, devices=1, **variables):
    """Starts a command from the project's root; see forked.py.

    Args:
      variables: of the environment.
    """
    return forked.Process(arguments, ROOT, environment(devices) | variables)


def run(arguments, devices=1, **variables):
    """Runs a command from the project's root; returns the finished process."""
    process = start(arguments, devices, **variables)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def assert_refused(cases, devices=1, **variables):
    """Each command ends with status 2 and one line on stderr that has its words, and says no more.

    Args:
      cases: {name: (arguments, words)}.
      variables: of the environment.
    """
    for name, (arguments, words) in cases.items():
        done = run(arguments, devices, **variables)
        out, err = done.stdout, done.stderr
        assert done.returncode == 2 and not out, (name, out, err)
        assert err.startswith("error: ") and len(err.splitlines()) == 1, (name, err)
        assert words in err, (name, err)


def with_optimizer(method, optimizer):
    """A method of one turn with another optimiser."""
    (turn,) = method.turns
    return method._replace(turns=(turn._replace(optimizer=optimizer),))


def filled(shapes, seed):
    """Arbitrary parameters of given shapes, norms and biases among them, without compiling."""
    rng = np.random.default_rng(seed)

    def fill(path, shape):
        around = 1.0 if str(path[-1].key) == "scale" else 0.0
        return (around + 0.2 * rng.normal(size=shape.shape)).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def save_run(workdir, method="mae", seed=3, history=(), **changes):
    """Writes the checkpoint of a run of `config(method, **changes)` that was never trained."""
    settings = config(method, **changes)
    built = METHODS[method].build(settings, Plan(1, 1))
    params, extra = filled(jax.eval_shape(built.init, jax.random.key(0)), seed)
    checkpoints = checkpoint.Checkpoints(Path(workdir) / checkpoint.FOLDER)
    meta = {"config": to_json(settings), "history": history}
    checkpoints.save(12, {"params": params, "extra": extra}, meta)
    checkpoints.close()
    return Path(workdir)


def evaluation(argument, **changes):
    """A config of eval.py on `shapes`; names of changed fields are written as for `config`."""
    built = evaluations.get_config(f"dataset=shapes,{argument}")
    for name, value in changes.items():
        *path, leaf = name.split("__")
        functools.reduce(lambda node, part: node[part], path, built)[leaf] = value
    return built


def batch_of_pairs(size=8, first=0, side=16):
    """A batch of methods of two augmented views; the first image has the number `first`."""
    rng = np.random.default_rng(first)
    return {
        "global_views": rng.integers(0, 256, (size, 2, side, side, 3), dtype=np.uint8),
        "label": np.zeros(size, np.int32),
        "index": np.arange(first, first + size, dtype=np.int32),
        "row": np.arange(first, first + size, dtype=np.int32),
        "bad": np.zeros(size, bool),
    }


def trained_and_gone_on(config, folder):
    """The workdir of a run of four steps, which is, to the bit, the one that made the last two of
    them anew from the checkpoint before, and draws nothing: figures are the same code again."""
    one, other = folder / "one", folder / "other"
    pretrain.train(config, one)
    shutil.copytree(one, other)
    shutil.rmtree(other / checkpoint.FOLDER / "4")
    undrawn = config.copy_and_resolve_references()
    undrawn.evaluate.figure_images = 0
    pretrain.train(undrawn, other)
    parts = ("params", "opt_state", "extra")
    states = [checkpoint.read_newest(workdir, parts) for workdir in (one, other)]
    assert [step for *_, step in states] == [4, 4]
    jax.tree.map(np.testing.assert_array_equal, states[0][1], states[1][1])
    return one
