"""Random configs that pass the checks make a model and a step."""

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_config import encoded_image
from test_config_faults import BELOW_1, KINDS, LARGEST, TINY, refusal

from configs import mae
from dppmask_jax.evaluating import subjects
from dppmask_jax.methods import supervised
from dppmask_jax.training import build
from dppmask_jax.training.step import init_state

unit = st.sampled_from([0.0, 0.3, 1.0])
scale = st.sampled_from([(TINY, TINY), (0.2, 1.0), (1.0, 1.0)])
any_positive = st.sampled_from([TINY, 0.5, LARGEST])
COMMON_VALUES = {
    "image_size": st.tuples(st.integers(1, 40), st.integers(1, 40)),
    "batch_size": st.integers(1, 8),
    "data.crop_scale": scale,
    "data.flip": st.booleans(),
    "model.size": st.sampled_from(["Pi", "Mu"]),
    "model.patch_size": st.integers(1, 9),
    "model.drop_path": st.sampled_from([0.0, 0.1, BELOW_1]),
    "model.dtype": st.sampled_from(["float32", "bfloat16"]),
    "model.remat": st.booleans(),
    "mask.tau": unit,
    "mask.tau_end": st.sampled_from([None, 0.0, 1.0]),
    "mask.threshold_on": st.sampled_from(["d2", "d"]),
    "mask.kernel": st.sampled_from(["gaussian", "cosine"]),
    "mask.bandwidth": any_positive,
    "mask.normalize": st.sampled_from(["l2", "center", "standardize"]),
    "optim.weight_decay_end": st.sampled_from([None, 0.0]),
    "optim.b1": st.sampled_from([0.0, BELOW_1]),
    "optim.clip_norm": st.sampled_from([0.0, 1.0]),
    "optim.clip_per_tensor": st.booleans(),
    "optim.epsilon": any_positive,
}
VALUES = {
    "mae": COMMON_VALUES | {
        "model.decoder_width": st.integers(1, 20).map(lambda n: 4 * n),
        "model.decoder_depth": st.integers(1, 3),
        "model.decoder_heads": st.integers(1, 6),
        "mask.strategy": st.sampled_from(["dpp", "random", "block"]),
        "mask.ratio": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "mask.features": st.sampled_from(["embedding", "pixels"]),
        "loss.target": st.sampled_from(["pixels", "hog"]),
        "loss.norm_pix": st.booleans(),
        "loss.hog_window": st.booleans(),
    },
    "ibot": COMMON_VALUES | {
        "data.local_views": st.integers(0, 3),
        "data.local_size": st.tuples(st.integers(1, 20), st.integers(1, 20)),
        "data.local_scale": scale,
        "data.jitter": st.sampled_from([(0.0,) * 4, (1.0, 1.0, 1.0, 0.5)]),
        "data.jitter_prob": unit,
        "data.grey_prob": unit,
        "data.blur_prob": st.tuples(unit, unit, unit),
        "data.blur_sigma": st.sampled_from([(TINY, 2.4), (2.4, 2.4)]),
        "data.solarize_prob": unit,
        "model.head_hidden": st.integers(1, 9),
        "model.head_bottleneck": st.integers(1, 9),
        "model.prototypes": st.integers(2, 9),
        "model.shared_head": st.booleans(),
        "model.norm_last_layer": st.booleans(),
        "mask.strategy": st.sampled_from(["dpp", "random", "block", "attention"]),
        "mask.ratio": st.lists(st.sampled_from([0.0, 0.3, 0.9]), min_size=1, max_size=3),
        "mask.ratio_var": st.lists(st.sampled_from([0.0, 0.05]), min_size=1, max_size=3),
        "mask.prob": st.sampled_from([TINY, 0.5, 1.0]),
        "mask.start_epoch": st.sampled_from([0.0, 0.5]),
        "mask.attention": st.sampled_from(["high", "low", "hint"]),
        "mask.features": st.sampled_from(["tokens", "head", "pixels"]),
        "loss.class_weight": unit,
        "loss.patch_weight": unit,
        "loss.class_temp.warmup_epochs": st.integers(0, 2),
        "teacher.ema_decay": unit,
        "optim.freeze_last_layer_epochs": st.sampled_from([0.0, 0.5]),
    },
    "finetune": {
        name: COMMON_VALUES[name]
        for name in ("batch_size", "data.crop_scale", "data.flip", "model.drop_path", "model.dtype",
                     "model.remat", "optim.b1", "optim.clip_norm", "optim.epsilon")
    } | {
        "data.randaugment": st.sampled_from([0, 0.5, 10]),
        "data.erase_prob": unit,
        "data.mixup": st.sampled_from([0, 0.001, 1000.0]),
        "data.cutmix": st.sampled_from([0, 0.001, 1000.0]),
        "model.pool": st.sampled_from(["mean", "cls"]),
        "optim.layer_decay": st.sampled_from([TINY, 1]),
        "loss.smoothing": st.sampled_from([0.0, BELOW_1]),
    },
}  # fmt: skip


