"""Objects by patch tokens: the cut, the bilateral solver, the scores and the task."""

import numpy as np
import pytest
import tiny
from PIL import Image
from test_eval_tasks import found

from dppmask_jax import evaluate
from dppmask_jax.analyses import bilateral, masked_images, saliency, tokencut
from dppmask_jax.errors import InputError
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.evaluating import subjects
from dppmask_jax.figures.saliency import Found, draw_scores, panels_of
from dppmask_jax.runs.run import load_run, open_data
from dppmask_jax.scores import saliency as scores

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


# The cut.


def two_kinds(mask, seed=0, noise=0.05):
    """(N, 16) tokens, alike on the mask and alike beside it."""
    rng = np.random.default_rng(seed)
    kinds = np.linalg.qr(rng.normal(size=(16, 2)))[0].T
    return kinds[mask.ravel().astype(int)] + noise * rng.normal(size=(mask.size, 16))


@pytest.mark.parametrize("shape", [(6, 9), (25, 24)], ids=["all eigenvectors", "Lanczos"])
def test_planted_object(shape):
    mask = np.zeros(shape, bool)
    mask[1:4, 2:6] = True
    cut = saliency.tokencut(two_kinds(mask), shape)
    np.testing.assert_array_equal(cut.mask, mask)
    assert mask.ravel()[cut.seed] and cut.eigenvector[cut.seed] == np.abs(cut.eigenvector).max()
    # The part around the seed alone, by sides and not by corners.
    mask[4, 6] = mask[0, 0] = True
    apart = saliency.tokencut(two_kinds(mask), shape)
    assert apart.mask.ravel()[apart.seed] and apart.mask.sum() in (12, 1)
    assert not (apart.mask & ~mask).any()
    guide = np.arange(mask.size)  # largest on the background
    guided = saliency.tokencut(two_kinds(mask), shape, guide=guide)
    assert guided.seed == mask.size - 1
    np.testing.assert_array_equal(guided.mask, ~mask)


def test_scale_and_order_of_tokens_change_nothing_and_the_solvers_agree(monkeypatch):
    rng = np.random.default_rng(1)
    tokens = rng.normal(size=(3, 12))[rng.integers(0, 3, 56)] + rng.normal(size=(56, 12))
    cut = saliency.tokencut(tokens, (7, 8))
    scaled = saliency.tokencut(tokens * rng.uniform(0.1, 9, (56, 1)), (7, 8))
    np.testing.assert_allclose(scaled.eigenvector, cut.eigenvector, atol=1e-12)
    order = rng.permutation(56)
    mixed = saliency.tokencut(tokens[order], (7, 8))
    np.testing.assert_allclose(mixed.eigenvector, cut.eigenvector[order], atol=1e-12)
    monkeypatch.setattr(tokencut, "_LANCZOS_FROM", 8)
    by_lanczos = saliency.tokencut(tokens, (7, 8))
    np.testing.assert_allclose(by_lanczos.eigenvector, cut.eigenvector, atol=1e-10)


def test_patches_that_are_all_alike_are_not_cut():
    tokens = np.ones((12, 5)) + 0.01 * np.random.default_rng(0).normal(size=(12, 5))
    cut = saliency.tokencut(tokens, (3, 4))
    assert cut.mask.all() and not cut.eigenvector.any()
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(12, dtype=bool)]
    assert tokencut.mean_cosine(tokens) == pytest.approx(cosines.mean())
    assert not saliency.tokencut(tokens, (3, 4), threshold=cosines.mean()).mask.all()


# The bilateral solver.


def test_a_coarse_mask_takes_the_edges_of_its_image():
    image = np.full((48, 64, 3), 40, np.uint8)
    image[10:37, 13:45] = (220, 60, 50)
    coarse = np.zeros((48, 64), bool)
    coarse[8:40, 8:48] = True
    smooth = bilateral.smoothed(image, coarse)
    fine = bilateral.object_of(smooth, coarse)
    truth = image[..., 0] > 100
    assert scores.iou(fine, truth) == 1 > scores.iou(coarse, truth)
    np.testing.assert_array_equal(bilateral.object_of(np.zeros((48, 64)), coarse), coarse)
    large = np.ones((6, 6))
    large[2, 2] = large[0, 0] = (
        0  # a hole is filled; a large object is not taken for the background
    )
    assert bilateral.object_of(large, large > 0).sum() == 35


