import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import expit, log_softmax, softmax

from dppmask_jax import optim, parallel
from dppmask_jax.data.images import augment, mixing
from dppmask_jax.evaluating import subjects
from dppmask_jax.methods import METHODS, supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.models.classifier import Classifier
from dppmask_jax.models.sizes import SIZES, Size
from dppmask_jax.models.vit_module import ViT
from dppmask_jax.runs.run import Run
from dppmask_jax.tasks.checks import check
from dppmask_jax.training.step import init_state, make_step

UNTRAINED = Plan(1, 1)
KEY = jax.random.key(7)
CLASSES, WIDTH, DEPTH = 5, 24, 2


@pytest.fixture(scope="module", autouse=True)
def fewer_blocks():
    """Half of the blocks and a quarter of the width: compiling is what takes time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "Pi", Size(WIDTH, DEPTH, 2))
        yield
    run_of.cache_clear()


@functools.cache
def run_of(name):
    config = tiny.config(name)
    method = METHODS[name].build(config, Plan(1, 1))
    return Run(config, *tiny.filled(jax.eval_shape(method.init, KEY), seed=3), step=1)


def config_of(task, name="mae", **changes):
    """A checked config on top of the tiny run, without anything random in the loss."""
    changes = {"data__source": "shapes", "batch_size": 8} | changes
    config = tiny.evaluation(f"task={task}", **changes)
    check(config)
    return subjects.completed(config, tiny.config(name))


def built(task, name="mae", several=False, plan=UNTRAINED, **changes):
    """(config, method, params, extra) with the run's encoder and an arbitrary head."""
    config = config_of(task, name, **changes)
    kind = config.get("train", task)
    build = {"finetune": supervised.finetune, "linear": supervised.linear}[kind]
    method = build(config, plan, num_outputs=CLASSES, several=several)
    params, extra = tiny.filled(jax.eval_shape(method.init, KEY), seed=4)
    return config, method, *method.with_encoder(params, extra, run_of(name).encoder)


def batch_of(size=8, several=False):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (size, CLASSES)) if several else rng.integers(0, CLASSES, size)
    return {
        "image": rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8),
        "label": label.astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
        "row": np.arange(size, dtype=np.int32),
        "bad": np.zeros(size, bool),
    }


def standardised(values):
    """A layer norm without scale and shift, in float64."""
    values = np.asarray(values, np.float64)
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-6)


def pooled(name, images, pool):
    """What the heads see, put together from the outputs of the pre-training run."""
    out = run_of(name).encode(images)
    if pool == "cls":
        return np.asarray(out["cls"], np.float64)
    return standardised(np.asarray(out["patches_prenorm"], np.float64).mean(axis=1))


