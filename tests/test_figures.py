"""Figures are probed pixel by pixel; the coverage benchmark's statistics on masks made by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from PIL import Image

from dppmask_jax import figures, patches
from dppmask_jax.errors import InputError

ROOT = Path(__file__).parent.parent


def _noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _masked_except(num_patches, *visible):
    mask = np.ones(num_patches, bool)
    mask[list(visible)] = False
    return mask


def _pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def _find(canvas, panel):
    """Top-left corners at which `panel` stands in `canvas`, pixel for pixel."""
    height, width = panel.shape[:2]
    rows, columns = canvas.shape[0] - height + 1, canvas.shape[1] - width + 1
    possible = np.ones((rows, columns), bool)
    for y, x in np.random.default_rng(1).integers(0, (height, width), (12, 2)):
        possible &= (canvas[y : y + rows, x : x + columns] == panel[y, x]).all(axis=2)
    return [
        (int(y), int(x))
        for y, x in np.argwhere(possible)
        if np.array_equal(canvas[y : y + height, x : x + width], panel)
    ]


# Boxes.


def test_a_mask_panel_outlines_exactly_the_chosen_patches():
    image = _noise(16, 24, 3)  # a grid of 2 x 3 patches of 8 pixels
    mask = _masked_except(6, 1, 3, 5)
    red, blue = np.array([False, True] + [False] * 4), np.array([False] * 5 + [True])
    panel = figures.mask_panel(image, mask, 8, [((255, 0, 0), red), ((0, 0, 255), blue)], scale=4)
    assert panel.shape == (64, 96, 3) and panel.dtype == np.uint8
    line = figures.outline_width(32)
    assert line == 3
    large = image.repeat(4, axis=0).repeat(4, axis=1)

    for (top, left), color in (((0, 32), (255, 0, 0)), ((32, 64), (0, 0, 255))):
        patch = panel[top : top + 32, left : left + 32]
        inner = patch[line:-line, line:-line]
        border = np.ones((32, 32), bool)
        border[line:-line, line:-line] = False
        assert (patch[border] == color).all()
        clear = large[top : top + 32, left : left + 32][line:-line, line:-line]
        np.testing.assert_array_equal(inner, clear)
    # visible without an outline: untouched
    np.testing.assert_array_equal(panel[32:64, 0:32], large[32:64, 0:32])
    # masked: grey, and darker than the middle
    for top, left in ((0, 0), (0, 64), (32, 32)):
        patch = panel[top : top + 32, left : left + 32].astype(int)
        assert (patch == patch[..., :1]).all() and patch.max() < 100


def test_tiny_patches_keep_their_middle():
    assert figures.outline_width(8) == 2
    assert figures.outline_width(4) == 1
    assert figures.outline_width(2) == 1


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"2x3 patches"):
        figures.mask_panel(_noise(16, 24, 3), np.ones(7, bool), 8)


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (48, 24)])
def test_draw_masks_colours_both_random_only_and_dpp_only(size, monkeypatch):
    monkeypatch.setattr(figures, "_PANEL", 120)  # smaller, to be found faster
    height, width = size
    num_patches = (height // 8) * (width // 8)
    images, first, second = _noise(3, 2, height, width, 3)
    random_mask = np.stack([_masked_except(num_patches, 0, 2), _masked_except(num_patches, 1, 3)])
    dpp_mask = np.stack([_masked_except(num_patches, 2, 4), _masked_except(num_patches, 0, 5)])
    figure = figures.draw_masks(images, random_mask, dpp_mask, first, second, 8, [1, 2], 0.8)
    canvas = _pixels(figure)

    def flags(*chosen):
        return ~_masked_except(num_patches, *chosen)

    scale = figures.panel_scale(width)
    white, red, blue = figures.BOTH, figures.RANDOM_ONLY, figures.DPP_ONLY
    expected = [
        [
            figures.enlarge(images[0], scale),
            figures.mask_panel(
                images[0], random_mask[0], 8, [(white, flags(2)), (red, flags(0))], scale
            ),
            figures.mask_panel(
                images[0], dpp_mask[0], 8, [(white, flags(2)), (blue, flags(4))], scale
            ),
            figures.enlarge(first[0], scale),
            figures.enlarge(second[0], scale),
        ],
        [
            figures.enlarge(images[1], scale),
            figures.mask_panel(images[1], random_mask[1], 8, [(red, flags(1, 3))], scale),
            figures.mask_panel(images[1], dpp_mask[1], 8, [(blue, flags(0, 5))], scale),
            figures.enlarge(first[1], scale),
            figures.enlarge(second[1], scale),
        ],
    ]
    places = [[_find(canvas, panel) for panel in row] for row in expected]
    assert all(len(found) == 1 for row in places for found in row)
    corners = np.array([[found[0] for found in row] for row in places])
    # rows are level, columns are plumb and ordered, nothing overlaps
    assert (np.ptp(corners[:, :, 0], axis=1) == 0).all()
    assert (np.ptp(corners[:, :, 1], axis=0) == 0).all()
    assert (np.diff(corners[0, :, 1]) > width * scale).all()
    assert (np.diff(corners[:, 0, 0]) > height * scale).all()


def test_a_saved_figure_has_the_same_pixels_and_no_text_is_cut(tmp_path):
    images = _noise(1, 32, 32, 3)
    mask = _masked_except(16, 0, 5)[None]
    figure = figures.draw_masks(images, mask, mask, images, images, 8, [2], 0.8)
    figure.savefig(tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), _pixels(figure))
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 5 + 2 + 3
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])


def test_draw_tau_tells_greedy_picks_from_the_fill():
    images = _noise(1, 32, 32, 3)
    masks = {1.0: _masked_except(16, 1, 2)[None], 0.0: _masked_except(16, 1, 9)[None]}
    greedy = {1.0: np.zeros((1, 16), bool), 0.0: ~masks[0.0]}
    figure = figures.draw_tau(images, masks, greedy, 8)
    canvas, scale = _pixels(figure), figures.panel_scale(32)
    for tau, color in ((0.0, figures.GREEDY), (1.0, figures.FILL)):
        panel = figures.mask_panel(images[0], masks[tau][0], 8, [(color, ~masks[tau][0])], scale)
        assert len(_find(canvas, panel)) == 1
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words.index("τ = 0 (DPP)") < words.index("τ = 1 (random)")
    assert "2 DPP + 0 random" in words and "0 DPP + 2 random" in words


def test_figures_of_unequal_length_are_refused():
    images = _noise(2, 16, 16, 3)
    mask = np.ones((1, 4), bool)
    with pytest.raises(ValueError, match="1 rows for 2 images"):
        figures.draw_masks(images, mask, mask, images, images, 8)
    with pytest.raises(ValueError, match="no image"):
        figures.draw_tau(images[:0], {0.5: mask[:0]}, {0.5: mask[:0]}, 8)


# From features to files.


def test_write_mask_figures_draws_both_masks_from_one_noise(tmp_path, monkeypatch):
    images = _noise(2, 24, 32, 3)
    drawn, orders = {}, []

    def spy(*args):
        drawn["masks"] = args
        return draw(*args)

    draw = figures.draw_masks
    monkeypatch.setattr(figures, "draw_masks", spy)

    def reconstruct(images, order):
        orders.append(np.asarray(order))
        return np.full(images.shape, 2.0 * len(orders) - 2.5, np.float32)  # -0.5, then 1.5

    paths = figures.write_mask_figures(
        tmp_path / "new",
        images,
        features=lambda images: patches.patchify(images.astype(np.float32), 8),
        reconstruct=reconstruct,
        num_keep=3,
        patch_size=8,
        tau=0.0,
        key=jax.random.key(0),
    )
    assert [path.name for path in paths] == ["masks.png", "tau.png"]
    assert all(path.is_file() for path in paths)
    _, random_mask, dpp_mask, first, second, patch_size, num_greedy, tau = drawn["masks"]
    assert ((~random_mask).sum(axis=1) == 3).all() and ((~dpp_mask).sum(axis=1) == 3).all()
    assert (num_greedy == 3).all() and patch_size == 8 and tau == 0.0
    assert (first == 0).all() and (second == 255).all()  # clipped to what a pixel can hold
    # the first patch in noise order is the first pick of either
    np.testing.assert_array_equal(orders[0][:, 0], orders[1][:, 0])
    for mask, order in ((random_mask, orders[0]), (dpp_mask, orders[1])):
        for row in range(2):
            assert set(np.flatnonzero(~mask[row])) == set(order[row, :3].tolist())
    assert not np.array_equal(orders[0][0], orders[0][1])  # another noise for each image


# Curves.


def _records():
    records = [
        {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": 1.0, "num_greedy": 4.0}
        for step in range(1, 9)
    ]
    return [*records, {"step": 8, "val_loss": 0.3, "knn": 0.5}]


def _titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_curves_show_what_was_logged_and_leave_out_what_was_not():
    assert len(_titles(figures.draw_curves(_records()))) == 3
    unlabelled = [{"step": r["step"], "loss": r["loss"]} for r in _records() if "loss" in r]
    assert _titles(figures.draw_curves(unlabelled)) == ["Loss"]
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.draw_curves([{"step": 1, "lr": 0.1}])


def test_curves_hold_the_values_and_skip_what_is_not_finite():
    records = [*_records(), {"step": 9, "loss": None}, {"step": 10, "loss": float("nan")}]
    loss, knn, picks = figures.draw_curves(records).axes
    steps, values = loss.lines[0].get_data()
    np.testing.assert_array_equal(steps, range(1, 9))
    np.testing.assert_allclose(values, 1 / np.arange(1, 9))
    assert loss.lines[1].get_data()[1].tolist() == [0.3]
    assert knn.lines[0].get_data()[1].tolist() == [0.5]
    assert set(picks.lines[0].get_data()[1]) == {4.0}


def test_several_runs_are_overlaid_and_named():
    random = [{k: v for k, v in r.items() if k != "num_greedy"} for r in _records()]
    figure = figures.draw_curves({"dpp": _records(), "random": random})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["dpp, train", "dpp, validation", "random, train", "random, validation"]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["dpp"]


def test_smoothing_keeps_a_constant_and_the_first_value():
    np.testing.assert_allclose(figures._smooth(np.full(50, 3.0), 5), 3.0)
    values = np.arange(50.0)
    smooth = figures._smooth(values, 5)
    assert smooth[0] == 0.0
    np.testing.assert_allclose(smooth[5:-5], values[5:-5])


def test_write_curves_reads_a_run_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in _records()) + '{"step": 9, "l')
    assert figures.write_curves(tmp_path / "out", path).is_file()
    assert figures.write_curves(tmp_path / "out", {"a": path, "b": path}).is_file()
    with pytest.raises(InputError, match=r"no .*absent"):
        figures.write_curves(tmp_path, tmp_path / "absent")
    path.write_text("not json\n" * 2)
    with pytest.raises(InputError, match="damaged"):
        figures.write_curves(tmp_path, path)
    path.write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(InputError, match="nothing to draw"):
        figures.write_curves(tmp_path, path)


# The command.


def test_read_images_takes_files_and_folders_in_order(tmp_path):
    for name in ("b/2.png", "b/1.png", "a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        value = 60 * (1 + ["a.png", "b/1.png", "b/2.png"].index(name))
        Image.new("RGB", (50, 40), (value, 0, 0)).save(path)
    (tmp_path / "b" / "0.txt").write_text("no image")
    images = figures.read_images([tmp_path / "b", tmp_path / "a.png"], (16, 24), 9)
    assert images.shape == (3, 16, 24, 3) and images.dtype == np.uint8
    assert images[:, 8, 12, 0].tolist() == [120, 180, 60]
    assert len(figures.read_images([tmp_path], (16, 24), 2)) == 2
    with pytest.raises(InputError, match="no file or folder"):
        figures.read_images([tmp_path / "absent"], (16, 24), 2)
    with pytest.raises(InputError, match=r"0\.txt is no readable image"):
        figures.read_images([tmp_path / "b" / "0.txt"], (16, 24), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no readable image in"):
        figures.read_images([tmp_path / "empty"], (16, 24), 2)


class _Run:
    selection_settings = {"kernel": "gaussian", "bandwidth": 1.0, "threshold_on": "d2"}  # noqa: RUF012
    """A run as the command needs it."""

    config = config_dict.ConfigDict(
        {
            "image_size": (16, 32),
            "model": {"patch_size": 8},
            "mask": {
                "ratio": 0.75,
                "tau": 0.8,
                "tau_end": None,
                "threshold_on": "d2",
                "kernel": "gaussian",
                "bandwidth": 1.0,
            },
        }
    )

    def features(self, images):
        return patches.patchify(images.astype(np.float32), 8)

    def reconstruct(self, images, order):
        return images / 255.0

    def example_images(self, num):
        return _noise(num, 16, 32, 3)


def test_the_command_draws_every_figure(tmp_path, monkeypatch, capsys):
    lines = "".join(json.dumps(record) + "\n" for record in _records())
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr(figures.pretrained, "load_run", lambda workdir: _Run())
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    figures.main(["--workdir", mine, "--compare", other, "--num=2"])
    printed = capsys.readouterr().out.split()
    names = ("masks.png", "tau.png", "curves.png")
    assert printed == [str(tmp_path / "mine" / "figures" / name) for name in names]
    assert all(Path(path).is_file() for path in printed)
    Image.fromarray(_noise(20, 30, 3)).save(tmp_path / "x.png")
    out = str(tmp_path / "out")
    figures.main(["--workdir", mine, "--images", str(tmp_path / "x.png"), "--out", out])
    assert (tmp_path / "out" / "masks.png").is_file()
    with pytest.raises(InputError, match=r"no .*absent"):
        figures.main(["--workdir", mine, "--compare", str(tmp_path / "absent")])
    with pytest.raises(InputError, match="--num"):
        figures.main(["--workdir", mine, "--num=0"])


@pytest.mark.parametrize(
    "flags, word",
    [(["--workdir=/nowhere/at/all"], "/nowhere/at/all"), ([], "--workdir")],
)
def test_bad_input_ends_the_command_in_one_line_and_status_2(flags, word):
    command = [sys.executable, "-m", "dppmask_jax.figures", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and word in done.stderr


def test_run_labels_are_short_and_distinct():
    def label(*paths):
        return figures.run_labels([Path(path) for path in paths])

    assert label("/runs/a", "/runs/b") == ["a", "b"]
    assert label("/runs/a/1", "/runs/b/1") == ["a/1", "b/1"]
    assert label("/runs/a", "/runs/a") == ["a (1)", "a (2)"]


# The coverage benchmark.


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("coverage", ROOT / "benchmarks/coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_object_patches_half_tiny_and_empty(bench):
    foreground = np.zeros((4, 4, 6), bool)  # 2 x 3 patches of 2 pixels
    foreground[0, 0, 0:2] = True  # half of patch 0
    foreground[0, 2, 4] = True  # a quarter of patch 5
    foreground[1, 3, 3] = foreground[1, 0, 5] = True  # a quarter of patches 4 and 2
    foreground[2] = True
    objects = bench.object_patches(foreground, 2)
    assert [np.flatnonzero(row).tolist() for row in objects] == [[0], [2], [0, 1, 2, 3, 4, 5], []]


def test_coverage_of_hand_made_masks(bench):
    objects = np.zeros((3, 20), bool)
    objects[0, :10] = objects[1, :10] = objects[2, 5] = True
    visible = np.zeros((3, 20), bool)
    visible[0, 10:18] = True  # nothing of the object
    visible[1, 9:17] = True  # one of its ten patches; its fair share is four
    visible[2, :8] = True
    found = bench.coverage(visible, objects, almost=0.5)
    assert found["none"].tolist() == [1, 0, 0]
    assert found["almost"].tolist() == [1, 1, 0]
    assert bench.coverage(visible, objects, almost=0.25)["almost"].tolist() == [1, 0, 0]
    assert found["kept"].tolist() == [0, 0.1, 1]
    assert found["on_object"].tolist() == [0, 1 / 8, 1 / 8]


def test_exact_random_agrees_with_counting_all_masks(bench):
    from itertools import combinations

    objects = np.array([[True, True, True, False, False, False, False]])
    every = np.zeros((35, 7), bool)
    for row, kept in enumerate(combinations(range(7), 3)):
        every[row, list(kept)] = True
    for almost in (0.25, 0.7, 0.9):
        found = bench.coverage(every, objects.repeat(35, axis=0), almost)
        exact = bench.exact_random(objects, 3, almost)
        for name, values in exact.items():
            np.testing.assert_allclose(values[0], found[name].mean(), err_msg=name)


def test_log_det_is_that_of_the_kernel(bench):
    features = np.random.default_rng(1).normal(size=(2, 6, 4))
    kept = np.array([[0, 3, 5], [2, 1, 4]])
    found = bench.log_det(features, kept)
    for row in range(2):
        x = features[row, kept[row]]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        kernel = np.exp(-np.sum((x[:, None] - x[None]) ** 2, axis=-1))
        np.testing.assert_allclose(found[row], np.log(np.linalg.det(kernel)))


def test_pieces_are_counted_image_by_image(bench):
    foreground = np.zeros((3, 5, 5), bool)
    foreground[0, 0, 0] = foreground[0, 1, 1] = True  # touch at a corner: one piece
    foreground[0, 4, 4] = True
    foreground[2] = True
    found, owner = bench.pieces(foreground)
    assert owner.tolist() == [0, 0, 2]
    assert found.sum(axis=(1, 2)).tolist() == [2, 1, 25]
    found, owner = bench.pieces(foreground[1:2])
    assert found.shape == (0, 5, 5) and owner.shape == (0,)


def test_the_error_of_a_mean_counts_an_image_once(bench):
    values = np.random.default_rng(2).normal(size=30)
    mean, error = bench.mean_and_error(values, np.arange(30))
    np.testing.assert_allclose([mean, error], [values.mean(), values.std(ddof=1) / 30**0.5])
    # ten copies of everything tell nothing new
    again = bench.mean_and_error(values.repeat(10), np.arange(30).repeat(10))
    np.testing.assert_allclose(again, [mean, error])


def test_terciles_part_the_images_and_keep_equal_sizes_together(bench):
    size = np.array([1, 1, 1, 1, 5, 6, 9, 9, 9])
    groups = bench.terciles(size)
    assert (np.sum(groups, axis=0) == 1).all()
    assert [group.sum() for group in groups] == [4, 2, 3]


def _write_folder(folder):
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    image = _noise(40, 60, 3)
    for name in "abc":
        mask = np.zeros((40, 60), np.uint8)
        mask[:, 30:] = 128  # boundary: not foreground
        if name != "c":
            mask[8:24, 18:34] = 255
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


def test_the_benchmark_runs_on_a_folder_and_says_what_it_left_out(bench, tmp_path, capsys):
    _write_folder(tmp_path)
    bench.main(
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


def test_the_benchmark_refuses_bad_input_in_one_line(bench, tmp_path):
    with pytest.raises(InputError, match="no image in"):
        bench.main([f"--source={tmp_path}"])
    _write_folder(tmp_path)
    with pytest.raises(InputError, match="--patch=7"):
        bench.main([f"--source={tmp_path}", "--size=32", "--patch=7"])
    with pytest.raises(InputError, match="--ratio"):
        bench.main([f"--source={tmp_path}", "--ratio", "1.5"])
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png"):
        bench.main([f"--source={tmp_path}", "--size=32"])