# Scores.


def test_scores_by_hand():
    truth = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
    predicted = np.array([[1, 0.6, 0.6, 0], [1, 0.2, 0, 0]])
    assert scores.iou(predicted > 0.5, truth) == 3 / 5
    assert scores.accuracy(predicted > 0.5, truth) == 6 / 8
    curve = scores.precision_recall(predicted, truth)
    assert curve.shape == (255, 2)
    of = {0.0: (4 / 5, 1), 0.1: (4 / 5, 1), 0.3: (3 / 4, 3 / 4), 0.9: (1, 1 / 2)}
    for threshold, expected in of.items():
        place = np.searchsorted(scores.THRESHOLDS, threshold)
        np.testing.assert_allclose(curve[place], expected)
    found = scores.f_beta(np.array([[0.8, 1.0], [0.0, 0.0], [1.0, 0.5]]))
    np.testing.assert_allclose(found, [1.3 * 0.8 / (0.3 * 0.8 + 1), 0, 1.3 * 0.5 / (0.3 + 0.5)])
    # The mean of the images is taken at each threshold before the largest is.
    best = scores.best_f_beta(np.array([[1.0, 0.6] + [0.0] * 253, [0.0, 0.6] + [0.0] * 253]))
    assert best.threshold == scores.THRESHOLDS[1] and best.values.mean() == 0.6


def test_empty_masks():
    empty, some = np.zeros((2, 2), bool), np.eye(2, dtype=bool)
    assert scores.iou(empty, empty) == 1 and scores.iou(empty, some) == scores.iou(some, empty) == 0
    for predicted, truth, expected in (
        (empty, empty, (1, 1)),
        (empty, some, (1, 0)),
        (some, empty, (0, 1)),
    ):
        curve = scores.precision_recall(predicted, truth)
        np.testing.assert_array_equal(curve, np.tile(expected, (255, 1)))
        assert scores.f_beta(curve)[0] == (1 if expected == (1, 1) else 0)
    assert scores.foreground(np.array([[127, 128]], np.uint8)).tolist() == [[False, True]]


# Sizes.


def test_native_sizes_go_to_the_nearest_multiple_of_the_patch_and_half_to_even():
    assert masked_images.native_size((40, 56), 16, 512) == (32, 64)
    assert masked_images.native_size((5, 41), (8, 16), 512) == (8, 48)
    assert masked_images.native_size((1000, 500), 16, 512) == (512, 256)
    assert masked_images.native_size((1000, 333), 14, 400) == (406, 140)
    assert masked_images.within((1000, 333), 500) == (500, 166)
    assert masked_images.within((3, 4), 500) == (3, 4)


# The task.


def test_task_on_shapes(run, tmp_path, capsys):
    settings = {"images": 20, "bilateral": True, "shown": 1, "threshold": 0.9}
    out = found(run, tmp_path, "task=saliency", **settings)
    of = out["metrics"]
    assert of["images"] == 20 and of["empty_truths"] == 0
    assert of["masks"].keys() == {"tokencut", "bilateral", "whole"}
    assert of["masks"]["whole"]["IoU"]["value"] == pytest.approx(of["foreground"])
    for measures in of["masks"].values():
        for of_measure in measures.values():
            assert 0 <= of_measure["value"] <= 1 and 0 <= of_measure["error"] < 0.2
    assert out["score"]["value"] == of["masks"]["tokencut"]["IoU"]["value"]
    assert "20 whole images, squeezed into 16x16 pixels, 4x4 patches" in out["protocol"]
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"saliency.png", "saliency_scores.png"}
    # A sweep checks before there is a run.
    config = load_run(run).config
    completed = subjects.completed(tiny.evaluation("task=saliency", **settings), config)
    saliency.check(Evaluation(completed, None, tmp_path, *open_data(completed), print))


