"""The ResNet as an encoder: its contract, its running statistics, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax import config as configs
from dppmask_jax import config_dicts, evaluate, parallel
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.imagenet import MEAN, STD
from dppmask_jax.methods import frozen, supervised
from dppmask_jax.methods.base import Plan
from dppmask_jax.models import encoders, resnet_decoder
from dppmask_jax.models.base import STATISTICS
from dppmask_jax.models.resnet_module import SHAPES, Shape
from dppmask_jax.runs import checkpoint
from dppmask_jax.runs.run import load_encoder, load_run
from dppmask_jax.runs.workdir import to_json
from dppmask_jax.training.step import init_state, make_step

SIZE = (64, 96)
SOURCE = "shapes:size=64,train=32,val=8"


@pytest.fixture(scope="module", autouse=True)
def one_block_a_stage():
    """Compiling is what takes time where the depth does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "18", Shape((1, 1, 1, 1), False))
        patch.setitem(SHAPES, "50", Shape((1, 1, 1, 1), True))
        yield


def encoder_config(layers="18", size=SIZE):
    config = config_dicts.built(frozen.fields())
    config.model.encoder, config.model.resnet, config.model.resnet_width = "resnet", layers, 4
    with config.model.ignore_type():
        config.model.patch_size = 32
    config.image_size, config.model.dtype = size, "float32"
    config.model.options, config.data.source = {}, SOURCE
    return config


