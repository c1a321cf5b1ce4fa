"""Every number that a run or an evaluation writes down has its meaning in docs/metrics.md."""

import json
import re

import jax
import numpy as np
import pytest
import tiny
from test_config_builds import encoded_image

from dppmask_jax import evaluate
from dppmask_jax.analyses import inside
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.tasks import TASKS
from dppmask_jax.training import step as steps

PAGE = (tiny.ROOT / "docs" / "metrics.md").read_text()
NAMED = set(re.findall(r"`([^`\n]+)`", PAGE))
# Those that want more than a tiny run, one that runs others, and those of which records are kept.
LEFT_OUT = (
    "shift", "reconstruct", "inside", "backgrounds", "finetune", "linear", "multilabel",
)  # fmt: skip
COUNTED = re.compile(r"(?<=_)\d+(?=_)")  # as in mask_0_share, which stands there as mask_N_share


def unnamed(names) -> set[str]:
    """Those of some names that the page lacks."""
    return {name for name in names if COUNTED.sub("N", name) not in NAMED}


def keys_of(node, keys: set[str]) -> set[str]:
    """The keys of a nested record that are names: not those of classes, and no numbers."""
    if isinstance(node, dict):
        for key, value in node.items():
            if re.fullmatch(r"[A-Za-z]\w*", key):
                keys.add(key)
            if key not in ("per_class", "config", "checkpoint", "data", "figures"):
                keys_of(value, keys)
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        keys_of(node[0], keys)
    return keys


def test_kept_records_are_explained():
    found = set()
    for path in sorted((tiny.ROOT / "docs" / "results").glob("*_*-*.json")):
        record = json.loads(path.read_text())
        if "metrics" in record:  # not a sweep
            found |= set(record) | keys_of(record["metrics"], set())
    assert len(found) > 30
    assert not unnamed(found)


def logged(method: str, **changes) -> set[str]:
    """The metrics of a step; only its shapes are computed."""
    config = tiny.config(method, **changes)
    built = METHODS[method].build(config, Plan(4, 8, 1, 4, 1e-3))
    state = jax.eval_shape(lambda key: steps.init_state(built, key), jax.random.key(0))
    example = built.example(encoded_image(), np.random.default_rng(0))
    example |= {name: np.int32(0) for name in ("index", "row", "label")} | {"bad": np.False_}
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, 8, *np.shape(x)), np.asarray(x).dtype),  # of a device
        example,
    )
    devices = jax.devices()[:1]
    _, metrics = jax.eval_shape(
        steps.make_step(built, devices=devices), state, batch, jax.random.key(0)
    )
    return set(metrics) - {"wish"}  # which the loop takes out


@pytest.mark.slow  # the steps of all methods are traced
@pytest.mark.parametrize("method", tiny.RECIPES)
def test_steps_are_explained(method):
    masks = {"mask__strategy": "dpp"} if METHODS[method].masks else {}
    found = logged(method, **masks)
    assert "loss" in found and not unnamed(found)


@pytest.mark.slow  # some tasks run; test_inside asks the same of inside's parts
def test_evaluations_are_explained(fewer_blocks, tmp_path):
    run, found = tiny.save_run(tmp_path / "run", method="ibot"), set()
    for name in (name for name in TASKS if name not in (*LEFT_OUT, *inside.PARTS)):
        has = tiny.evaluation(f"task={name}")
        changes = {field: 24 for field in ("images", "train_images") if field in has}
        path = evaluate.evaluate(
            tiny.evaluation(f"task={name}", **changes), run, tmp_path / name, "as typed"
        )
        record = json.loads(path.read_text())
        found |= set(record) | keys_of(record["metrics"], set())
    assert "metrics" in found and not unnamed(found)
