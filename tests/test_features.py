import gc
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from dppmask_jax.data import loader
from dppmask_jax.data.sources.base import Source, known
from dppmask_jax.errors import InputError
from dppmask_jax.evals import features, probe
from dppmask_jax.methods import METHODS
from dppmask_jax.methods.base import Plan, Turn
from dppmask_jax.scores import nearest, ridge

SIZE = (8, 8)


def picture(value):
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (value, 2 * value, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def source_of(count, broken=()):
    """Image i has red i, and label i % 3."""

    def read(i):
        return (b"nothing" if i in broken else picture(i)), i % 3

    return Source(
        count, read, name=str, class_names=("a", "b", "c"), labels=known(np.arange(count) % 3)
    )


def extracted(source, batch_size, rows=None):
    """{"mean", "pixels"} and the labels, by all four devices."""

    def encode(params, extra, images):
        values = images.astype(jnp.float32)
        return {"mean": params * values.mean(axis=(1, 2)) + extra, "pixels": values[:, :2, :2]}

    batches = loader.eval_batches(
        source, image_size=SIZE, batch_size=batch_size, log=lambda line: None
    )
    return features.extractor(encode)(jnp.float32(2), jnp.float32(1), batches, rows)


@pytest.mark.parametrize("batch_size", [4, 12, 32])
def test_every_image_once_in_order_whatever_the_padding(batch_size):
    found, labels = extracted(source_of(21), batch_size)
    numbers = np.arange(21.0)
    expected = 2 * np.stack([numbers, 2 * numbers, 255 - numbers], axis=1) + 1
    np.testing.assert_array_equal(found["mean"], expected)
    np.testing.assert_array_equal(labels, np.arange(21) % 3)
    assert found["pixels"].shape == (21, 2, 2, 3)


def test_unreadable_images_are_left_out_with_their_labels():
    found, labels = extracted(source_of(10, broken=(0, 7, 9)), 4)
    kept = [1, 2, 3, 4, 5, 6, 8]
    np.testing.assert_array_equal(found["mean"][:, 0], 2.0 * np.array(kept) + 1)
    np.testing.assert_array_equal(labels, np.array(kept) % 3)


@pytest.mark.parametrize("on_disk", [False, True])
def test_batches_without_a_readable_image_are_passed_over(on_disk, tmp_path):
    rows = features.on_disk(tmp_path) if on_disk else None
    few = source_of(20, broken=range(2, 20))
    found, labels = extracted(few, 4, rows)
    assert labels.tolist() == [few.read(0)[1], few.read(1)[1]] and len(found["mean"]) == 2
    with pytest.raises(InputError, match=r"none of the images .* lines above name them"):
        extracted(source_of(6, broken=range(6)), 4, rows)


def test_a_validation_loss_passes_over_batches_without_a_readable_image():
    def brightness(params, extra, batch, key, step):
        return jnp.mean(batch["image"].astype(jnp.float32)), {}

    config = tiny.config(image_size=(4, 4), batch_size=4, evaluate__loss_images=8)
    method = METHODS["mae"].build(tiny.config(), Plan(1, 1))
    method = method._replace(turns=(Turn(brightness, method.turns[0].optimizer),))
    state = types.SimpleNamespace(params={}, extra={})

    def measure(source):
        probed = probe.Probed(config, Plan(1, 1), source, source, True)
        key = jax.random.key(0)
        return probe.validation_loss(probed, method, key, lambda line: None)(state)

    assert measure(source_of(8, broken=range(4, 8))) == measure(source_of(4))
    with pytest.raises(InputError, match="none of the images"):
        measure(source_of(4, broken=range(4)))


def test_rows_on_disk_are_those_in_memory_and_leave_nothing(tmp_path):
    in_memory = extracted(source_of(21), 8)
    on_disk = extracted(source_of(21), 8, features.on_disk(tmp_path / "new"))
    assert isinstance(on_disk[0]["pixels"], np.memmap)
    jax.tree.map(np.testing.assert_array_equal, in_memory, on_disk)
    assert jax.tree.map(lambda x: x.dtype, in_memory) == jax.tree.map(lambda x: x.dtype, on_disk)
    assert not list((tmp_path / "new").iterdir()), "a killed process must leave nothing either"
    del on_disk
    gc.collect()  # an open file would be a warning, and so an error


@pytest.mark.parametrize("library", [np, jnp])
def test_pooled_pixels_are_means_of_blocks(library):
    image = np.zeros((1, 65, 96, 3), np.uint8)
    image[0, 2:4, 3:6, 1] = 60  # block (1, 1) of 2 x 3 pixels
    image[0, 0, 0, 2] = 6
    image[0, 64] = 255  # left over
    pooled = np.asarray(features.pooled_pixels(library.asarray(image)))
    assert pooled.shape == (1, 32 * 32 * 3) and pooled.dtype == np.float32
    pooled = pooled.reshape(32, 32, 3)
    assert pooled[1, 1, 1] == 60 and pooled[0, 0, 2] == 1
    assert pooled.sum() == 61


def accuracies(seed=0, train=50, test=23, ks=(1, 3, 20, 999)):
    rng = np.random.default_rng(seed)
    train_labels, test_labels = rng.integers(0, 4, train), rng.integers(0, 4, test)
    centres = 0.6 * rng.normal(size=(4, 6))
    return nearest.accuracies(
        (centres[train_labels] + rng.normal(size=(train, 6))).astype(np.float32),
        train_labels,
        (centres[test_labels] + rng.normal(size=(test, 6))).astype(np.float32),
        test_labels,
        num_classes=4,
        ks=ks,
        temperature=1.0,
    )


@pytest.mark.parametrize("chunk", [1, 7, 49])
def test_knn_does_not_depend_on_the_chunks(monkeypatch, chunk):
    whole = accuracies()
    assert len(set(whole.values())) > 2, "the ks must differ for this to mean something"
    monkeypatch.setattr(nearest, "_TRAIN_CHUNK", chunk)
    monkeypatch.setattr(nearest, "_TEST_CHUNK", chunk + 3)
    assert accuracies() == whole
    assert accuracies(ks=(3,)) == {3: whole[3]}, "each k by itself"


def angle(degrees):
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


@pytest.mark.parametrize("chunk", [2, 100])
def test_knn_by_hand(monkeypatch, chunk):
    """Classes 1, 0, 0 at 10, 30 and 40 degrees from the test image."""
    monkeypatch.setattr(nearest, "_TRAIN_CHUNK", chunk)
    train = np.stack([5 * angle(40), angle(30), 0.1 * angle(10), angle(180)])
    labels = np.array([0, 0, 1, 2])

    def of(temperature, ks=(1, 2, 3, 4)):
        return nearest.accuracies(
            train, labels, angle(0)[None], np.array([1]),
            num_classes=3, ks=ks, temperature=temperature,
        )  # fmt: skip

    # cos 10 = .985, cos 30 = .866, cos 40 = .766: at .1 class 1 has weight 1, class 0
    # exp(-1.19) + exp(-2.19) = .42; at 1 it has .89 + .80.
    assert of(0.1) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}
    assert of(1.0) == {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0}


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_of_equally_near_images_the_first_counts(monkeypatch, chunk):
    monkeypatch.setattr(nearest, "_TRAIN_CHUNK", chunk)
    train = np.stack([angle(90), angle(0), angle(0), angle(0)])
    found = nearest.accuracies(
        train, np.array([3, 2, 1, 0]), angle(0)[None], np.array([2]), num_classes=4, ks=(1, 3)
    )
    # Of equal votes the class with the lower number wins.
    assert found == {1: 1.0, 3: 0.0}