def images(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def filled(init, seed):
    """Arbitrary variables, without compiling: variances are above 0."""
    found = tiny.filled(jax.eval_shape(init, jax.random.key(0)), seed)

    def positive(path, leaf):
        return np.abs(leaf) + np.float32(0.5) if str(path[-1].key) == "var" else leaf

    return jax.tree_util.tree_map_with_path(positive, found)


@pytest.fixture(scope="module")
def built():
    encoder = encoders.build(encoder_config())
    return encoder, filled(encoder.init, 0)


def test_the_published_sizes_have_their_parameters():
    """11,176,512 and 23,508,032: torchvision's ResNet-18 and -50 without their last layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "18", Shape((2, 2, 2, 2), False))
        patch.setitem(SHAPES, "50", Shape((3, 4, 6, 3), True))
        for layers, of_encoder, of_both in (
            ("18", 11_176_512, 22_357_248),
            ("50", 23_508_032, 47_016_064),
        ):
            config = encoder_config(layers, (64, 64))
            config.model.resnet_width = 64
            net = resnet_decoder.autoencoder(config)
            params, _ = jax.eval_shape(net.init, jax.random.key(0))
            count = functools.partial(sum, (leaf.size for leaf in jax.tree.leaves(params)))
            assert count() == of_both
            leaves = jax.tree.leaves(params["encoder"])
            assert sum(leaf.size for leaf in leaves) == of_encoder


def test_tokens_are_the_positions_of_the_final_map(built):
    encoder, params = built
    assert (encoder.width, encoder.depth, encoder.grid) == (32, 4, (2, 3))
    assert encoder.embed is encoder.blocks is encoder.attended is encoder.trace is None
    given = augment.normalize(images(2))
    tokens = jax.jit(encoder.encode)(params, given)
    assert tokens.patches.shape == tokens.prenorm.shape == (2, 6, 32)
    np.testing.assert_allclose(tokens.cls, np.mean(tokens.patches, axis=1), rtol=1e-5)


def test_every_parameter_has_a_layer(built):
    encoder, params = built
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    layers = {encoder.layer_of(tuple(str(key.key) for key in path)) for path, _ in flat}
    assert layers == {0, 1, 2, 3, 4}
    assert encoder.layer_of(("block_2", "conv1", "kernel")) == 3
    assert encoder.layer_of((STATISTICS, "stem_norm", "mean")) == 0
    for path in (("block_4", "conv1"), ("head",)):
        with pytest.raises(ValueError, match="no layer is known"):
            encoder.layer_of(path)


def test_running_statistics_get_no_gradient_and_a_scale_does(built):
    encoder, params = built
    given = augment.normalize(images(2))

    def loss(statistics, scale):
        last = params["block_3"] | {"shortcut_norm": params["block_3"]["shortcut_norm"] | scale}
        given_params = params | {STATISTICS: statistics, "block_3": last}
        return jnp.sum(jnp.square(encoder.encode(given_params, given).patches))

    trained = {"scale": params["block_3"]["shortcut_norm"]["scale"]}
    of_statistics, of_scale = jax.jit(jax.grad(loss, (0, 1)))(params[STATISTICS], trained)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_statistics))
    assert np.any(of_scale["scale"])
    with pytest.raises(ValueError, match="no tokens that could give way"):
        encoder.encode(params, given, mask=jnp.zeros((2, 6), bool))


# The statistics of a batch.


def over_devices(fn, devices, *batches):
    """`fn` of a batch that is split over so many devices, which a vmap stands for."""
    split = [batch.reshape(devices, -1, *batch.shape[1:]) for batch in batches]
    return jax.jit(jax.vmap(fn, axis_name=parallel.AXIS))(*split)


def stem_of(params, raw):
    """(mean, variance) of the first convolution by hand, in float64: 7x7, stride 2, three zeros
    around."""
    kernel = np.asarray(params["stem_conv"]["kernel"], np.float64)
    padded = np.pad(raw / 255.0, ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))[:, ::2, ::2]
    convolved = np.einsum("bhwcyx,yxcd->bhwd", windows, kernel)
    return convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))


def test_running_statistics_follow_the_whole_batch(built):
    encoder, params = built
    kept = {"params": {k: v for k, v in params.items() if k != STATISTICS}}
    variables, raw = {**kept, STATISTICS: params[STATISTICS]}, images(4)

    def train(images):
        return encoder.module.apply(variables, images, mutable=[STATISTICS])[1][STATISTICS]

    followed = over_devices(train, 2, augment.normalize(raw))
    assert all(np.array_equal(*leaf) for leaf in jax.tree.leaves(followed))
    before, after = params[STATISTICS]["stem_norm"], followed["stem_norm"]
    mean, var = stem_of(params, raw)
    np.testing.assert_allclose(after["mean"][0], 0.9 * before["mean"] + 0.1 * mean, atol=1e-5)
    np.testing.assert_allclose(after["var"][0], 0.9 * before["var"] + 0.1 * var, atol=1e-5)


@pytest.mark.slow
def test_the_autoencoder_is_the_same_for_one_device_and_two():
    net = resnet_decoder.autoencoder(encoder_config("50", (64, 64)))
    params, statistics = jax.jit(net.init)(jax.random.key(1))
    assert all(np.all(leaf == 0) or np.all(leaf == 1) for leaf in jax.tree.leaves(statistics))
    given, train = augment.normalize(images(4, (64, 64))), functools.partial(net.train, params)
    (one, followed), (two, also) = (
        over_devices(functools.partial(train, statistics), n, given) for n in (1, 2)
    )
    assert one.shape == (1, 4, 64, 64, 3)
    np.testing.assert_allclose(two.reshape(one.shape), one, atol=2e-4)
    for n in (0, 1):
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b[0], rtol=1e-4, atol=1e-5),
            also,
            followed,
        )


def test_the_autoencoder_hands_its_encoder_on():
    net = resnet_decoder.autoencoder(encoder_config(size=(32, 32)))
    params, statistics = filled(net.init, 1)
    other = filled(net.encoder.init, 2)
    given = net.with_encoder(params, statistics, other)
    jax.tree.map(np.testing.assert_array_equal, net.encoder_of(*given), other)
    np.testing.assert_array_equal(
        given[0]["decoder"]["conv"]["kernel"], params["decoder"]["conv"]["kernel"]
    )
    pixels = jax.jit(net.reconstruct)(*given, augment.normalize(images(1, (32, 32))))
    assert pixels.shape == (1, 32, 32, 3) and pixels.min() >= 0 and pixels.max() <= 1


# A classifier.


def finetune_config(**changes):
    config = tiny.evaluation(
        "task=finetune",
        **{"batch_size": 8, "epochs": 1, "seeds": (0,), "data__workers": 0, "data__mixup": 0.0}
        | {"data__cutmix": 0.0, "data__randaugment": 0.0, "data__erase_prob": 0.0}
        | {"model__drop_path": 0.0, "model__pool": "cls", "optim__warmup_epochs": 0.0}
        | changes,
    )
    with config.unlocked():
        config.image_size = (64, 64)
        encoders.copy_shape(config.model, encoder_config().model)
        config.model.options, config.model.dtype = {}, "float32"
    return config


@pytest.mark.slow
def test_a_classifier_trains_alike_on_any_number_of_devices():
    config = finetune_config(model__drop_path=0.5)
    plan = Plan(4, 4, 0, 0, 1e-3)
    method = supervised.finetune(config, plan, num_outputs=3, several=False)
    batch = {
        "image": images(8, (64, 64)),
        "label": np.arange(8, dtype=np.int32) % 3,
        "index": np.arange(8, dtype=np.int32),
        "bad": np.zeros(8, bool),
    }
    states = []
    for devices in (1, 4):
        state = init_state(method, jax.random.key(0))
        step = make_step(method, devices=jax.devices()[:devices])
        split = {k: v.reshape(devices, -1, *v.shape[1:]) for k, v in batch.items()}
        for _ in range(2):
            state, metrics = step(state, split, jax.random.key(1))
        states.append(jax.device_get((state.params, state.extra, metrics["loss"])))
    flat = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    for (path, one), (_, several) in zip(*flat, strict=True):
        np.testing.assert_allclose(several, one, rtol=2e-3, atol=2e-4, err_msg=str(path))
    params, extra, _ = states[0]
    assert np.any(extra[STATISTICS]["encoder"]["stem_norm"]["mean"])
    encoder = method.encoder_of(params, extra)
    wanted = jax.eval_shape(method.encoder.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, encoder) == jax.tree.map(jnp.shape, wanted)
    logits = jax.eval_shape(method.logits, params, extra, batch["image"])
    assert logits.shape == (8, 3)


# A run.


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run that is a ResNet alone, its statistics far from where they start."""
    folder, config = tmp_path_factory.mktemp("runs") / "resnet", encoder_config(size=(64, 64))
    params = filled(encoders.build(config).init, 3)
    checkpoints = checkpoint.Checkpoints(folder / checkpoint.FOLDER)
    state = {"params": {"encoder": params}, "extra": {}}
    checkpoints.save(1, state, {"config": to_json(config), "history": ()})
    checkpoints.close()
    return folder


def test_a_run_encodes_by_its_running_statistics(run_folder):
    encode, given = load_encoder(run_folder), images(2, (64, 64))
    assert (encode.grid, encode.width) == ((2, 2), 32)
    found = encode(given)["cls"]
    encoder = encoders.build(encoder_config(size=(64, 64)))
    params, normal = filled(encoder.init, 3), jnp.asarray((given / 255.0 - MEAN) / STD, jnp.float32)
    by_hand = jax.jit(encoder.encode)
    np.testing.assert_allclose(found, by_hand(params, normal).cls, rtol=1e-4, atol=1e-4)
    others = params | {STATISTICS: jax.tree.map(lambda leaf: leaf + 0.1, params[STATISTICS])}
    assert np.abs(by_hand(others, normal).cls - found).max() > 1e-3
    with pytest.raises(InputError, match=r"\(64, 80\) is no multiple of the patches of 32 pixels"):
        load_encoder(run_folder, image_size=(64, 80))


@pytest.mark.slow
def test_a_run_is_evaluated_and_fine_tuned(run_folder, capsys):
    short = {"data__workers": 0, "batch_size": 8}
    for argument, changes in (
        ("task=knn", {"k": (5,), "batch_size": 8}),
        ("task=linear", {"epochs": 1, "optim__warmup_epochs": 0.0} | short),
        ("task=linear,solver=ridge", {"batch_size": 8}),
    ):
        name = argument.removesuffix(",solver=ridge")
        config = tiny.evaluation(name, **changes)
        if name != argument:
            config.solver = "ridge"
        assert json.loads(evaluate.evaluate(config, run_folder).read_text())["metrics"]
    assert "resnet 18 of width 4/32" in capsys.readouterr().out
    changes = {"data__mixup": 0.0, "data__cutmix": 0.0, "optim__warmup_epochs": 0.0}
    config = tiny.evaluation("task=finetune", epochs=1, seeds=(0,), **short, **changes)
    evaluate.evaluate(config, run_folder)
    classifier = load_run(run_folder / "eval_finetune" / "seed-0")
    before = load_run(run_folder).encoder[STATISTICS]["stem_norm"]["mean"]
    after = classifier.encoder[STATISTICS]["stem_norm"]["mean"]
    assert 0 < np.abs(after - before).max() < 1
    assert "norm" not in classifier.encoder


# Bad input.


def test_what_a_resnet_cannot_do_is_said_in_one_line():
    right = {"model__encoder": "resnet", "model__patch_size": 32, "image_size": (64, 64)}
    for method, changes, words in (
        ("mae", {}, r"MAE encodes visible patches alone, which config\.model\.encoder='resnet' ca"),
        ("ibot", {"data__local_size": (32, 32)}, r"iBOT puts a token in the place of hidden pa"),
        ("mae", {"model__patch_size": 16}, r"patch_size=16: positions of a ResNet's final map"),
        ("mae", {"model__patch_size": (32, 16)}, r"patch_size=32x16: positions of a ResNet's"),
        ("mae", {"image_size": (64, 80)}, r"config\.image_size, config\.model\.patch_size: "),
        ("mae", {"model__resnet": "20"}, r"config\.model\.resnet='20' is not allowed: 18 \| 34"),
        ("mae", {"model__resnet_width": 0}, r"config\.model\.resnet_width=0 is not allowed"),
    ):
        config = tiny.config(method)
        for name, value in (right | changes).items():
            *path, leaf = name.split("__")
            node = functools.reduce(lambda node, part: node[part], path, config)
            with node.ignore_type():
                node[leaf] = value
        with pytest.raises(InputError, match=words) as error:
            configs.check(config)
        assert "\n" not in str(error.value)
