"""Analyses on several devices, and what of the images they hold on to."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from dppmask_jax.analyses import components
from dppmask_jax.analyses.base import patch_tokens, per_image
from dppmask_jax.data.images import augment
from dppmask_jax.evals import base
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evaluating import subjects
from dppmask_jax.runs.run import load_run
from dppmask_jax.scores import moments

IMAGES, BATCH = 43, 8  # the last batch is not full


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sizes = {"model__width": 24, "model__depth": 2, "model__heads": 2}
    return load_run(tiny.save_run(tmp_path_factory.mktemp("devices") / "run", **sizes))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), np.uint8)


class Watched:
    """Batches of images; `most` is how many of those given before were still there at a time."""

    def __init__(self, images):
        self._images, self._given, self.most = images, [], 0

    def __iter__(self):
        for number in components.numbers(IMAGES, BATCH):
            self.most = max(self.most, sum(ref() is not None for ref in self._given))
            yield self._batch(number["number"], number["valid"])

    def _batch(self, number, valid):
        image = self._images[np.minimum(number, IMAGES - 1)]
        self._given.append(weakref.ref(image))
        label = np.where(valid, number, -1)
        return {"image": image, "number": number, "valid": valid, "label": label, "index": number}


def test_statistics_of_four_devices_are_those_of_one(run, images, tmp_path, monkeypatch):
    assert jax.local_device_count() == 4
    config = tiny.evaluation("task=attention", images=IMAGES, batch_size=BATCH)
    config = subjects.completed(config, run.config)
    evaluation = Evaluation(config, run, tmp_path, None, range(IMAGES), print)
    watched = Watched(images)
    monkeypatch.setattr(base, "batches", lambda *_: watched)

    def statistic(trace):
        attention = jnp.stack([block.attention for block in trace.blocks], axis=1)
        lengths = [jnp.linalg.norm(tokens, axis=-1) for tokens in patch_tokens(trace)]
        return {"attention": attention.max(axis=-1), "lengths": jnp.stack(lengths, axis=1)}

    found = per_image(evaluation, statistic, "images")
    trace = run.method.encoder.trace
    of_one = jax.jit(lambda params, x: statistic(trace(params, augment.normalize(x))))
    for name, values in of_one(run.encoder, images).items():
        assert found[name].shape == values.shape
        near(found[name], values, name)
    assert watched.most <= 2, "images of earlier batches are kept"


def test_covariance_and_probabilities_of_four_devices_are_those_of_one(run, images):
    at = (components.last(run.method.encoder),)
    read, watched = components.photographs(run.method.encoder, at), Watched(images)
    (basis,) = components.bases(read, run.encoder, watched)
    (found,) = components.responses(read, run.encoder, watched, [basis])

    @jax.jit
    def of_one(params, batch):
        (tokens,) = read(params, batch)
        vectors = (jnp.float32(basis.mean), jnp.float32(basis.eigenvectors))
        groups = batch["number"] % components.GROUPS
        responses = components.respond(tokens, batch["valid"], groups, *vectors)
        return moments.of_batch(tokens, batch["valid"]), responses

    number = np.arange(IMAGES)
    batch = {"image": images, "number": number, "valid": np.ones(IMAGES, bool)}
    sums, responses = of_one(run.encoder, batch)
    whole = moments.merged(None, sums)
    near(basis.mean, whole.mean, "mean")
    near(basis.covariance, moments.covariance(whole), "covariance")
    responses = components.without_noise(components.added(None, responses), basis)
    near(found.probabilities(), responses.probabilities(), "probabilities")
    near(found.mean(), responses.mean(), "mean responses")
    assert watched.most <= 2, "images of earlier batches are kept"


def near(found, expected, what):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), err_msg=what)
