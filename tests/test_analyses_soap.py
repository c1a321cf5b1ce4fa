"""SOAP: scores by hand, a planted component, streaming, and the task."""

import copy
import json
import re
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny

from dppmask_jax import evaluate
from dppmask_jax.analyses import components, soap, soap_task, synthetic
from dppmask_jax.errors import InputError
from dppmask_jax.runs import projection
from dppmask_jax.runs.run import load_run

GRID, WIDTH = (4, 6), 8


@pytest.fixture(scope="module")
def planted():
    """(real, synthetic) tokens (B, N, D): one direction tells left from right in every image,
    another is the same all over an image, the rest is noise."""
    rng = np.random.default_rng(0)
    directions, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    side = np.where(np.arange(GRID[0] * GRID[1]) % GRID[1] < GRID[1] // 2, -1.0, 1.0)
    scales = 0.3 * 0.9 ** np.arange(WIDTH)

    def tokens(count):
        of_image = 3 * rng.normal(size=(count, 1, 1)) * directions[1]
        noise = rng.normal(size=(count, len(side), WIDTH)) * scales @ directions
        return (5 * side[:, None] * directions[0] + of_image + noise + 2).astype(np.float32)

    return tokens(300), tokens(200), directions


def test_scores_by_hand():
    by_hand = {
        (0.5, 0.5): 0.70711, (0, 0): 1, (1, 1): 1, (1, 0): 0, (1, 0.5): 0.5858,
        (0.75, 0.75): 0.7906, (0.9, 0.1): 0.1988,
    }  # fmt: skip
    for (p, q), expected in by_hand.items():
        found = soap.semantic_invariance(p, q), soap.semantic_invariance(q, p)
        assert found == pytest.approx((expected,) * 2, abs=1e-4), (p, q)
    p, q = np.random.default_rng(0).random((2, 1000))
    assert np.all(soap.semantic_invariance(p, q) <= 1) and np.all(
        soap.semantic_invariance(p, q, 2.0) <= soap.semantic_invariance(p, q)
    )
    for p in (0.677, 0.323):
        assert soap.semantic_invariance(p, p) == pytest.approx(soap.HIGH, abs=1e-3)


def test_a_planted_position_component_is_found_and_removed(planted):
    real, blank, directions = planted
    found = soap.fit(real, blank, mode="hard", mu=1)
    assert found.scores[0] > 0.999 and abs(found.eigenvectors[:, 0] @ directions[0]) > 0.999
    assert np.all(np.abs(found.scores[1:] - soap.CHANCE) < 0.02)
    averaged = soap.semantic_invariance(found.P.mean(axis=0), found.Q.mean(axis=0))
    assert averaged[0] == pytest.approx(soap.CHANCE, abs=1e-3), "averaged first, it is missed"
    assert np.abs(real @ found.projector @ directions[0]).max() < 0.5
    np.testing.assert_allclose(
        real @ found.projector @ directions[1], real @ directions[1], atol=0.5
    )
    # The sign of an eigenvector is arbitrary.
    flipped = soap.component_scores(1 - found.P, 1 - found.Q)
    np.testing.assert_allclose(flipped, found.scores, atol=1e-12)


@pytest.mark.parametrize("mode", soap.MODES)
def test_projectors_are_symmetric_and_damp_by_the_weights(planted, mode):
    found = soap.fit(*planted[:2], mode=mode)
    np.testing.assert_allclose(found.projector, found.projector.T, atol=1e-12)
    values = np.linalg.eigvalsh(found.projector)
    np.testing.assert_allclose(values, np.sort(1 - found.weights), atol=1e-9)
    assert values.min() > -1e-9 and values.max() < 1 + 1e-9
    again = found.projector @ found.projector
    assert np.allclose(again, found.projector, atol=1e-9) == (mode == "hard")


def test_weights_by_mode():
    scores = np.array([0.6, 0.9, 0.74, 0.8])
    weights = {mode: soap.component_weights(scores, mode, mu=1) for mode in soap.MODES}
    np.testing.assert_allclose(weights["soft"], [0, 0.9, 0, 0], atol=1e-3)
    np.testing.assert_allclose(weights["auto"], [0, 0.9, 0, 0.8], atol=1e-3)
    np.testing.assert_array_equal(weights["hard"], [0, 1, 0, 0])
    np.testing.assert_array_equal(weights["scores"], scores)
    assert not soap.component_weights(scores - 0.2, "auto").any(), "none is above .75"
    with pytest.raises(ValueError, match="mode 'firm' is not soft"):
        soap.component_weights(scores, "firm")


def test_similarity_looks_at_what_is_removed():
    first, second = np.diag([0.0, 1, 1, 1]), np.diag([1.0, 0, 1, 1])
    assert soap.similarity(first, first) == pytest.approx({"projectors": 1, "removed": 1})
    assert soap.similarity(first, second) == pytest.approx({"projectors": 2 / 3, "removed": 0})
    nothing = np.eye(4)
    assert soap.similarity(nothing, nothing)["removed"] == 1
    assert soap.similarity(nothing, first)["removed"] == 0


def padded(tokens, size):
    """Tokens in batches, as images that an encoder takes as they are."""
    for number in components.numbers(len(tokens), size):
        rows = tokens[np.minimum(number["number"], len(tokens) - 1)]
        yield {**number, "image": np.where(number["valid"][:, None, None], rows, 1e4)}


def test_batches_on_all_devices_give_what_one_fit_gives(planted):
    real, blank, _ = planted

    def read(params, batch):
        return [batch["image"]]

    (basis,) = components.bases(read, {}, padded(real, 64))
    reference = soap.fit(real, blank)
    rows = real.reshape(-1, WIDTH).astype(np.float64)
    np.testing.assert_allclose(basis.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(basis.covariance, np.cov(rows.T), rtol=1e-5, atol=1e-5)
    (of_real,), (of_blank,) = (
        components.responses(read, {}, padded(tokens, 64), [basis]) for tokens in (real, blank)
    )
    assert of_real.sizes.tolist() == [30] * components.GROUPS
    found = soap.fitted(basis, of_real, of_blank, 1.0, "soft", 2.0, 0.05)
    # A few responses next to 0 fall on its other side; which ones, depends on the processor.
    assert np.mean(np.abs(found.P - reference.P)) < 1e-3 / WIDTH
    for name in ("scores", "projector"):
        np.testing.assert_allclose(getattr(found, name), getattr(reference, name), atol=1e-4)
    centred = (rows - rows.mean(axis=0)) @ basis.eigenvectors
    mean = centred.reshape(real.shape).mean(axis=0)
    np.testing.assert_allclose(of_real.mean(), mean, atol=1e-4)


def test_a_direction_without_variance_is_no_position_noise(planted):
    """Its responses are the rounding of the mean, alike in every image."""
    real, blank, directions = planted
    flat = np.eye(WIDTH) - np.outer(directions[4], directions[4])
    real, blank = ((t @ flat + 3.3 * directions[4]).astype(np.float32) for t in (real, blank))
    found = soap.fit(real, blank)
    assert found.eigenvalues[-1] < 1e-6 and found.scores[-1] == pytest.approx(soap.CHANCE)


def test_the_error_of_a_score_is_its_spread_over_draws():
    rng = np.random.default_rng(0)
    chances = rng.random((6, 1)) * np.ones(3)

    def drawn(count):
        groups = np.bincount(np.arange(count) % components.GROUPS)
        counts = np.stack([rng.binomial(size, chances) for size in groups])
        return components.Responses(groups, counts.astype(float), np.zeros((6, 3)))

    draws = [(drawn(200), drawn(300)) for _ in range(150)]
    scores = [soap.component_scores(p.probabilities(), q.probabilities()) for p, q in draws]
    errors = np.mean([soap.score_errors(*draw) for draw in draws], axis=0)
    np.testing.assert_allclose(errors, np.std(scores, axis=0), rtol=0.2)


def test_synthetic_images_are_a_function_of_key_and_number():
    key = jax.random.key(3)
    images = np.asarray(soap.synthetic_images(key, 6, (8, 12)))
    assert images.shape == (6, 8, 12, 3) and images.dtype == np.float32
    assert np.isfinite(images).all() and 0.3 < images.std() < 1.5
    fifth = synthetic.numbered(key, np.arange(4, 10), (8, 12))[0]
    np.testing.assert_allclose(fifth, images[4], atol=1e-6)
    assert len({image.tobytes() for image in images}) == 6


pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


def test_the_task_says_what_does_not_fit(run, tmp_path):
    cases = {
        "config.layer=3 is none of this encoder: 0 is the embedding, 2": {"layer": 3},
        "needs at least 10 images, and .*val=4 has 4 in its validation split; give": {
            "data__source": "shapes:size=16,train=8,val=4"
        },
    }
    for words, changes in cases.items():
        with pytest.raises(InputError, match=words):
            evaluate.evaluate(tiny.evaluation("task=soap", **changes), run, tmp_path)


def test_a_projection_of_another_encoder_or_layer_is_refused(run, tmp_path):
    loaded, path = load_run(run), tmp_path / "new" / "soap.safetensors"
    arrays = {"projector": np.eye(24), "scores": np.ones(24)}
    projection.write(path, arrays=arrays, layer=2, run=loaded)
    found = projection.read(path, loaded)
    np.testing.assert_array_equal(found.matrix, np.eye(24))
    assert found.arrays["scores"].shape == (24,) and found.path == path
    # Positions change with the size of the images, and are no part of what it belongs to.
    projection.read(path, load_run(run, image_size=(24, 24)))

    inner, narrow, damaged, other = (tmp_path / f"{i}.safetensors" for i in range(4))
    projection.write(inner, arrays=arrays, layer=1, run=loaded)
    projection.write(narrow, arrays={"projector": np.eye(8)}, layer=2, run=loaded)
    damaged.write_bytes(path.read_bytes()[:-8])
    safetensors.numpy.save_file({"projector": np.eye(24)}, other)
    another = copy.copy(loaded)
    another.encoder = jax.tree.map(lambda leaf: leaf + np.float32(1e-3), loaded.encoder)
    off, broken = np.eye(24), np.eye(24)
    off[0, 1], broken[0, 0] = 1e-3, np.nan
    wrong = {"symmetric": off, "finite": broken, "(3, 24)": np.eye(3, 24), "(1,)": np.array(1.0)}
    for words, matrix in wrong.items():
        projection.write(tmp_path / "wrong", arrays={"projector": matrix}, layer=2, run=loaded)
        with pytest.raises(InputError, match=rf"holds no projector: .*{re.escape(words)}.*; fit"):
            projection.read(tmp_path / "wrong", loaded)
    cases = {
        "fitted to another encoder": (path, another),
        "fitted to layer 1, and layer 2 is asked for": (inner, loaded),
        "of width 8, and those of this run, an MAE run, have 24": (narrow, loaded),
        "is no whole safetensors file": (damaged, loaded),
        "is no projection": (other, loaded),
        "there is no projection": (tmp_path / "missing", loaded),
    }
    for words, (file, of) in cases.items():
        with pytest.raises(InputError, match=words):
            projection.read(file, of)
    with pytest.raises(InputError, match="fitted to layer 1"):
        evaluate.evaluate(tiny.evaluation("task=soap", against=str(inner)), run, tmp_path)
    assert projection.read(inner, loaded, layer=1)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"written over config\.against=.*; copy that file"):
        evaluate.evaluate(tiny.evaluation("task=soap", against=str(path)), run, path.parent)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_one_and_four_devices_fit_the_same_projector(tmp_path):
    run = tiny.save_run(tmp_path / "run", model__width=24, model__depth=2, model__heads=2)
    fitted, printed = [], []
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        against = [f"--config.against={tmp_path / '1' / 'soap.safetensors'}"] * (devices == 4)
        command = [sys.executable, "eval.py", "--config=configs/eval.py:task=soap,dataset=shapes"]
        command += [f"--checkpoint={run}", f"--workdir={folder}", "--config.layers=all", *against]
        process = tiny.run(command, devices)
        assert process.returncode == 0, process.stderr
        printed.append(process.stdout)
        fitted.append(safetensors.numpy.load_file(folder / "soap.safetensors"))
    for name, values in fitted[0].items():
        if name != "eigenvectors":  # those of nearly equal eigenvalues may turn
            largest = np.abs(values).max()
            np.testing.assert_allclose(fitted[1][name], values, atol=1e-5 * largest, err_msg=name)
    assert "cosine of the projectors 1.00000, of what they remove 1.0000" in printed[1]
    record = json.loads((folder / "eval_soap.json").read_text())
    found, depths = record["metrics"], record["metrics"]["depths"]
    bare = [(layer, False) for layer in range(3)]
    assert [(d["layer"], d["after_norm"]) for d in depths] == [*bare, (2, True)]
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert depths[-1]["scores"] == found["scores"][:10]
    drawn = {file.name for file in (folder / "figures").iterdir()}
    assert drawn == {f"soap_{kind}.png" for kind in ("maps", "responses", "scores", "depths")}


def test_a_note_says_where_nothing_stands_out():
    found = {"above": 0, "scores": [0.71, 0.7], "weights": [0.71, 0.0]}
    assert "no component is above 0.75: " in soap_task._note(found)
    assert "no component" not in soap_task._note({**found, "above": 1, "scores": [0.76, 0.7]})
    assert "no component" not in soap_task._note({**found, "weights": [0.0, 0.0]}), "as with auto"
