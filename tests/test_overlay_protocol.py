"""How an encoder of paired overlay is fine-tuned, probed, and held against one from scratch."""

import types

import jax
import numpy as np
import pytest
import tiny

from configs import eval as evaluations
from configs import overlay as recipe
from dppmask_jax import config as configs
from dppmask_jax.errors import InputError
from dppmask_jax.evals import finetune, seeds
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.methods import supervised
from dppmask_jax.methods.base import Plan, TrainState
from dppmask_jax.results import rows
from dppmask_jax.runs.run import load_run
from dppmask_jax.tasks import checks
from dppmask_jax.training import build


def test_the_papers_pre_training_is_sgd_on_a_cosine():
    given = recipe.get_config("dataset=caltech256")
    given.data.source = "caltech256:somewhere"
    configs.check(given)
    plan = build.plan_from(given, 23_824)
    assert (plan.total_steps, plan.peak_lr, plan.warmup_steps) == (50 * 93, 0.05, 0)
    (turn,) = build.method_from(given, plan).turns
    assert turn.optimizer.learning_rate(0) == pytest.approx(0.05)
    assert turn.optimizer.learning_rate(25 * 93) == pytest.approx(0.025)
    assert turn.optimizer.weight_decay(100) == pytest.approx(1e-4)


@pytest.mark.parametrize("task,epochs", [("finetune", 20), ("linear", 5)])
def test_the_papers_evaluations_are_sgd_on_a_cosine(task, epochs):
    given = evaluations.get_config(f"task={task},dataset=caltech256")
    checks.check(given)
    assert (given.epochs, given.batch_size) == (epochs, 256)
    plan = build.plan_from(given, 23_824)
    assert plan.peak_lr == pytest.approx(0.01) and plan.warmup_steps == 0
    assert given.get("solver", given.optim.get("kind")) == "sgd" and given.optim.b1 == 0.9
    assert not given.data.flip and given.optim.weight_decay == 1e-4


def test_from_scratch_a_training_begins_without_the_encoder_in_files_of_its_own(
    tmp_path, monkeypatch
):
    run, began = load_run(tiny.save_run(tmp_path / "run")), {}
    monkeypatch.setattr(seeds, "init_state", filled)
    monkeypatch.setattr(seeds.fit, "fit", lambda training, first, **more: first())
    for scratch in (False, True):
        given = tiny.evaluation("task=finetune", scratch=scratch, batch_size=8)
        given = subjects.completed(given, run.config)
        with given.unlocked():
            given.seed = 0
        method = supervised.finetune(given, Plan(1, 1), num_outputs=3, several=False)
        evaluation = types.SimpleNamespace(run=run, say=print)
        state = seeds._train(
            evaluation, given, tmp_path, None, method, range(16), None, None
        )  # fmt: skip
        began[scratch] = jax.device_get(state.params["encoder"]["blocks"])
        suffix = "_scratch" * scratch
        assert records.name_of(given) == seeds.task_of(given) == f"finetune{suffix}"
    pretrained = run.encoder["blocks"]
    jax.tree.map(np.testing.assert_array_equal, began[False], pretrained)
    kernels = [blocks["block_0"]["mlp"]["fc1"]["kernel"] for blocks in (began[True], pretrained)]
    assert not np.any(kernels[0] == kernels[1])


def filled(method, key):
    """A state whose parameters are arbitrary, without compiling."""
    params, extra = tiny.filled(jax.eval_shape(method.init, key), seed=8)
    return TrainState(0, params, (), extra, 0, 0)


def test_a_classifier_as_it_is_has_no_scratch():
    given = tiny.evaluation("task=finetune", scratch=True, epochs=0.0)
    with pytest.raises(InputError, match=r"config\.scratch=True takes the parameters from"):
        finetune.check(
            types.SimpleNamespace(
                config=given, train=labelled(), val=labelled(), run=None
            )
        )  # fmt: skip


def labelled():
    return types.SimpleNamespace(unlabelled_because="", num_classes=3, class_names=("a", "b", "c"))


def test_a_page_names_no_masks_where_none_is_masked():
    given = {"mask": {"strategy": "dpp", "ratio": 0}}
    assert rows.masks({"checkpoint": {"config": given}}) == rows.NONE
