"""The tasks that measure an encoder by depth, on a tiny run."""

import itertools
import json

import jax
import numpy as np
import pytest
import tiny

from dppmask_jax import evaluate
from dppmask_jax.analyses import attention, diversity, spectra
from dppmask_jax.data import loader
from dppmask_jax.data.images import augment
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs.run import load_run, open_data

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def mae_run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


def found(run, workdir, argument, **changes):
    config = tiny.evaluation(argument, **changes)
    return json.loads(evaluate.evaluate(config, run, workdir).read_text())


def test_attention_is_measured_in_every_block_and_head(mae_run, tmp_path, capsys):
    record = found(mae_run, tmp_path, "task=attention", shown=2)
    metrics = record["metrics"]
    assert metrics["images"] == 24 and metrics["grid"] == [4, 4]
    for name, top in (("distance", 12), ("nmi", 1)):
        heads = np.array(metrics[name]["heads"])
        assert heads.shape == (2, 2) and (heads > 0).all() and (heads < top).all()
        np.testing.assert_allclose(metrics[name]["mean"], heads.mean(axis=1))
        assert np.all(np.array(metrics[name]["error"]) > 0)
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["attention_depth.png", "attention_maps.png"]
    assert "uniform" not in record["table"][0] and len(record["table"]) == 3
    uniform = attention.uniform_distance((4, 4), 4)
    assert metrics["uniform_distance"] == uniform
    assert f"reaches {uniform:.1f} px" in capsys.readouterr().out


def test_what_an_analysis_by_depth_cannot_measure_is_refused(mae_run, tmp_path):
    half = tiny.save_run(tmp_path / "half", mask__ratio=0.5)
    few = "shapes:size=16,train=96,val=12"
    for run, argument, changes, words in (
        (
            mae_run,
            "spectra",
            {"data__source": few},
            "20 images, and .* has 12 in its validation split",
        ),
        (half, "spectra", {"image_size": (4, 8)}, "at least 3 patches an image, .* 4x8 have 1x2"),
        (mae_run, "spectra", {"images": 19}, "at least 20 images, and config.images=19; raise"),
    ):
        with pytest.raises(InputError, match=words) as error:
            found(run, tmp_path / "new", f"task={argument}", **changes)
        assert "\n" not in str(error.value) and not (tmp_path / "new").exists()
    run = load_run(mae_run)
    encoder = run.method.encoder._replace(trace=None)
    run.method = run.method._replace(encoder=encoder)
    evaluation = Evaluation(tiny.evaluation("task=attention"), run, tmp_path, None, None, print)
    for task in (attention.TASK, diversity.TASK, spectra.TASK):
        with pytest.raises(InputError, match="needs an encoder with attention, and an MAE run"):
            task.check(evaluation)


def test_images_that_cannot_be_read_may_leave_too_few(mae_run, tmp_path, monkeypatch):
    config = subjects.completed(tiny.evaluation("task=spectra"), load_run(mae_run).config)
    evaluation = Evaluation(config, load_run(mae_run), tmp_path, None, range(24), print)
    monkeypatch.setattr(base, "extracted", lambda *_: ({"logs": None}, np.zeros(19)))
    with pytest.raises(InputError, match="19 of 24 images can be read, and task spectra needs 20"):
        spectra.run(evaluation)


@pytest.mark.slow
def test_every_depth_is_measured_as_the_trace_has_it(mae_run, tmp_path):
    """Against NumPy, from all that the encoder computes on the way."""
    run = load_run(mae_run)
    _, val = open_data(run.config)
    (batch,) = loader.eval_batches(val, image_size=(16, 16), batch_size=24)
    trace = jax.device_get(
        jax.jit(run.method.encoder.trace)(run.encoder, augment.normalize(batch["image"]))
    )
    depths = [trace.embedding, *(block.after_mlp for block in trace.blocks)]
    depths = [np.asarray(tokens[:, 1:], np.float64) for tokens in depths]

    out = found(mae_run, tmp_path, "task=diversity")["metrics"]
    tokens = [diversity.mean_cosine(of_depth).mean() for of_depth in depths]
    np.testing.assert_allclose(out["tokens"]["mean"], tokens, rtol=1e-4)
    images = [diversity.mean_cosine(of_depth.mean(axis=1)) for of_depth in depths]
    np.testing.assert_allclose(out["images_level"]["mean"], images, rtol=1e-4)
    units = [of_depth / np.linalg.norm(of_depth, axis=-1, keepdims=True) for of_depth in depths]
    before = [np.mean(np.sum(a * b, axis=-1)) for a, b in itertools.pairwise(units)]
    np.testing.assert_allclose(out["depths"]["mean"], before, rtol=1e-4)
    mixed = [block.mixed[:, :, 1:].swapaxes(1, 2) for block in trace.blocks]
    heads = [diversity.mean_cosine(of_block).mean() for of_block in mixed]
    np.testing.assert_allclose(out["heads"]["mean"], heads, atol=1e-5)

    out = found(mae_run, tmp_path, "task=spectra")["metrics"]
    norm = np.asarray(trace.tokens.patches, np.float64)
    for i, of_depth in enumerate([*depths, norm]):
        logs = out["tokens_level"]["log_singular_values"][i]["mean"]
        np.testing.assert_allclose(logs, spectra.token_log_singular_values(of_depth, 0), atol=1e-3)
        of_images = spectra.of_vectors(of_depth.mean(axis=1))
        assert out["images_level"]["rankme"]["mean"][i] == pytest.approx(
            of_images["rankme"]["mean"], rel=1e-4
        )

    out = found(mae_run, tmp_path, "task=attention", shown=0)["metrics"]
    for i, block in enumerate(trace.blocks):
        for name, values in (
            ("distance", attention.distance(block.attention, (4, 4), 4)),
            ("nmi", attention.mutual_information(block.attention)),
        ):
            np.testing.assert_allclose(out[name]["heads"][i], values.mean(axis=0), rtol=1e-4)
    drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert drawn == ["attention_depth.png", "diversity.png", "spectra.png"]


@pytest.mark.slow
def test_several_runs_share_a_table_and_a_figure(mae_run, tmp_path):
    """Of other depths, widths, patches and prefixes: an encoder of one head has no pair of them."""
    other = tiny.save_run(
        tmp_path / "other", seed=4, model__depth=3, model__heads=1, model__patch_size=(4, 8)
    )
    for task in ("attention", "diversity", "spectra"):
        evaluate.evaluate_all(tiny.evaluation(f"task={task}"), [other, mae_run])
        table = json.loads((other / f"compared_{task}.json").read_text())["table"]
        assert len(table) == 3 and len({len(row) for row in table}) == 1
    drawn = {path.name for path in (other / "figures").iterdir()}
    assert {"compare_attention_depth.png", "compare_diversity.png", "compare_spectra.png"} < drawn
