"""A method of somebody else's that can do next to nothing: it lacks the rest everywhere, and
nothing crashes."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import pytest
import templates
import tiny

from dppmask_jax import config as configs
from dppmask_jax import evaluate, pretrain
from dppmask_jax.errors import InputError
from dppmask_jax.evals import probe
from dppmask_jax.figures import __main__ as figures
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan
from dppmask_jax.runs import metrics
from dppmask_jax.runs.run import load_encoder, load_run, open_data
from dppmask_jax.weights.exporting import export_weights

# What a file of its own would hold: the mean colour of an image, told by two numbers a channel.
FILE = """
import functools

import jax.numpy as jnp
import optax

from dppmask_jax import optim
from dppmask_jax.data.images import augment, crops
from dppmask_jax.errors import InputError
from dppmask_jax.fields import Field, number
from dppmask_jax.methods.base import Method, MethodKind, Turn
from dppmask_jax.models import vit

FIELDS = {
    "image_size": vit.FIELDS["image_size"],
    "data.crop_scale": crops.FIELDS["data.crop_scale"],
    "loss.weight": Field(1.0, number(0), "weight of the loss"),
    "optim.rate": Field(0.1, number(0), "learning rate, the same at every step"),
}


def build(config, plan):
    def loss(params, extra, batch, key, step):
        images = augment.normalize(batch["image"])
        error = jnp.mean((images * params["scale"] + params["shift"] - jnp.mean(images)) ** 2)
        return config.loss.weight * error, ({"error": error}, {})

    return Method(
        example=functools.partial(
            crops.single_view,
            image_size=tuple(config.image_size),
            scale=tuple(config.data.crop_scale),
        ),
        init=lambda key: ({"scale": jnp.ones(3), "shift": jnp.zeros(3)}, {}),
        turns=(Turn(loss, optim.Optimizer(optax.sgd(1.0), lambda step: config.optim.rate)),),
        after_step=lambda params, extra, aux, step: extra,
        describe=(("colour", "three channels"),),
    )


def check(config):
    if config.loss.weight > 9:
        raise InputError(f"config.loss.weight={config.loss.weight} is heavier than 9")


KIND = MethodKind(build, "Mean colour", FIELDS, check, encoder=None, masks=False)
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The method "colour" among the others."""
    with templates.among(METHODS, tmp_path_factory, "colour", FILE) as module:
        yield module


def config_of_mine(**changes):
    config = configs.defaults("colour")
    fields = {
        "data.source": "shapes:size=16,train=24,val=8", "image_size": (16, 16), "batch_size": 8,
        "epochs": 1.0, "log_every": 1,
        "evaluate.every_epochs": 1.0, "evaluate.loss_images": 8, "evaluate.figure_images": 2,
    } | changes  # fmt: skip
    for name, value in fields.items():
        *path, leaf = name.split(".")
        functools.reduce(lambda node, part: node[part], path, config)[leaf] = value
    return config


@pytest.fixture(scope="module")
def trained(mine, tmp_path_factory):
    """(workdir, what was printed) of three steps."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("colour")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pretrain.train(config_of_mine(), folder)
    return folder, said.getvalue()


def test_it_has_the_fields_of_all_methods_and_its_own_and_no_masks(mine):
    config = config_of_mine()
    assert config.loss.weight == 1.0 and "mask" not in config and "model" not in config
    configs.check(config)
    for changes, words in (
        ({"loss.weight": -1.0}, "config.loss.weight=-1.0"),
        ({"loss.weight": 10.0}, "heavier than 9"),
    ):
        with pytest.raises(InputError, match=words):
            configs.check(config_of_mine(**changes))


def test_it_trains_is_measured_and_says_what_it_is(trained):
    folder, said = trained
    records = metrics.read_metrics(folder / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    validated = [record["val_loss"] for record in records if "val_loss" in record]
    assert len(losses) == 3 and len(validated) == 2 and validated[1] < validated[0]
    assert not any("knn" in record for record in records)
    assert "colour      three channels\n" in said and "\nmasks" not in said
    assert "no k-NN probe: colour trains no encoder" in said and "6 parameters" in said
    assert (
        "\nrate" not in said
        and "mask=" not in said
        and "dppmask eval" not in said
        and "figures --workdir" not in said
    )
    assert [path.name for path in (folder / "figures").iterdir()] == ["curves.png"]
    assert json.loads((folder / "config.json").read_text())["method"] == "colour"


def test_a_finished_run_of_it_says_so_and_has_curves_alone(trained, capsys, tmp_path):
    folder, _ = trained
    figures.main([f"--workdir={folder}", f"--out={tmp_path}"])
    assert "masks nothing" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    pretrain.train(config_of_mine(), folder)
    assert "finished at step 3" in capsys.readouterr().out


def test_what_it_cannot_do_is_said_in_one_line(trained, tmp_path):
    folder, _ = trained
    run = load_run(folder)
    from_it = tiny.config("mae", init_from=str(folder))
    as_encoder = config_of_mine(init_from=str(folder))
    file = str(tmp_path / "file.safetensors")
    assert run.name == "a Mean colour" and not run.has_masks and not run.can_reconstruct
    images = run.example_images(1)
    for call, words in (
        (lambda: run.encode(images), "trains no encoder"),
        (lambda: run.features(images), "shows no features"),
        (lambda: run.masks(images, jax.random.split(jax.random.key(0), 1)), "masks nothing"),
        (lambda: run.reconstruct(images, jnp.arange(16)[None]), "reconstructs nothing"),
        (lambda: run.attention(images), "has no attention to show"),
        (lambda: load_encoder(folder), "trains no encoder"),
        (lambda: evaluate.evaluate(tiny.evaluation("task=knn"), folder), "trains no encoder"),
        (lambda: export_weights(folder, file, "mae"), "there is no format for it"),
        (lambda: pretrain.train(from_it, tmp_path / "mae"), "trains no encoder"),
        (lambda: pretrain.train(as_encoder, tmp_path / "new"), "starts from no encoder"),
    ):
        with pytest.raises(InputError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_the_validation_loss_of_several_views_is_the_same_at_every_call():
    config = tiny.config("ibot", evaluate__loss_images=16)
    train, val = open_data(config)
    plan = Plan(12, 24)
    method, steps = METHODS["ibot"].build(config, plan), []

    def loss(params, extra, batch, key, step):
        steps.append(step)
        assert batch["global_views"].shape[1:] == (2, 16, 16, 3)
        value = jnp.mean(batch["local_views"] / 255.0) + jax.random.uniform(key)
        return params["w"] * value + extra["teacher"], ({}, {})

    turn = method.turns[0]._replace(loss=loss)
    probed = probe.Probed(config, plan, train, val, True)
    measure = probe.validation_loss(
        probed, method._replace(turns=(turn,)), jax.random.key(1), print
    )
    of = {
        (w, teacher): measure(
            types.SimpleNamespace(params={"w": jnp.float32(w)}, extra={"teacher": teacher})
        )
        for w in (1, 2)
        for teacher in (0, 5)
    }
    assert of[1, 0] > 0 and of[2, 0] == pytest.approx(2 * of[1, 0], rel=1e-6)
    assert of[1, 5] == pytest.approx(of[1, 0] + 5, rel=1e-6)
    assert set(steps) == {23}  # where schedules end
