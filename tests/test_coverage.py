"""The coverage benchmark: its statistics on masks made by hand, its command on a folder."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import coverage, coverage_scores
from dppmask_jax.errors import InputError


def test_object_patches_half_tiny_and_empty():
    foreground = np.zeros((4, 4, 6), bool)  # 2 x 3 patches of 2 pixels
    foreground[0, 0, 0:2] = True  # half of patch 0
    foreground[0, 2, 4] = True  # a quarter of patch 5
    foreground[1, 3, 3] = foreground[1, 0, 5] = True  # a quarter of patches 4 and 2
    foreground[2] = True
    objects = coverage_scores.object_patches(foreground, 2)
    assert [np.flatnonzero(row).tolist() for row in objects] == [[0], [2], [0, 1, 2, 3, 4, 5], []]


def test_coverage_of_hand_made_masks():
    objects = np.zeros((3, 20), bool)
    objects[0, :10] = objects[1, :10] = objects[2, 5] = True
    visible = np.zeros((3, 20), bool)
    visible[0, 10:18] = True  # nothing of the object
    visible[1, 9:17] = True  # one of its ten patches; its fair share is four
    visible[2, :8] = True
    found = coverage_scores.coverage(visible, objects, almost=0.5)
    assert found["none"].tolist() == [1, 0, 0]
    assert found["almost"].tolist() == [1, 1, 0]
    assert coverage_scores.coverage(visible, objects, almost=0.25)["almost"].tolist() == [1, 0, 0]
    assert found["kept"].tolist() == [0, 0.1, 1]
    assert found["on_object"].tolist() == [0, 1 / 8, 1 / 8]


def test_exact_random_agrees_with_counting_all_masks():
    objects = np.array([[True, True, True, False, False, False, False]])
    every = np.zeros((35, 7), bool)
    for row, kept in enumerate(itertools.combinations(range(7), 3)):
        every[row, list(kept)] = True
    for almost in (0.25, 0.7, 0.9):
        found = coverage_scores.coverage(every, objects.repeat(35, axis=0), almost)
        exact = coverage_scores.exact_random(objects, 3, almost)
        for name, values in exact.items():
            np.testing.assert_allclose(values[0], found[name].mean(), err_msg=name)


def test_log_det_is_that_of_the_kernel():
    features = np.random.default_rng(1).normal(size=(2, 6, 4))
    kept = np.array([[0, 3, 5], [2, 1, 4]])
    found = coverage_scores.log_det(features, kept)
    for row in range(2):
        x = features[row, kept[row]]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        kernel = np.exp(-np.sum((x[:, None] - x[None]) ** 2, axis=-1))
        np.testing.assert_allclose(found[row], np.log(np.linalg.det(kernel)))


def test_pieces_are_counted_image_by_image():
    foreground = np.zeros((3, 5, 5), bool)
    foreground[0, 0, 0] = foreground[0, 1, 1] = True  # touch at a corner: one piece
    foreground[0, 4, 4] = True
    foreground[2] = True
    found, owner = coverage_scores.pieces(foreground)
    assert owner.tolist() == [0, 0, 2]
    assert found.sum(axis=(1, 2)).tolist() == [2, 1, 25]
    found, owner = coverage_scores.pieces(foreground[1:2])
    assert found.shape == (0, 5, 5) and owner.shape == (0,)


def test_the_error_of_a_mean_counts_an_image_once():
    values = np.random.default_rng(2).normal(size=30)
    mean, error = coverage_scores.mean_and_error(values, np.arange(30))
    np.testing.assert_allclose([mean, error], [values.mean(), values.std(ddof=1) / 30**0.5])
    # ten copies of everything tell nothing new
    again = coverage_scores.mean_and_error(values.repeat(10), np.arange(30).repeat(10))
    np.testing.assert_allclose(again, [mean, error])


def test_terciles_part_the_images_and_keep_equal_sizes_together():
    size = np.array([1, 1, 1, 1, 5, 6, 9, 9, 9])
    groups = coverage_scores.terciles(size)
    assert (np.sum(groups, axis=0) == 1).all()
    assert [group.sum() for group in groups] == [4, 2, 3]


def _write_folder(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name in "abc":
        mask = np.zeros((40, 60), np.uint8)
        mask[:, 30:] = 128  # boundary: not foreground
        if name != "c":
            mask[8:24, 18:34] = 255
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def test_the_benchmark_runs_on_a_folder_and_says_what_it_left_out(tmp_path, capsys):
    _write_folder(tmp_path)
    coverage.main(
        [
            f"--source={tmp_path}",
            "--size=32",
            "--patch=8",
            "--tau",
            "0",
            "0.9",
            "--seeds=2",
            f"--json={tmp_path / 'out.json'}",
        ]
    )
    said = capsys.readouterr().out
    assert "2 images (1 without foreground left out)" in said
    assert "| DPP tau 0.9" in said
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["images"] == 2 and report["without_foreground"] == 1
    rows = {row["strategy"]: row for row in report["results"][0]["rows"]}
    assert rows["DPP tau 0"]["num_greedy_max"] == 4
    assert rows["random"]["num_greedy_max"] == 0
    assert rows["DPP tau 0"]["log_det"][0] >= rows["random"]["log_det"][0]
    np.testing.assert_allclose(rows["random, exact"]["kept"][0], 0.25)


def test_the_benchmark_refuses_bad_input_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no image in"):
        coverage.main([f"--source={tmp_path}"])
    _write_folder(tmp_path)
    with pytest.raises(InputError, match="--patch=7"):
        coverage.main([f"--source={tmp_path}", "--size=32", "--patch=7"])
    with pytest.raises(InputError, match="--ratio"):
        coverage.main([f"--source={tmp_path}", "--ratio", "1.5"])
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png"):
        coverage.main([f"--source={tmp_path}", "--size=32"])