def test_a_vit_b_classifier_has_as_many_parameters_as_counted_by_hand():
    classifier = Classifier(ViT(SIZES["B"], (224, 224), 16), num_outputs=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(classifier.init, KEY, images)["params"]
    block = 4 * 768 + (768 * 2304 + 2304) + (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768
    expected = (
        (16 * 16 * 3 * 768 + 768)  # patch embedding
        + 768  # class token
        + 197 * 768  # positions, which are trained
        + 12 * block
        + 2 * 768  # the layer norm after pooling, and no other
        + (768 * 1000 + 1000)
    )
    assert expected == 86_567_656
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", ["mae", "ibot"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_finetuning_starts_from_the_run(name, pool):
    _, _, params, _ = built("finetune", name, model__pool=pool)
    encoder, source = params["encoder"], run_of(name).encoder
    without = {"positions"} | ({"norm"} if pool == "mean" else set())
    for part in source.keys() - without:
        jax.tree.map(np.testing.assert_array_equal, encoder[part], source[part])
    assert set(encoder) == (source.keys() | {"positions"}) - (without - {"positions"})
    positions = np.asarray(encoder["positions"])
    if name == "ibot":
        np.testing.assert_array_equal(positions, source["positions"])
        return
    assert positions.shape == (1, 17, WIDTH) and not positions[0, 0].any()
    # Patch 6 of the 4 x 4 grid is in row 1 and column 2.
    frequencies = 10000.0 ** (-np.arange(6) / 6)
    expected = [np.sin(2 * frequencies), np.cos(2 * frequencies)]
    expected += [np.sin(frequencies), np.cos(frequencies)]
    np.testing.assert_allclose(positions[0, 1 + 6], np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize("task", ["finetune", "linear"])
@pytest.mark.parametrize("name,pool", [("mae", "mean"), ("mae", "cls"), ("ibot", "mean")])
def test_logits_are_the_head_on_what_the_run_encodes(task, name, pool):
    _, method, params, extra = built(task, name, model__pool=pool)
    images = batch_of()["image"]
    features = pooled(name, images, pool)
    if task == "linear":
        rng = np.random.default_rng(2)
        mean, variance = rng.normal(size=WIDTH), rng.uniform(0.5, 2, WIDTH)
        extra = {**extra, "mean": jnp.float32(mean), "variance": jnp.float32(variance)}
        features = (features - np.float32(mean)) / np.sqrt(np.float32(variance) + 1e-6)
    elif pool == "mean":
        norm = params["fc_norm"]
        features = features * np.float64(norm["scale"]) + norm["bias"]
    expected = features @ params["head"]["kernel"].astype(np.float64) + params["head"]["bias"]
    found = method.logits(params, extra, images)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@functools.cache
def finetune_loss(several=False, task="finetune", **changes):
    """(loss of a batch, config, params, batch, its logits without any randomness)"""
    config, method, params, extra = built(task, several=several, **changes)
    batch = batch_of(several=several)
    loss = method.turns[0].loss(params, extra, batch, KEY, 0)[0]
    logits = np.asarray(method.logits(params, extra, batch["image"]), np.float64)
    return float(loss), config, params, batch, logits


def test_smoothing_reaches_the_loss():
    for smoothing in (0.0, 0.3):
        loss, _, _, batch, logits = finetune_loss(loss__smoothing=smoothing)
        log = log_softmax(logits, axis=1)
        own = log[np.arange(8), batch["label"]]
        expected = -np.mean((1 - smoothing) * own + smoothing * log.mean(axis=1))
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_changes_images_and_targets_alike(kind):
    changes = {f"data__{kind}": 1.0, "loss__smoothing": 0.1}
    loss, config, params, batch, _ = finetune_loss(**changes)
    plain = finetune_loss(loss__smoothing=0.1)[0]
    alphas = {"mixup": 0.0, "cutmix": 0.0} | {kind: 1.0}
    on = np.eye(CLASSES)[batch["label"]] * 0.9 + 0.1 / CLASSES
    images, targets = mixing.mix(
        augment.normalize(batch["image"]), jnp.float32(on), jax.random.fold_in(KEY, 2**31), **alphas
    )
    model = Classifier(ViT(SIZES["Pi"], (16, 16), 4), CLASSES, config.model.pool)
    logits = np.asarray(model.apply({"params": params}, images), np.float64)
    expected = -np.mean(np.sum(np.asarray(targets) * log_softmax(logits, axis=1), axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert abs(loss - plain) > 0.01


@pytest.mark.parametrize("change", [{"data__erase_prob": 1.0}, {"model__drop_path": 0.5}])
def test_erasing_and_drop_path_reach_the_loss_but_not_the_scores(change):
    loss, _, _, _, logits = finetune_loss(**change)
    plain, _, _, _, same = finetune_loss()
    assert abs(loss - plain) > 1e-3
    np.testing.assert_array_equal(logits, same)


def elementwise(kind, logits, targets):
    """Losses of several labels an image, written out."""
    p = expit(logits)
    if kind == "bce":
        return -np.mean(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    q = np.maximum(p - 0.05, 0)  # gamma_neg 4, gamma_pos 0
    value = targets * np.log(p) + (1 - targets) * q**4 * np.log(1 - q)
    return -np.mean(value.sum(axis=1))


@pytest.mark.parametrize("kind", ["bce", "asl"])
def test_the_loss_of_several_labels_is_the_one_chosen(kind):
    loss, _, _, batch, logits = finetune_loss(several=True, task="multilabel", loss__kind=kind)
    np.testing.assert_allclose(loss, elementwise(kind, logits, batch["label"]), rtol=2e-4)


@pytest.mark.slow
def test_a_finetuning_step_moves_encoder_positions_and_head():
    _, method, params, extra = built("finetune", plan=Plan(1, 10, peak_lr=1e-2))
    state = init_state(method, KEY)._replace(params=params, extra=extra)
    before = jax.tree.map(np.array, params)
    state, metrics = make_step(method)(
        parallel.replicate(state), parallel.split_batch(batch_of()), KEY
    )
    after = parallel.to_host(state.params)
    # Adam's first step is the learning rate for each value that has a gradient, here
    # 0.75^(3 - layer) of it, and matrices shrink besides by that times 0.05.
    for layer, path in (
        (0, ("encoder", "positions")),
        (0, ("encoder", "cls_token")),
        (0, ("encoder", "patch_embed", "proj", "bias")),
        (1, ("encoder", "blocks", "block_0", "norm1", "bias")),
        (2, ("encoder", "blocks", "block_1", "mlp", "fc1", "bias")),
        (3, ("fc_norm", "bias")),
        (3, ("head", "bias")),
    ):
        new, old = (functools.reduce(lambda t, k: t[k], path, tree) for tree in (after, before))
        moved = np.median(np.abs(new - old))
        np.testing.assert_allclose(moved, 1e-2 * 0.75 ** (3 - layer), rtol=1e-2, err_msg=path)
    assert float(metrics["lr"]) == pytest.approx(1e-2)


def linear_loss_on(devices, method, params, extra, batch):
    """Loss and statistics of a batch that is spread over so many devices."""

    def of_one(part):
        loss, (_, aux) = method.turns[0].loss(params, extra, part, KEY, 0)
        return jax.lax.pmean((loss, aux), parallel.AXIS)

    split = jax.tree.map(lambda x: x.reshape((devices, -1, *x.shape[1:])), batch)
    out = jax.jit(jax.vmap(of_one, axis_name=parallel.AXIS))(split)
    return jax.tree.map(lambda x: np.asarray(x[0]), out)


@pytest.mark.slow
def test_the_probe_normalises_by_the_whole_batch():
    _, method, params, extra = built("linear")
    batch = batch_of()
    one, four = (linear_loss_on(n, method, params, extra, batch) for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, four)

    features = pooled("mae", batch["image"], "mean")
    mean, variance = features.mean(axis=0), features.var(axis=0)  # biased
    normal = (features - mean) / np.sqrt(variance + 1e-6)
    logits = normal @ params["head"]["kernel"].astype(np.float64) + params["head"]["bias"]
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(8), batch["label"]])
    np.testing.assert_allclose(four[0], expected, rtol=1e-3)

    _, extra = jax.jit(method.init)(KEY)
    assert not extra["mean"].any() and (extra["variance"] == 1).all()
    extra = method.after_step(params, extra, four[1], 0)
    np.testing.assert_allclose(extra["mean"], 0.1 * mean, rtol=1e-3, atol=1e-5)
    unbiased = features.var(axis=0, ddof=1)
    np.testing.assert_allclose(extra["variance"], 0.9 + 0.1 * unbiased, rtol=1e-3)
    again = method.after_step(params, extra, four[1], 1)
    np.testing.assert_allclose(again["mean"], 0.19 * mean, rtol=1e-3, atol=1e-5)


def test_a_lars_step_is_the_one_computed_by_hand():
    _, method, params, extra = built("linear", plan=Plan(1, 10, peak_lr=2.0))
    state = init_state(method, KEY)._replace(params=params, extra=extra)
    encoder = jax.tree.map(np.array, extra["encoder"])
    step = make_step(method)
    state = parallel.replicate(state)

    batch = batch_of()
    features = pooled("mae", batch["image"], "mean")
    normal = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-6)
    kernel, bias = (np.asarray(params["head"][n], np.float64) for n in ("kernel", "bias"))
    momentum = [0.0, 0.0]
    for number in range(2):
        state, _ = step(state, parallel.split_batch(batch), KEY)
        off = (softmax(normal @ kernel + bias, axis=1) - np.eye(CLASSES)[batch["label"]]) / 8
        of_kernel, of_bias = normal.T @ off, off.sum(axis=0)
        trust = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(of_kernel)
        momentum = [0.9 * momentum[0] + trust * of_kernel, 0.9 * momentum[1] + of_bias]
        rate = 2.0 * 0.5 * (1 + np.cos(np.pi * number / 10))
        old = kernel
        kernel, bias = kernel - rate * momentum[0], bias - rate * momentum[1]
        head = parallel.to_host(state.params)["head"]
        np.testing.assert_allclose(head["kernel"] - old, kernel - old, rtol=5e-3, atol=2e-5)
        np.testing.assert_allclose(head["bias"], bias, rtol=1e-3, atol=1e-4)
    assert set(parallel.to_host(state.params)) == {"head"}
    after = parallel.to_host(state.extra)["encoder"]
    jax.tree.map(np.testing.assert_array_equal, after, encoder)


def test_an_sgd_probe_takes_features_as_they_are():
    _, method, params, extra = built("linear", solver="sgd")
    assert set(extra) == {"encoder"}
    batch = batch_of()
    features = pooled("mae", batch["image"], "mean")
    logits = features @ params["head"]["kernel"].astype(np.float64) + params["head"]["bias"]
    expected = -np.mean(log_softmax(logits, axis=1)[np.arange(8), batch["label"]])
    value, (_, aux) = jax.jit(method.turns[0].loss)(params, extra, batch, KEY, 0)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(method.logits(params, extra, batch["image"]), logits, atol=1e-4)
    assert method.after_step(params, extra, aux, 0) == extra


def test_a_linear_probe_has_no_field_that_it_does_not_use():
    config = tiny.evaluation("task=linear")
    fields = set(config.data) | set(config.model) | set(config.optim)
    assert not fields & {"mixup", "cutmix", "erase_prob", "randaugment", "drop_path", "layer_decay"}
    multilabel = tiny.evaluation("task=multilabel,train=linear")
    check(multilabel)
    assert "mixup" not in multilabel.data


def test_layer_decay_counts_the_layers_of_a_real_classifier():
    _, method, params, _ = built("finetune")
    scales = optim.layer_scales(params, method.encoder.layer_of, depth=DEPTH, decay=0.5)
    assert scales["encoder"]["positions"] == scales["encoder"]["cls_token"] == 0.5**3
    assert scales["encoder"]["blocks"]["block_1"]["attn"]["qkv"]["kernel"] == 0.5
    assert set(jax.tree.leaves((scales["fc_norm"], scales["head"]))) == {1.0}
