"""Runs of a study that have the same seed are pairs: they differ in what is hidden, and in nothing
else."""

import itertools

import jax
import numpy as np
import pytest
import tiny

from dppmask_jax import masking, pretrain
from dppmask_jax.comparing import study as studies
from dppmask_jax.data import loader
from dppmask_jax.methods import single_view

pytestmark = pytest.mark.usefixtures("fewer_blocks")
MASKERS = {name: {"strategy": name} for name in masking.MASKERS if name != "file"} | {
    "positions": {"strategy": "dpp", "features": "positions"},
    "more_hidden": {"strategy": "random", "ratio": 0.9},
}
BATCHES = 2


class Begun(Exception):
    """Where a run is stopped: its first step is about to draw masks."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """{(masker, seed): (parameters, batches, views of the first, the step's key)} of the study's
    runs, as its configs pre-train until the first masks are drawn."""
    folder = tmp_path_factory.mktemp("pairs")
    np.save(folder / "parts.npy", np.zeros((96, 4, 4), np.uint8))
    np.save(folder / "masks.npy", np.broadcast_to(np.arange(16) < 12, (96, 16)))
    found = {}

    def fit(training, first, **_):
        stream = loader.train_stream(
            training.source,
            example=training.method.example,
            extras=training.method.extras,
            batch_size=training.config.batch_size,
            seed=training.config.seed,
        )
        state, batches = first(), list(itertools.islice(stream, BATCHES))
        (turn,) = training.method.turns
        step_key = jax.random.fold_in(training.seed_key, 0)
        with pytest.raises(Begun) as begun:
            turn.loss(state.params, state.extra, batches[0], step_key, 0)
        found[training.folder.name] = (jax.device_get(state.params), batches, *begun.value.args)
        raise Begun

    def drawn(masker, num_keep, views, seen, batch, key):
        raise Begun(views, key)

    study = studies.defaults("pairs")
    study.seeds = (0, 1)
    study.parts = str(folder / "parts.npy")
    study.maskers = MASKERS | {"file": {"strategy": "file", "path": str(folder / "masks.npy")}}
    study.methods.mae = tiny.config(data__crop_scale=(0.2, 1.0), model__drop_path=0.1)
    study.evaluations.knn = tiny.evaluation("task=knn")
    runs = studies.read(study).runs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "fit", fit)
        patch.setattr(single_view, "drawn", drawn)
        for run in runs:
            if run.seed == 0 or run.masker in ("random", "dpp"):
                with pytest.raises(Begun):
                    pretrain.train(run.point.config, folder / run.point.name)
    return {
        (run.masker, run.seed): found[run.point.name] for run in runs if run.point.name in found
    }


def leaves(params):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], name)


@pytest.mark.parametrize("masker", [*MASKERS, "file"])
def test_a_seed_has_the_same_start_images_crops_and_noise_under_every_masker(begun, masker):
    params, batches, views, step_key = begun[masker, 0]
    of_random = begun["random", 0]
    got, want = leaves(params), leaves(of_random[0])
    added = got.keys() - want.keys()
    assert all("hard_" in name for name in added), "a masker's own: a second stack of the decoder"
    assert bool(added) == (masker == "hard")
    assert_same({name: got[name] for name in want}, want)
    for batch, wanted in zip(batches, of_random[1], strict=True):
        assert_same({name: batch[name] for name in wanted}, wanted)  # crops among them, as pixels
    for name in ("raw", "images"):
        np.testing.assert_array_equal(getattr(views, name), getattr(of_random[2], name), name)
    keys = views.mask_keys, views.drop_keys, step_key
    wanted = of_random[2].mask_keys, of_random[2].drop_keys, of_random[3]
    for key, other in zip(keys, wanted, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(other))


def test_another_seed_has_others(begun):
    params, batches, views, _ = begun["random", 0]
    other_params, other_batches, other_views, _ = begun["random", 1]
    got, want = leaves(params), leaves(other_params)
    kernels = [name for name in want if name.endswith("['kernel']")]
    assert kernels and all((got[name] != want[name]).any() for name in kernels)
    assert (batches[0]["row"] != other_batches[0]["row"]).any()
    assert (batches[0]["row"] != batches[1]["row"]).any()
    for name in ("mask_keys", "drop_keys"):
        keys = (jax.random.key_data(getattr(of, name)) for of in (views, other_views))
        assert (next(keys) != next(keys)).all(axis=1).all(), name
    got, want = begun["dpp", 1], begun["random", 1]
    assert_same(leaves(got[0]), leaves(want[0]))
    assert_same(got[1][1], want[1][1])