def test_knn_takes_off_the_mean():
    train, mean = np.stack([angle(80), angle(-80)]), np.array([100.0, 0.0], np.float32)
    labels = np.array([0, 1])
    settings = {"num_classes": 2, "ks": (1,), "mean": mean}
    found = nearest.accuracies(train + mean, labels, train + mean, labels, **settings)
    assert found == {1: 1.0}


def ridge_data(rows=200, width=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    values = rng.normal(size=(rows, width)) + 0.7 * rng.normal(size=(3, width))[labels]
    scales = np.array([1e-3, 1.0, 50.0, 2.0, 1.0])[:width]
    return (values * scales + 7 * scales).astype(np.float32), labels


@pytest.mark.parametrize("strength", [1e-3, 0.5])
@pytest.mark.parametrize("chunk", [30, 65536])
def test_ridge_is_that_of_sklearn_on_standardised_features(monkeypatch, strength, chunk):
    monkeypatch.setattr(ridge, "_CHUNK", chunk)
    values, labels = ridge_data()
    fitted = ridge.fit(values, labels, 4, (strength,))
    scaler = StandardScaler().fit(values.astype(np.float64))
    reference = Ridge(alpha=strength * len(values)).fit(
        scaler.transform(values.astype(np.float64)), np.eye(4)[labels]
    )
    new, _ = ridge_data(seed=1)
    expected = reference.predict(scaler.transform(new.astype(np.float64)))
    np.testing.assert_allclose(fitted(new), expected, rtol=1e-6, atol=1e-6)


def test_the_strength_is_chosen_on_every_tenth_image():
    """The last of each ten images has its labels swapped, so what hardly fits does best there."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) // 10 % 2
    values = np.where(labels[:, None] == 1, 1.0, -1.0) + 0.1 * rng.normal(size=(200, 3))
    assert ridge.fit(values, labels, 2, (1e-3, 1e9)).strength == 1e-3, "the first of equals"
    swapped = np.where(np.arange(200) % 10 == 9, 1 - labels, labels)
    # With next to no weights only the bias is left: the more frequent class, right on half.
    uneven = np.concatenate([swapped, np.ones(40, int)])
    values = np.concatenate([values, rng.normal(size=(40, 3)) * 0.1 + 1.0])
    chosen = ridge.fit(values, uneven, 2, (1e-3, 1e9))
    assert chosen.strength == 1e9
    assert chosen.words == "strength 1e+09 chosen on a tenth of the training images"


def test_a_strength_that_was_not_chosen_says_so():
    values, labels = np.eye(9, 3), np.arange(9) % 2
    few = ridge.fit(values, labels, 2, (1e-3, 1e9))
    assert few.words == "strength 0.001 (the first, of too few training images to choose on)"
    assert ridge.fit(values, labels, 2, (0.5,)).words == "strength 0.5"


def test_no_penalty_and_features_that_say_nothing():
    values = np.stack([[1.0, 2, 3, 4], [2.0, 4, 6, 8], [5.0] * 4], axis=1)
    labels = np.array([0, 0, 1, 1])
    fitted = ridge.fit(values, labels, 2, (0.0,))
    x = values[:, :1] - 2.5
    slope = (x[:, 0] @ (labels - 0.5)) / (x[:, 0] @ x[:, 0])
    np.testing.assert_allclose(fitted(values)[:, 1], 0.5 + slope * x[:, 0], atol=1e-9)


def test_ridge_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(6, 20))
    labels = rng.integers(0, 6, 300)
    values = centres[labels] + rng.normal(size=(300, 20))
    fitted = ridge.fit(values[:200], labels[:200], 6, (1e-4, 1e-2, 1.0))
    assert np.mean(fitted(values[200:]).argmax(axis=1) == labels[200:]) > 0.98
