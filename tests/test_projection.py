"""A projection of patch tokens: attached to one encoder, and tasks without and with it."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

import dppmask_jax
from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.methods import supervised
from dppmask_jax.models import encoders
from dppmask_jax.runs import checkpoint, projection
from dppmask_jax.runs.run import load_run
from dppmask_jax.tasks import TASKS, checks

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def workdir(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("projected") / "run")


def fitted(path, run, matrix, layer=None):
    layer = run.method.encoder.depth if layer is None else layer
    projection.write(path, arrays={"projector": matrix}, layer=layer, run=run)
    return path


def half_space(width):
    """A projector that leaves out one direction, which is along no axis."""
    direction = np.linspace(1, 2, width)
    direction /= np.linalg.norm(direction)
    return (np.eye(width) - np.outer(direction, direction)).astype(np.float32), direction


@pytest.fixture(scope="module")
def file(workdir):
    run = load_run(workdir)
    matrix, _ = half_space(run.method.encoder.width)
    return fitted(workdir.parent / "soap.safetensors", run, matrix)


def test_patch_tokens_alone_are_projected(workdir, file):
    plain, run = load_run(workdir), load_run(workdir, projection=file)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    before, after = plain.encode(images), run.encode(images)
    matrix, direction = half_space(run.method.encoder.width)
    np.testing.assert_allclose(after["patches"], before["patches"] @ matrix, atol=1e-5)
    assert np.abs(before["patches"] @ direction).max() > 0.1
    assert np.abs(after["patches"] @ direction).max() < 1e-5
    for name in ("cls", "patches_prenorm"):
        np.testing.assert_array_equal(after[name], before[name])
    encoder = dppmask_jax.load_encoder(workdir, projection=file)
    np.testing.assert_array_equal(encoder(images)["patches"], after["patches"])
    assert run.at_size((32, 32)).method.encoder.projection is not None

    # What is pooled before the norm is projected behind the norm's scale and shift.
    pooled, found = (
        jax.jit(supervised.encoder_features(of.method.encoder))(of.encoder, images)["mean"]
        for of in (plain, run)
    )
    norm = plain.encoder["norm"]
    expected = (pooled * norm["scale"] + norm["bias"]) @ matrix
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_way_of_encoding_is_projected():
    def tokens(*inputs, **options):
        return encoders.Tokens(1, np.ones((1, 2, 2)), 3)

    encoder = constant(tokens)
    out = encoders.projected(encoder, np.array([[0.0, 1], [0, 0]]))
    for found in (out.encode(0, 0), out.blocks(0, 0), out.attended(0, 0)[0]):
        assert found.patches.tolist() == [[[0, 1], [0, 1]]] and found[::2] == (1, 3)
    assert encoders.projected(encoder._replace(trace=None), np.eye(2)).trace is None


def constant(tokens):
    return encoders.Encoder(
        None, None, tokens, 2, 1, (1, 2), None, blocks=tokens,
        attended=lambda *inputs: (tokens(), 0), trace=lambda *inputs: None,
    )  # fmt: skip


def test_tasks_run_without_and_with(workdir, file, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "mine")
    config = tiny.evaluation("task=knn", k=(5,), projection=str(file))
    path = evaluate.evaluate(config, run)
    plain = json.loads(path.read_text())
    projected = json.loads((run / "eval_knn_projected.json").read_text())
    assert path.name == "eval_knn.json" and plain["config"]["projection"] == ""
    assert projected["task"] == "knn_projected" and f"projected by {file}" in projected["protocol"]
    assert plain["table"][1] == projected["table"][1]
    table = json.loads((run / "compared_knn_projected.json").read_text())
    assert [row[0] for row in table["table"][1:]] == [
        "mine, without projection",
        "mine, with projection",
    ]
    assert [one["projection"] for one in table["runs"]] == ["", str(file)]
    assert "mine, with projection" in capsys.readouterr().out

    with pytest.raises(InputError, match="names 2 files for 1 checkpoint"):
        evaluate.evaluate(tiny.evaluation("task=knn", projection=f"{file},{file}"), run)
    other = tiny.save_run(tmp_path / "other", seed=4)
    (run / "eval_knn.json").unlink()
    with pytest.raises(InputError, match=rf"than that of {other}"):
        evaluate.evaluate_all(config, [run, other])
    assert not (run / "eval_knn.json").exists()


@pytest.mark.slow
def test_a_linear_layer_on_projected_tokens(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    width = load_run(run).method.encoder.width
    file = fitted(tmp_path / "soap", load_run(run), np.zeros((width, width), np.float32))
    settings = tiny.evaluation("task=linear", epochs=1.0, projection=str(file))
    settings.batch_size, settings.optim.warmup_epochs = 32, 0.5
    evaluate.evaluate(settings, run)
    folders = [run / f"eval_linear{end}" / "seed-0" for end in ("", "_projected")]
    means = [checkpoint.read_newest(folder)[1]["extra"]["mean"] for folder in folders]
    assert means[0].any() and not means[1].any()
    logged = folders[1] / "metrics.jsonl"
    before = logged.read_text()
    evaluate.evaluate(settings, run)
    assert logged.read_text() == before  # finished already

    fitted(file, load_run(run), np.eye(width, dtype=np.float32))
    with pytest.raises(InputError, match="projection"):
        evaluate.evaluate(settings, run)


def test_tasks_that_a_projection_does_not_change_refuse_it():
    refused = {name for name in TASKS if TASKS[name].unprojected(checks.defaults(name, "finetune"))}
    assert refused == {
        "attention", "diversity", "finetune", "hidden", "layers", "multilabel", "reconstruct",
        "soap", "tsne",
    }  # fmt: skip
    for name in refused:
        config = checks.defaults(name, "finetune")
        config.projection = "soap.safetensors"
        with pytest.raises(InputError, match=f"does nothing for task {name}: .*; leave it out"):
            checks.check(config)
    config = checks.defaults("linear")
    config.projection, config.model.pool = "soap.safetensors", "cls"
    with pytest.raises(
        InputError, match=r"model\.pool=cls reads the class token, which is not pro"
    ):
        checks.check(config)
    config = checks.defaults("backgrounds")
    config.projection, config.classifier = "soap.safetensors", "linear"
    with pytest.raises(InputError, match="was trained without"):
        checks.check(config)