def test_true_masks_without_foreground_are_counted():
    config = tiny.evaluation("task=saliency")
    assert "have no foreground" not in saliency._note(config, 0, 0, 9, 0.5)
    assert "2 of 9 true masks have no foreground" in saliency._note(config, 2, 0, 9, 0.5)


def painted(root):
    """Squares on noise in two sizes, one without an object and one all of it."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(5):
        height, width = ((16, 24), (24, 16))[number % 2]
        mask = np.zeros((height, width), np.uint8)
        mask[4:12, 4:12] = 255
        mask[...] = {3: 0, 4: 255}.get(number, mask)
        pixels = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
        pixels[mask > 0] = (220, 40, 20)
        Image.fromarray(pixels).save(root / f"images/{number}.png")
        Image.fromarray(mask).save(root / f"masks/{number}.png")
    return f"saliency:{root}"


def test_task_at_native_resolution(run, tmp_path):
    source = painted(tmp_path / "set")
    settings = {"data__source": source, "resolution": "native", "images": 5}
    out = found(run, tmp_path / "out", "task=saliency", **settings)
    assert "5 whole images, at their own resolution, at most 512 pixels" in out["protocol"]
    assert "in 2 grids of patches; positions are resized" in out["protocol"]
    assert out["metrics"]["images"] == 5 and out["metrics"]["empty_truths"] == 1
    assert out["data"] == {"train_images": 5, "val_images": 0, "classes": 0}


def test_refused_before_anything_is_encoded(run, tmp_path):
    source = painted(tmp_path / "set")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16)).save(plain / f"{name}.png")

    def refuses(words, **changes):
        config = tiny.evaluation("task=saliency", **{"data__source": source, **changes})
        with pytest.raises(InputError, match=words) as error:
            evaluate.evaluate(config, run, tmp_path / "out")
        assert "\n" not in str(error.value)

    refuses(r"task saliency needs the mask of each image", data__source=f"folder:{plain}")
    refuses(r"image of 8x8 pixels is a grid of 2x2 patches, and at least 3x3", image_size=(8, 8))
    refuses(r"resolution=native exclude each other", resolution="native", image_size=(20, 20))
    Image.new("L", (3, 4)).save(tmp_path / "set/masks/2.png")
    refuses(r"1 of 5 masks have another size than their image, .*2.png: 3 x 4 .*16 x 24|24 x 16")
    for number in range(1, 5):
        (tmp_path / f"set/masks/{number}.png").write_bytes(b"text")
    refuses(r"needs 2 images with a mask or more, and .* has 1 among 5")
    assert not (tmp_path / "out").exists()


# The pictures.


def test_panels_keep_the_shape_of_the_image():
    image = np.full((16, 16, 3), 200, np.uint8)
    truth = np.zeros((20, 40), bool)
    truth[:, 20:] = True
    panels = panels_of(Found(image, np.arange(4.0).reshape(2, 2), (truth, truth)))
    assert panels.shape == (4, 224, 224, 3)
    assert (panels[:, :50] == 255).all(), "paper above a wide image"
    assert (panels[0, 112] == 200).all()
    assert (panels[2, 112, 120:] == 200).all() and (panels[2, 112, :100] < 200).all()
    assert panels[1, 60, 10].sum() < panels[1, 160, 200].sum(), "brightest where it is largest"


def test_scores_of_several_runs_in_one_figure():
    of = {"IoU": {"value": 0.4, "error": 0.02}, "accuracy": {"value": 0.7, "error": 0.01}}
    figure = draw_scores({"first": of, "second": of}, "bars: one standard error over 9 images")
    assert figure.get_supxlabel() == "bars: one standard error over 9 images"
    assert [axes.get_xlabel() for axes in figure.axes] == ["IoU (%)", "accuracy (%)"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["first", "second"]
    low, high = figure.axes[0].get_xlim()
    assert low < 38 and high > 42 and high - low >= 10, "small differences do not fill the axis"