def drawn_config(data, kind, values):
    """A random config that passes the checks; most fail for a patch size that does not fit."""
    chosen = {field: data.draw(strategy, label=field) for field, strategy in values.items()}
    if "image_size" in chosen:
        for field in ("image_size", "data.local_size"):
            if field in chosen:
                patch = chosen["model.patch_size"]
                chosen[field] = tuple(max(1, s // patch) * patch for s in chosen[field])
    if "mask.ratio_var" in chosen:
        count = min(len(chosen["mask.ratio"]), len(chosen["mask.ratio_var"]))
        chosen |= {f: tuple(chosen[f][:count]) for f in ("mask.ratio", "mask.ratio_var")}
    assume(refusal(kind, chosen) == "")
    return kind.changed(chosen)


def trace_a_step(method, batch_size):
    """Shapes only, after a real crop of a real image."""
    (turn,) = method.turns
    state = jax.eval_shape(lambda key: init_state(method, key), jax.random.key(0))
    example = method.example(encoded_image(), np.random.default_rng(0))
    example |= {"index": np.int32(0), "row": np.int32(0), "label": np.int32(1)}
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype), example)

    def step(state, batch):
        (loss, (_, aux)), grads = jax.value_and_grad(turn.loss, has_aux=True)(
            state.params, state.extra, batch, jax.random.key(0), state.step
        )
        updates, _ = turn.optimizer.tx.update(
            grads, state.opt_state[0], state.params, train_step=state.step
        )
        extra = method.after_step(state.params, state.extra, aux, state.step)
        return loss, updates, extra, turn.optimizer.learning_rate(state.step)

    loss, updates, extra, _ = jax.eval_shape(step, state, batch)
    assert loss.shape == ()
    for old, new in ((state.params, updates), (state.extra, extra)):
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), old, new)


def build_a_random_config(data):
    kind = data.draw(st.sampled_from([KINDS[0], KINDS[1], KINDS[2], KINDS[3]]))
    if kind.name in ("mae", "ibot"):
        config = drawn_config(data, kind, VALUES[kind.name])
        plan = build.plan_from(config, 20)
        trace_a_step(build.method_from(config, plan), config.batch_size)
        return
    finetune = next(k for k in KINDS if k.name == "finetune finetune")
    config = drawn_config(data, finetune, VALUES["finetune"])
    assume(config.batch_size % 2 == 0 or not (config.data.mixup or config.data.cutmix))
    config = subjects.completed(config, mae.get_config("dataset=shapes"))
    plan = build.plan_from(config, 20)
    method = supervised.finetune(config, plan, num_outputs=3, several=False)
    trace_a_step(method, config.batch_size)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.data())
def test_random_configs_that_pass_make_a_step(data):
    build_a_random_config(data)


@pytest.mark.faults
@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_many_random_configs_that_pass_make_a_step(data):
    build_a_random_config(data)
