"""A new mask, target or encoder is one file and one line: config check, steps, figures, evaluation
and results take it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import templates
import tiny

from dppmask_jax import config as configs
from dppmask_jax import evaluate, patches, pretrain
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.figures import __main__ as figures
from dppmask_jax.masking import MASKERS
from dppmask_jax.models.encoders import ENCODERS
from dppmask_jax.results.page import page
from dppmask_jax.results.records import load
from dppmask_jax.runs import metrics
from dppmask_jax.runs.run import load_encoder, load_run
from dppmask_jax.targets import TARGETS
from dppmask_jax.weights.exporting import export_weights

MASK = '''
"""Columns of patches are hidden, one of so many first."""

import jax
import jax.numpy as jnp

from dppmask_jax.fields import Field, whole
from dppmask_jax.masking.base import Masker, MaskerKind, mask_from, per_image


def build(mask):
    def draw(keys, count, seen, most):
        rows, columns = seen.grid
        later = jnp.tile(jnp.arange(columns) % mask.period == 0, rows)

        def of_one(key, count):
            order = jnp.argsort(later + 0.5 * jax.random.uniform(key, later.shape))
            return mask_from(order.astype(jnp.int32), count)

        masks = per_image(of_one, keys, count)
        return masks, {"striped": jnp.sum(masks.mask & later, axis=1) / jnp.sum(later)}

    return Masker(draw, frozenset(), f"stripes (every {mask.period})")


KIND = MaskerKind(build, {"mask.period": Field(2, whole(2, 4), "columns from one to the next")})
'''
TARGET = '''
"""The mean colour of a patch."""

import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.data.images import augment
from dppmask_jax.fields import Field, number
from dppmask_jax.targets.base import Target, TargetKind, masked_square_error


def build(config):
    size, gain = config.model.patch_size, config.loss.gain

    def of(images):
        cut = patches.patchify(augment.normalize(images), size)
        return gain * jnp.mean(cut.reshape(*cut.shape[:2], -1, 3), axis=2)

    def pixels(pred, images, known=None):
        shown = augment.denormalize(pred[:, :, None] / gain)
        return jnp.tile(shown, (1, 1, size**2, 1)).reshape(*pred.shape[:2], -1)

    return Target(3, of, masked_square_error, pixels)


KIND = TargetKind(build, {"loss.gain": Field(1.0, number(0.5, 2), "of the colour")})
'''
ENCODER = '''
"""A convolution over the embeddings of patches; their mean stands for the class token."""

import flax.linen as nn
import jax.numpy as jnp

from dppmask_jax import patches
from dppmask_jax.fields import Field, whole
from dppmask_jax.models.base import Encoder, EncoderKind, Tokens

FIELDS = {"model.channels": Field(8, whole(1, 64), "of the convolution", fixed=True)}


class Convolved(nn.Module):
    channels: int
    patch_size: int
    prefix = 1

    def setup(self):
        size = (self.patch_size, self.patch_size)
        self.patches = nn.Conv(self.channels, size, size)
        self.mix = nn.Conv(self.channels, (3, 3))
        self.norm = nn.LayerNorm()

    def __call__(self, images, keys=None, **masked):
        prenorm = self.prenorm(images, keys, **masked)
        return self.norm(prenorm), prenorm

    def prenorm(self, images, keys=None, *, mask=None, mask_token=None):
        x = self.patches(images)
        if mask is not None:
            x = jnp.where(mask.reshape(*x.shape[:3], 1), mask_token, x)
        x = x + nn.gelu(self.mix(x))
        tokens = x.reshape(len(x), -1, self.channels)
        return jnp.concatenate([jnp.mean(tokens, axis=1, keepdims=True), tokens], axis=1)


def build(config, **options):
    image_size, model = tuple(config.image_size), config.model
    module = Convolved(model.channels, model.patch_size)

    def encode(params, images, keys=None, mask=None, mask_token=None):
        latent, prenorm = module.apply(
            {"params": params}, images, keys, mask=mask, mask_token=mask_token
        )
        return Tokens(latent[:, 0], latent[:, 1:], prenorm)

    return Encoder(
        module,
        init=lambda key: module.init(key, jnp.zeros((1, *image_size, 3)))["params"],
        encode=encode,
        width=model.channels,
        depth=1,
        grid=patches.grid_shape(image_size, model.patch_size),
        layer_of=lambda path: {"patches": 0, "mix": 1, "norm": 2}[path[0]],
    )


KIND = EncoderKind(build, FIELDS, size=lambda model: str(model["channels"]))
'''
QUICK = {
    "data__source": "shapes:size=16,train=24,val=8", "evaluate__every_epochs": 1.0,
    "evaluate__knn_images": 0, "optim__warmup_epochs": 0.0, "checkpoint__every": 100,
}  # fmt: skip


def assert_checked(config, name, wrong):
    """A config is allowed, and refused in one line with another value of a field."""
    configs.check(config)
    group, leaf = name.split(".")
    config[group][leaf] = wrong
    with pytest.raises(InputError, match=rf"config\.{name}={wrong!r} is not allowed") as error:
        configs.check(config)
    assert "\n" not in str(error.value)


def losses(folder):
    return [
        record["loss"]
        for record in metrics.read_metrics(folder / "metrics.jsonl")
        if "loss" in record
    ]


def shown(folder, config):
    """The results page of an evaluation of a run."""
    path = evaluate.evaluate(config, folder, command="typed")
    return page([load(path)], False)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    with templates.among(MASKERS, tmp_path_factory, "stripes", MASK) as module:
        yield module


@pytest.fixture(scope="module")
def mean_colour(tmp_path_factory):
    with templates.among(TARGETS, tmp_path_factory, "mean_colour", TARGET) as module:
        yield module


@pytest.fixture(scope="module")
def convolved(tmp_path_factory):
    with templates.among(ENCODERS, tmp_path_factory, "convolved", ENCODER) as module:
        yield module


# A mask and a target, in one run.


def mae_config(**changes):
    return tiny.config("mae", **QUICK | {"model__depth": 1, "evaluate__loss_images": 0} | changes)


@pytest.fixture(scope="module")
def mae_run(stripes, mean_colour, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    pretrain.train(mae_config(mask__strategy="stripes", loss__target="mean_colour"), folder)
    return folder


def test_the_config_has_the_fields_of_a_new_mask(stripes):
    config = mae_config(mask__strategy="stripes", mask__period=3)
    assert mae_config().mask.period == 2 and "stripes" in str(config.mask.defined_in)
    assert_checked(config, "mask.period", 5)


def test_the_config_has_the_fields_of_a_new_target(mean_colour):
    assert mae_config().loss.gain == 1.0
    assert_checked(mae_config(loss__target="mean_colour"), "loss.gain", 3.0)


def test_a_new_mask_hides_what_is_trained_on(mae_run, capsys, tmp_path):
    run = load_run(mae_run)
    mask, found = run.masks(run.example_images(4), jax.random.split(jax.random.key(0), 4))
    hidden = np.asarray(mask.mask).reshape(-1, 4, 4)
    assert hidden[:, :, ::2].all() and (hidden.sum((1, 2)) == 12).all()
    assert np.all(np.asarray(found["striped"]) == 1)
    records = metrics.read_metrics(mae_run / "metrics.jsonl")
    assert [record["striped"] for record in records if "loss" in record] == [1.0] * 3
    figures.main([f"--workdir={mae_run}", f"--out={tmp_path}"])
    names = {"masks.png", "attention.png", "curves.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    words = shown(mae_run, tiny.evaluation("task=knn", k=(5,)))
    assert "| stripes (every 2), 75 % masked |" in words


def test_a_new_target_is_what_is_predicted(mae_run, mean_colour, capsys):
    run = load_run(mae_run)
    assert run.params["decoder"]["pred"]["kernel"].shape[1] == 3
    assert len(losses(mae_run)) == 3 and np.isfinite(losses(mae_run)).all()
    images = run.example_images(2)
    order = jnp.tile(jnp.arange(16), (2, 1))
    painted = patches.patchify(run.reconstruct(images, order), 4)[:, 4:].reshape(2, 12, 16, 3)
    assert np.ptp(np.asarray(painted), axis=2).max() < 1e-5
    target = mean_colour.build(run.config)
    known = target.pixels(target.of(images), images).reshape(2, 16, 16, 3)
    pixels = patches.patchify(augment.denormalize(augment.normalize(images)), 4)
    means = pixels.reshape(2, 16, 16, 3).mean(2, keepdims=True)
    np.testing.assert_allclose(known, jnp.broadcast_to(means, known.shape), atol=1e-5)
    pretrain.train(run.config, mae_run)
    assert "finished at step 3" in capsys.readouterr().out


# An encoder.


def simmim_config(**changes):
    config = configs.defaults("simmim")
    given = {name.replace(".", "__"): value for name, value in tiny.COMMON.items()} | QUICK
    given |= {"model__encoder": "convolved", "mask__strategy": "block"}
    for name, value in (given | {"evaluate__knn_images": 24} | changes).items():
        *path, leaf = name.split("__")
        functools.reduce(lambda node, part: node[part], path, config)[leaf] = value
    return config


@pytest.fixture(scope="module")
def simmim_run(convolved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simmim")
    pretrain.train(simmim_config(model__channels=12), folder)
    return folder


def test_the_config_has_the_fields_of_a_new_encoder(convolved):
    assert tiny.config("ibot").model.channels == 8 and tiny.config("mae").model.encoder == "vit"
    assert_checked(simmim_config(), "model.channels", 65)
    assert_checked(simmim_config(), "model.encoder", "convoluted")


def test_what_a_new_encoder_lacks_is_said_in_one_line(convolved):
    for config, words in (
        (
            mae_config(model__encoder="convolved"),
            r"MAE encodes visible patches alone, which config\.model\.encoder='convolved' cannot",
        ),
        (
            tiny.config("ibot", model__encoder="convolved", mask__strategy="attention"),
            r"config\.model\.encoder='convolved' shows no attention: config\.mask\.strategy='att",
        ),
        (
            simmim_config(mask__strategy="dpp"),
            r"config\.model\.encoder='convolved' shows no features: config\.mask\.strategy='dpp'",
        ),
    ):
        with pytest.raises(InputError, match=words) as error:
            configs.check(config)
        assert "\n" not in str(error.value)
    configs.check(tiny.config("ibot", model__encoder="convolved", mask__strategy="dpp"))
    configs.check(simmim_config(mask__strategy="dpp", mask__features="pixels"))


@pytest.mark.slow
def test_a_new_encoder_trains_and_is_drawn(simmim_run, tmp_path):
    run = load_run(simmim_run)
    assert run.encoder["mix"]["kernel"].shape == (3, 3, 12, 12)
    assert len(losses(simmim_run)) == 3 and np.isfinite(losses(simmim_run)).all()
    assert [r for r in metrics.read_metrics(simmim_run / "metrics.jsonl") if "knn" in r]
    assert not run.has_attention and "attention" not in run.gives
    figures.main([f"--workdir={simmim_run}", f"--out={tmp_path}"])
    assert {path.name for path in tmp_path.iterdir()} == {"masks.png", "curves.png"}


@pytest.mark.slow
def test_a_new_encoder_is_evaluated_and_loaded_and_not_exported(simmim_run, capsys, tmp_path):
    words = shown(simmim_run, tiny.evaluation("task=knn", k=(5,)))
    assert "SimMIM convolved 12/4, 16×16" in words
    assert "simmim convolved 12/4" in capsys.readouterr().out
    assert "no positions to resize" in load_run(simmim_run, image_size=(8, 16)).resized
    encode = load_encoder(simmim_run, image_size=(8, 16))
    assert encode(np.zeros((1, 8, 16, 3), np.uint8))["patches"].shape == (1, 8, 12)
    with pytest.raises(InputError, match="has an encoder 'convolved', and the formats are"):
        export_weights(simmim_run, tmp_path / "file.safetensors", "mae")


@pytest.mark.slow
def test_a_run_with_an_encoder_that_is_not_known_says_so(simmim_run, monkeypatch):
    monkeypatch.delitem(ENCODERS, "convolved")
    with pytest.raises(InputError, match=r"encoder='convolved' is not known here: vit"):
        load_run(simmim_run)


@pytest.mark.slow
def test_a_new_encoder_is_fine_tuned(simmim_run):
    config = tiny.evaluation(
        "task=finetune", epochs=1, seeds=(0,), batch_size=8, data__workers=0,
        optim__warmup_epochs=0.0, data__mixup=0.0, data__cutmix=0.0,
    )  # fmt: skip
    path = evaluate.evaluate(config, simmim_run)
    assert json.loads(path.read_text())["config"]["model"]["channels"] == 12
    classifier = load_run(simmim_run / "eval_finetune" / "seed-0")
    assert classifier.encoder["mix"]["kernel"].shape == (3, 3, 12, 12)
