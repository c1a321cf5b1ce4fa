"""Runs with random weights, made without training, for the tests of weights in other formats."""

import jax
import numpy as np
import tiny

from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import encoders
from dppmask_jax.runs import checkpoint, workdir
from dppmask_jax.training.build import method_from, plan_from


def random_like(tree, seed=0):
    """A tree of small random arrays: no two alike, no zeros or ones that hide a mistake."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.dtype != np.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        return (0.05 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree.map(draw, tree)


def weights(config, seed=0):
    """(params, extra) of a config; scales of layer norms are near 1."""
    method = method_from(config, plan_from(config, config.batch_size))
    drawn = random_like(jax.eval_shape(method.init, jax.random.key(0)), seed)
    return _with_scales_near_one(drawn)


def _with_scales_near_one(tree):
    def near_one(path, leaf):
        return leaf + 1 if path[-1].key == "scale" else leaf

    return jax.tree_util.tree_map_with_path(near_one, tree)


def save(folder, config, params, extra):
    """Writes a checkpoint of the parameters alone; nothing reads the rest of it here."""
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
    checkpoints.save(0, {"params": params, "extra": extra}, {"config": workdir.to_json(config)})
    checkpoints.close()
    return folder


def run(folder, method="mae", seed=0, **changes):
    """The workdir of a tiny run of 16x24 px, that is 4x6 patches."""
    config = tiny.config(method, **{"image_size": (16, 24)} | changes)
    return save(folder, config, *weights(config, seed))


def finetuned(folder, num_outputs=5, seed=0, **changes):
    """The folder of a tiny fine-tuned classifier; names of changed fields are written as for
    `tiny.config`."""
    config = tiny.evaluation("task=finetune", **changes)
    pretraining = tiny.config("mae")
    with config.unlocked():
        config.image_size = (16, 24)
        encoders.copy_shape(config.model, pretraining.model)
        config.model.dtype = "float32"
    method = supervised.finetune(config, Plan(1, 1), num_outputs=num_outputs, several=False)
    drawn = random_like(jax.eval_shape(method.init, jax.random.key(0)), seed)
    return save(folder, config, *_with_scales_near_one(drawn))


def state_of(folder):
    """{"params", "extra"} of a run's newest checkpoint."""
    return checkpoint.read_newest(folder)[1]
