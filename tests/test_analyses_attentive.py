"""The attentive probe: what it attends to by hand, and that it finds what the mean does not say."""

import json

import jax
import numpy as np
import pytest
import tiny
from test_data_segments import save

from dppmask_jax import evaluate
from dppmask_jax.analyses import attentive
from dppmask_jax.analyses.attentive import Moments
from dppmask_jax.errors import InputError
from dppmask_jax.scores import ridge

pytestmark = pytest.mark.usefixtures("fewer_blocks")


def needles(count, seed):
    """(count, 9, 8) tokens: eight of noise, in which the mean tells little, and one, marked in
    channel 2, whose direction in channels 0 and 1 tells the class, 0 to 2."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    tokens = rng.normal(0, 1, (count, 9, 8))
    tokens[..., :2] *= 2
    place = rng.integers(0, 9, count)
    angle = 2 * np.pi * labels / 3
    tokens[np.arange(count), place, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    tokens[..., 2] = 0
    tokens[np.arange(count), place, 2] = 4
    return tokens.astype(np.float32), labels.astype(np.int32)


def test_attention_is_that_of_keys_and_values_for_every_token():
    rng = np.random.default_rng(0)
    params = attentive._first(4, 2, 3, seed=1)
    params["weights"] = rng.normal(size=(4, 3)).astype(np.float32)
    tokens = rng.normal(2, 3, (5, 7, 4)).astype(np.float32)
    moments = Moments(tokens.mean(axis=(0, 1)), tokens.std(axis=(0, 1)))
    normal = (tokens - moments.mean) / moments.deviation
    keys = np.einsum("bnd,dhe->bhne", normal, params["key"])
    scores = np.einsum("bhne,he->bhn", keys, params["query"]) / np.sqrt(2)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    values = np.einsum("bhn,bnd,dhe->bhe", weights, normal, params["value"]).reshape(5, 4)
    found = attentive.attend(params, tokens, moments)[1]
    np.testing.assert_allclose(found, weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        attentive.class_scores(params, tokens, moments), values @ params["weights"], atol=1e-4
    )


def test_the_probe_finds_a_token_that_the_mean_hides():
    tokens, labels = needles(600, 0)
    test, true = needles(300, 1)
    recipe = {"learning_rates": (1e-2,), "query_heads": 2, "head_batch": 50, "head_epochs": 15}
    config = tiny.evaluation("task=attentive", **recipe)
    moments = attentive._moments(tokens)
    params, rate = attentive._chosen(tokens, labels, moments, 3, config)
    assert rate == 1e-2 and np.mean(attentive._predicted(params, test, moments) == true) > 0.9
    weights = np.asarray(attentive.attend(params, test, moments)[1]).max(axis=1)
    assert np.mean(weights.argmax(axis=1) == test[..., 2].argmax(axis=1)) > 0.9
    mean = ridge.fit(attentive._means(tokens), labels, 3, (1e-3,))
    assert np.mean(np.argmax(mean(attentive._means(test)), axis=1) == true) < 0.6
    again, _ = attentive._chosen(tokens, labels, moments, 3, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    first = [attentive._first(8, 2, 3, seed)["query"] for seed in (0, 1)]
    assert np.any(first[0] != first[1])


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("run") / "mae")


def squares(root, train=20):
    """Folders of images with a red or a blue square."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", 6)):
        for i in range(count):
            pixels = rng.integers(90, 140, (16, 16, 3)).astype(np.uint8)
            top, left = rng.integers(0, 8, 2)
            name, colour = (("red", (230, 20, 20)), ("sky", (20, 40, 230)))[i % 2]
            pixels[top : top + 8, left : left + 8] = colour
            save(root / split / name / f"{i}.png", pixels)
    return f"folder:{root}"


@pytest.mark.slow
def test_the_task_sets_three_heads_beside_one_another(run, tmp_path, capsys):
    config = tiny.evaluation(
        "task=attentive", data__source=squares(tmp_path), batch_size=4, head_batch=8,
        memory_gb=1e-9, shown=2, k=3,
    )  # fmt: skip
    record = json.loads(evaluate.evaluate(config, run, tmp_path / "out").read_text())
    found = record["metrics"]
    assert (found["train_images"], found["images"], found["chance"]) == (20, 6, 0.5)
    assert list(found["accuracy"]) == ["attentive", "ridge", "knn"]
    assert found["accuracy"]["attentive"] > 0.6 and found["learning_rate"] in (1e-3, 3e-3, 1e-2)
    assert found["gain"] == pytest.approx(
        found["accuracy"]["attentive"] - found["accuracy"]["ridge"]
    )
    assert record["score"]["value"] == found["accuracy"]["attentive"]
    names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    drawn = ["attentive_accuracy.png", "attentive_maps.png"]
    assert names == [*drawn, "eval_attentive.json", "eval_attentive_images.npy"]
    right = np.load(tmp_path / "out" / "eval_attentive_images.npy")
    assert right.shape == (6,) and right.mean() == record["score"]["value"]
    assert "attentive less ridge" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"query_heads": 5}, "config.query_heads=5 does not divide the encoder's width"),
        (
            {"train_images": 19},
            "needs at least 20 training images, .*, and there are 19; name one rate",
        ),
        ({"data__source": "folder:{root}/train/red"}, "needs labels"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words, run, tmp_path):
    changes = {"data__source": squares(tmp_path)} | changes
    changes["data__source"] = changes["data__source"].format(root=tmp_path)
    with pytest.raises(InputError, match=words) as error:
        evaluate.evaluate(tiny.evaluation("task=attentive", **changes), run, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_the_figure_has_chance_and_says_of_how_many_images():
    accuracy = {"attentive": 0.7, "ridge": 0.5}
    error = {"attentive": 0.1, "ridge": 0.1}
    metrics = {"accuracy": accuracy, "error": error, "chance": 0.25, "images": 40}
    (figure,) = attentive.compare({"mine": metrics}).values()
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == ["chance (25.00 %)", "mine"]
    assert figure.get_supxlabel() == "bars: one standard error over 40 images"
