"""The outcome of each image, beside the record of an evaluation."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.linear_model import Ridge

from dppmask_jax import evaluate
from dppmask_jax.evals.base import Score
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.runs.run import load_run

pytestmark = pytest.mark.usefixtures("fewer_blocks")
TRAIN, VAL, CLASSES = 10, 7, 3


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("outcomes") / "run")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of noise around a grey that tells classes apart in part; by split their arrays."""
    root, rng, arrays = tmp_path_factory.mktemp("images"), np.random.default_rng(0), {}
    for split, count in (("train", TRAIN), ("val", VAL)):
        of_split = []
        for name in range(CLASSES):
            folder = root / split / str(name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 200, (16, 16, 3)) + 8 * name
                of_split.append(pixels.astype(np.uint8))
                Image.fromarray(of_split[-1]).save(folder / f"{number}.png")
        arrays[split] = np.stack(of_split), np.repeat(np.arange(CLASSES), count)
    return f"folder:{root}", arrays


def evaluated(run, folder, source, argument, **changes):
    """(the record, the outcomes that lie beside it)."""
    config = tiny.evaluation(argument, data__source=source, **changes)
    record = json.loads(evaluate.evaluate(config, run, folder).read_text())
    name = f"eval_{record['task']}_images.npy"
    assert name in record["files"]
    return record, np.load(folder / name)


def by_neighbours(train, labels, test, k, temperature):
    train, test = (np.asarray(x, np.float64) for x in (train, test))
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    found = []
    for row in test @ train.T:
        votes = np.zeros(CLASSES)
        for near in np.argsort(-row)[:k]:
            votes[labels[near]] += np.exp(row[near] / temperature)
        found.append(votes.argmax())
    return np.array(found)


def by_ridge(train, labels, test, strength):
    train, test = (np.asarray(x, np.float64) for x in (train, test))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    model = Ridge(alpha=strength * len(train))
    model.fit((train - mean) / deviation, np.eye(CLASSES)[labels])
    return model.predict((test - mean) / deviation).argmax(axis=1)


def test_outcomes_are_those_of_each_image_in_the_order_of_the_split(run, images, tmp_path):
    source, arrays = images
    encode = load_run(run).encode
    features = {split: encode(pixels) for split, (pixels, _) in arrays.items()}
    patches = [np.asarray(features[split]["patches"]).mean(axis=1) for split in arrays]
    cls = [np.asarray(features[split]["cls"]) for split in arrays]
    labels, true = arrays["train"][1], arrays["val"][1]

    record, right = evaluated(run, tmp_path, source, "task=knn", k=(1, 3, 20))
    expected = by_neighbours(patches[0], labels, patches[1], 20, 0.07) == true
    np.testing.assert_array_equal(right, expected)
    assert right.dtype == bool and 0 < right.mean() < 1, "all alike would show no order"
    assert record["score"]["value"] == right.mean()
    assert "of_images" not in record["score"]

    changes = {"solver": "ridge", "ridge": (0.01,), "model__pool": "cls"}
    record, right = evaluated(run, tmp_path, source, "task=linear", **changes)
    assert record["task"] == "linear_ridge"
    expected = by_ridge(cls[0], labels, cls[1], 0.01) == true
    np.testing.assert_array_equal(right, expected)
    assert record["score"]["value"] == right.mean() and 0 < right.mean() < 1


def test_a_record_without_its_outcomes_is_not_finished(run, images, tmp_path):
    config = tiny.evaluation("task=knn", data__source=images[0], k=(1,))
    evaluate.evaluate(config, run, tmp_path)
    subject = subjects.Subject(config, run, tmp_path, "mine")
    evaluation = subjects.opened(subject)
    assert records.finished(subject, evaluation) is not None
    (tmp_path / "eval_knn_images.npy").unlink()
    assert records.finished(subject, evaluation) is None


def test_shares_are_kept_as_float32_and_no_file_outlives_its_record(tmp_path):
    path = tmp_path / "eval_x_images.npy"
    records._write_images(path, Score("x", 0.5, of_images=np.array([0.25, 0.75])))
    assert np.load(path).dtype == np.float32 and np.load(path).tolist() == [0.25, 0.75]
    for score in (None, Score("x", 0.5)):
        path.write_bytes(b"old")
        records._write_images(path, score)
        assert not path.exists()
