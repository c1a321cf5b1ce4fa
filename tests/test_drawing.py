"""Figures are probed pixel by pixel, curves value by value."""

import itertools

import numpy as np
import pytest
from PIL import Image

from dppmask_jax.figures import attention as attention_figure
from dppmask_jax.figures import axes as axes_of_figures
from dppmask_jax.figures import curves, depths, panels, shares
from dppmask_jax.figures import masks as masks_figure
from dppmask_jax.figures import tau as tau_figure


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


def _check_no_text_is_cut(figure) -> int:
    """Checks that the words lie in the figure and not on one another; their number."""
    renderer = figure.canvas.get_renderer()
    width, height = figure.canvas.get_width_height()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts if text.get_text()]
    for box in boxes:
        assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])
    return len(boxes)


# Boxes.


def test_a_mask_panel_outlines_exactly_the_chosen_patches():
    image = _noise(16, 24, 3)  # a grid of 2 x 3 patches of 8 pixels
    mask = _masked_except(6, 1, 3, 5)
    red, blue = np.array([False, True] + [False] * 4), np.array([False] * 5 + [True])
    panel = panels.mask_panel(image, mask, 8, [((255, 0, 0), red), ((0, 0, 255), blue)], scale=4)
    assert panel.shape == (64, 96, 3) and panel.dtype == np.uint8
    line = panels.outline_width(32)
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
    assert panels.outline_width(8) == 2
    assert panels.outline_width(4) == 1
    assert panels.outline_width(2) == 1


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"2x3 patches"):
        panels.mask_panel(_noise(16, 24, 3), np.ones(7, bool), 8)


def _shown(name, mask, reconstruction=None):
    return masks_figure.Shown(name, f"{name} mask", mask, ["caption"] * len(mask), reconstruction)


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (48, 24)])
def test_draw_masks_colours_what_only_one_mask_shows(size, monkeypatch):
    monkeypatch.setattr(masks_figure, "PANEL", 120)  # smaller, to be found faster
    height, width = size
    num_patches = (height // 8) * (width // 8)
    images, first, second = _noise(3, 2, height, width, 3)
    random_mask = np.stack([_masked_except(num_patches, 0, 2), _masked_except(num_patches, 1, 3)])
    dpp_mask = np.stack([_masked_except(num_patches, 2, 4), _masked_except(num_patches, 0, 5)])
    shown = [_shown("random", random_mask, first), _shown("DPP", dpp_mask, second)]
    canvas = _pixels(masks_figure.draw_masks(images, shown, 8))

    def flags(*chosen):
        return ~_masked_except(num_patches, *chosen)

    scale = panels.panel_scale(width, 120)
    white, red, blue = panels.BOTH, masks_figure.RANDOM_ONLY, masks_figure.DPP_ONLY
    expected = [
        [
            panels.enlarge(images[0], scale),
            panels.mask_panel(
                images[0], random_mask[0], 8, [(white, flags(2)), (red, flags(0))], scale
            ),
            panels.mask_panel(
                images[0], dpp_mask[0], 8, [(white, flags(2)), (blue, flags(4))], scale
            ),
            panels.enlarge(first[0], scale),
            panels.enlarge(second[0], scale),
        ],
        [
            panels.enlarge(images[1], scale),
            panels.mask_panel(images[1], random_mask[1], 8, [(red, flags(1, 3))], scale),
            panels.mask_panel(images[1], dpp_mask[1], 8, [(blue, flags(0, 5))], scale),
            panels.enlarge(first[1], scale),
            panels.enlarge(second[1], scale),
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


def test_three_masks_without_reconstructions(monkeypatch):
    monkeypatch.setattr(masks_figure, "PANEL", 64)
    images = _noise(1, 32, 32, 3)
    masks = {
        name: _masked_except(16, 7, own)[None] for name, own in (("random", 1), ("DPP", 1),
                                                                 ("block", 3))
    }  # fmt: skip
    figure = masks_figure.draw_masks(images, [_shown(*item) for item in masks.items()], 8, "a note")
    canvas = _pixels(figure)
    for name, mask in masks.items():
        outlines = [
            (panels.BOTH, ~_masked_except(16, 7)),
            (
                masks_figure.COLORS.get(name, masks_figure.OTHER_ONLY),
                ~_masked_except(16, 3 if name == "block" else 1),
            ),
        ]
        assert len(_find(canvas, panels.mask_panel(images[0], mask[0], 8, outlines, 2))) == 1
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[:4] == ["Original", "random mask", "DPP mask", "block mask"]
    assert words[-5:] == ["visible in all", "random", "DPP", "block", "a note"]
    _check_no_text_is_cut(figure)


def test_a_saved_figure_has_the_same_pixels_and_no_text_is_cut(tmp_path):
    images = _noise(1, 32, 32, 3)
    mask = _masked_except(16, 0, 5)[None]
    shown = [_shown(name, mask, images) for name in ("random", "DPP")]
    figure = masks_figure.draw_masks(images, shown, 8)
    figure.savefig(tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved.convert("RGB")), _pixels(figure))
    assert _check_no_text_is_cut(figure) == 5 + 2 + 3


def test_draw_tau_tells_greedy_picks_from_the_fill():
    images = _noise(1, 32, 32, 3)
    masks = {1.0: _masked_except(16, 1, 2)[None], 0.0: _masked_except(16, 1, 9)[None]}
    greedy = {1.0: np.zeros((1, 16), bool), 0.0: ~masks[0.0]}
    figure = tau_figure.draw_tau(images, masks, greedy, 8)
    canvas, scale = _pixels(figure), panels.panel_scale(32, panels.PANEL)
    for tau, color in ((0.0, tau_figure.GREEDY), (1.0, tau_figure.FILL)):
        panel = panels.mask_panel(images[0], masks[tau][0], 8, [(color, ~masks[tau][0])], scale)
        assert len(_find(canvas, panel)) == 1
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words.index("τ = 0 (DPP)") < words.index("τ = 1 (random)")
    assert "2 DPP + 0 random" in words and "0 DPP + 2 random" in words


def test_figures_of_unequal_length_are_refused():
    images = _noise(2, 16, 16, 3)
    mask = np.ones((1, 4), bool)
    with pytest.raises(ValueError, match="mask of DPP mask has 1 rows for 2 images"):
        masks_figure.draw_masks(images, [_shown("DPP", mask)], 8)
    with pytest.raises(ValueError, match="no image"):
        tau_figure.draw_tau(images[:0], {0.5: mask[:0]}, {0.5: mask[:0]}, 8)


# Attention.


def test_an_attention_panel_is_brightest_where_the_weight_is_largest():
    weights = np.linspace(0.0, 0.1, 6)[[3, 1, 5, 0, 4, 2]]  # a grid of 2 x 3
    panel = panels.attention_panel(weights, (2, 3), 4)
    assert panel.shape == (8, 12, 3) and panel.dtype == np.uint8
    patches = panel.reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, 16, 3)
    assert (patches == patches[:, :1]).all()  # one colour a patch
    light = patches[:, 0].astype(float) @ [0.2126, 0.7152, 0.0722]
    np.testing.assert_array_equal(np.argsort(light), np.argsort(weights))
    assert light[2] > 230 and light[3] < 5
    # each map has its own scale, nothing may be infinite, and no attention at all is black
    np.testing.assert_array_equal(panels.attention_panel(7 * weights, (2, 3), 4), panel)
    np.testing.assert_array_equal(
        panels.attention_panel([np.nan, np.inf, 1.0], (1, 3), 2),
        panels.attention_panel([0.0, 0.0, 0.5], (1, 3), 2),
    )
    assert (panels.attention_panel(np.zeros(6), (2, 3), 4) < 5).all()


def test_the_border_runs_between_masked_and_visible():
    panel = np.full((8, 12, 3), 9, np.uint8)  # a grid of 2 x 3 patches of 4 pixels
    edged = panels.border(panel, _masked_except(6, 0), (2, 3))
    white = np.zeros((8, 12), bool)
    white[3:5, 0:4] = white[0:4, 3:5] = True
    assert (edged[white] == 255).all() and (edged[~white] == 9).all() and (panel == 9).all()
    np.testing.assert_array_equal(panels.border(panel, np.ones(6, bool), (2, 3)), panel)


def _attention(images, heads, num_patches):
    weights = np.random.default_rng(2).dirichlet(np.ones(num_patches), (images, heads))
    return weights.astype(np.float32)


def test_draw_attention_sets_maps_and_masks_beside_the_image(monkeypatch):
    monkeypatch.setattr(attention_figure, "SMALL_PANEL", 64)
    images, attention = _noise(2, 16, 32, 3), _attention(2, 3, 8)
    masks = {
        "One": np.stack([_masked_except(8, 0, 5), _masked_except(8, 2)]),
        "Other": np.stack([_masked_except(8, 1), _masked_except(8, 3, 4, 7)]),
    }
    figure = attention_figure.draw_attention(images, attention, masks, 8)
    canvas, scale, grid = _pixels(figure), 2, (2, 4)
    corners = []
    for row in range(2):
        expected = [
            panels.enlarge(images[row], scale),
            panels.attention_panel(attention[row].mean(axis=0), grid, 8 * scale),
            *(panels.attention_panel(weights, grid, 8 * scale) for weights in attention[row]),
            *(
                panels.border(
                    panels.mask_panel(images[row], mask[row], 8, scale=scale), mask[row], grid
                )
                for mask in masks.values()
            ),
        ]
        places = [_find(canvas, panel) for panel in expected]
        assert all(len(found) == 1 for found in places)
        corners.append([found[0] for found in places])
    corners = np.array(corners)
    assert (np.ptp(corners[:, :, 0], axis=1) == 0).all()
    assert (np.ptp(corners[:, :, 1], axis=0) == 0).all()
    assert (np.diff(corners[0, :, 1]) > 32 * scale).all()
    words = [text.get_text() for text in figure.axes[0].texts]
    titles = ["Original", "Mean of\nheads", "Head 1", "Head 2", "Head 3", "One", "Other"]
    assert words[:7] == titles
    assert words[7 + 1] == f"max {attention[0].mean(axis=0).max():.1%}"
    assert words[7 + 3] == f"max {attention[0, 1].max():.1%}"
    assert words[7 + 5 : 7 + 7] == ["6 masked", "7 masked"]


def test_the_attention_map_has_its_maximum_in_the_right_patch():
    image, attention = np.zeros((1, 32, 32, 3), np.uint8), np.full((1, 1, 16), 0.01, np.float32)
    attention[0, 0, 6] = 0.8  # row 1, column 2 of a 4 x 4 grid
    canvas = _pixels(attention_figure.draw_attention(image, attention, {}, 8)).astype(int)
    scale = panels.panel_scale(32, panels.SMALL_PANEL)
    panel = panels.attention_panel(attention[0, 0], (4, 4), 8 * scale)
    found = _find(canvas, panel)
    assert len(found) == 2  # the mean over one head, and the head
    for top, left in found:
        map_ = canvas[top : top + 32 * scale, left : left + 32 * scale].sum(axis=2)
        y, x = np.unravel_index(np.argmax(map_), map_.shape)
        assert (y // (8 * scale), x // (8 * scale)) == (1, 2)


@pytest.mark.parametrize("heads, shown", [(6, 6), (9, 6)])
def test_at_most_six_heads_are_drawn_and_no_text_is_cut(heads, shown):
    images, mask = _noise(1, 32, 32, 3), _masked_except(16, 0, 5)[None]
    names = ("Random", "Block", "AttMask\n(high)", "AttMask\n(hint)", "DPP\n(τ = 0.85)")
    names = tuple(f"{name}\n100%" for name in names)
    figure = attention_figure.draw_attention(
        images, _attention(1, heads, 16), dict.fromkeys(names, mask), 8, "x"
    )
    words = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert sum(word.startswith("Head ") for word in words) == shown
    assert words[-1] == ("heads 1 to 6 of 9; the mean is over all 9; x" if heads > 6 else "x")
    _check_no_text_is_cut(figure)


def test_attention_of_another_shape_is_refused():
    images, mask = _noise(2, 16, 16, 3), np.ones((2, 4), bool)
    with pytest.raises(ValueError, match="1 rows for 2 images"):
        attention_figure.draw_attention(images, np.ones((1, 3, 4)), {}, 8)
    with pytest.raises(ValueError, match="Random has 1 rows"):
        attention_figure.draw_attention(images, np.ones((2, 3, 4)), {"Random": mask[:1]}, 8)
    with pytest.raises(ValueError, match="2x2 patches"):
        attention_figure.draw_attention(images, np.ones((2, 3, 5)), {}, 8)


# Curves.


def _records():
    records = [
        {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": 1.0, "num_greedy": 4.0}
        for step in range(1, 9)
    ]
    return [*records, {"step": 8, "val_loss": 0.3, "knn": 0.5}]


@pytest.mark.parametrize("columns", [5, 7, 9])
def test_titles_stay_over_their_columns(columns):
    long = ["Cells mask, 2 x 2 patches\n(this run)", "DPP mask, τ = 0.9", "Masks from my_masks.npy"]
    titles = [*long, *["Reconstruction\nfrom random"] * (columns - 3)]
    panel = np.zeros((360, 360, 3), np.uint8)
    figure = panels.compose([[panel] * columns], titles, [], [])
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert len(boxes) == columns and boxes[0].y1 <= figure.bbox.height
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
    assert boxes[-1].x1 <= figure.bbox.width


def _titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_curves_show_what_was_logged_and_leave_out_what_was_not():
    assert len(_titles(curves.draw_curves(_records()))) == 3
    unlabelled = [{"step": r["step"], "loss": r["loss"]} for r in _records() if "loss" in r]
    assert _titles(curves.draw_curves(unlabelled)) == ["Loss"]
    with pytest.raises(ValueError, match="nothing to draw"):
        curves.draw_curves([{"step": 1, "lr": 0.1}])


def test_curves_hold_the_values_and_skip_what_is_not_finite():
    records = [*_records(), {"step": 9, "loss": None}, {"step": 10, "loss": float("nan")}]
    loss, knn, picks = curves.draw_curves(records).axes
    steps, values = loss.lines[0].get_data()
    np.testing.assert_array_equal(steps, range(1, 9))
    np.testing.assert_allclose(values, 1 / np.arange(1, 9))
    assert loss.lines[1].get_data()[1].tolist() == [0.3]
    assert knn.lines[0].get_data()[1].tolist() == [0.5]
    assert set(picks.lines[0].get_data()[1]) == {4.0}


def test_several_runs_are_overlaid_and_named():
    random = [{k: v for k, v in r.items() if k != "num_greedy"} for r in _records()]
    figure = curves.draw_curves({"dpp": _records(), "random": random})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["dpp, train", "dpp, validation", "random, train", "random, validation"]
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == ["dpp"]


def _probes(*shares, pixels=0.2, images=100):
    levels = {"knn_pixels": pixels, "knn_chance": 0.1, "knn_images": images}
    return [{"step": step, "knn": share} | levels for step, share in enumerate(shares)]


def test_a_knn_accuracy_stands_beside_chance_raw_pixels_and_its_error():
    (knn,) = curves.draw_curves(_probes(0.5, 0.6)).axes
    line, pixels, chance = (list(line.get_ydata()) for line in knn.lines)
    assert (line, pixels, chance) == ([0.5, 0.6], [0.2, 0.2], [0.1, 0.1])
    (band,) = (path.vertices for area in knn.collections for path in area.get_paths())
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.45, 0.6 + 0.24**0.5 / 10])
    assert knn.get_ylim()[0] < 0.1 and 0.65 < knn.get_ylim()[1] < 0.7
    words = [text.get_text() for text in knn.get_legend().get_texts()]
    assert words == ["± standard error, 100 images", "raw pixels", "chance"]
    # what two runs have in common is drawn once, and what they have not in their colours
    figure = curves.draw_curves({"a": _probes(0.5), "b": _probes(0.6, pixels=0.3)}, "Not alike.")
    (knn,) = figure.axes
    colors = [line.get_color() for line in knn.lines]
    assert len(colors) == 5 and colors[:2] == colors[2:4] and colors[4] not in colors[:4]
    assert figure.get_supxlabel() == "Not alike."
    _check_no_text_is_cut(figure)


@pytest.mark.parametrize("shares", [(0.3, 0.305), (0.999, 1.0), (0.0, 0.001), (0.5,), (0.1, 0.9)])
def test_half_a_point_does_not_fill_an_axis(shares):
    low, high = axes_of_figures.share_limits(shares)
    assert 0 <= low <= min(shares) and max(shares) <= high <= 1
    assert high - low >= 0.1 - 1e-9 and high - low < 1.2 * max(0.1, max(shares) - min(shares))
    # without anything to compare with as well
    (knn,) = curves.draw_curves([{"step": 1, "knn": share} for share in shares]).axes
    np.testing.assert_allclose(knn.get_ylim(), (low, high))


def _ibot_records(num_steps=8):
    return [
        {
            "step": step,
            "loss": 10.0 - 0.1 * step,
            "loss_class": 4.0,
            "loss_patch": 6.0 - 0.1 * step,
            "teacher_entropy": 3.0,
            "prototype_entropy": 5.0,
            "kl": 1.0,
        }
        for step in range(1, num_steps + 1)
    ] + [{"step": num_steps, "knn": 0.5}]


def test_the_parts_of_a_loss_and_the_entropies_have_panels_of_their_own():
    figure = curves.draw_curves(_ibot_records())
    assert _titles(figure) == ["Loss", curves.ENTROPY, curves.KNN]
    loss, entropy, knn = figure.axes
    last = [line.get_data()[1][-1] for line in loss.lines]
    np.testing.assert_allclose(last, [9.2, 4.0, 5.2])
    assert [line.get_data()[1][-1] for line in entropy.lines] == [3.0, 5.0, 1.0]
    assert [line.get_data()[1].tolist() for line in knn.lines] == [[0.5]]
    for axes in (loss, entropy):
        assert len({line.get_linestyle() for line in axes.lines}) == 3
    words = [text.get_text() for text in loss.get_legend().get_texts()]
    assert words == ["total", "class token", "patches"]


def test_runs_with_parts_are_told_apart_by_colour_and_parts_by_dash():
    figure = curves.draw_curves({"a": _ibot_records(), "b": _ibot_records()})
    figure.canvas.draw()
    width = figure.canvas.get_width_height()[0]
    for axes in figure.axes[:2]:
        colors = [line.get_color() for line in axes.lines]
        assert colors[0] != colors[3] and len(set(colors[:3])) == len(set(colors[3:])) == 1
        dashes = [line.get_linestyle() for line in axes.lines]
        assert dashes[:3] == dashes[3:] and len(set(dashes)) == 3
        below = axes.get_legend()
        (inside,) = (legend for legend in axes.artists if legend is not below)
        assert [text.get_text() for text in inside.get_texts()] == ["a", "b"]
        box = below.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 < axes.bbox.y0
    boxes = [axes.get_legend().get_window_extent() for axes in figure.axes[:2]]
    assert not boxes[0].overlaps(boxes[1])


def test_runs_of_both_methods_share_the_panels():
    figure = curves.draw_curves({"mae": _records(), "ibot": _ibot_records()})
    assert _titles(figure) == ["Loss", curves.ENTROPY, curves.KNN, curves.PICKS]
    assert [len(axes.lines) for axes in figure.axes] == [5, 3, 2, 1]
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert words == ["total", "validation", "class token", "patches"]


def test_smoothing_keeps_a_constant_and_the_first_value():
    np.testing.assert_allclose(curves._smooth(np.full(50, 3.0), 5), 3.0)
    values = np.arange(50.0)
    smooth = curves._smooth(values, 5)
    assert smooth[0] == 0.0
    np.testing.assert_allclose(smooth[5:-5], values[5:-5])


@pytest.mark.parametrize("runs", (3, 8))
def test_many_encoders_are_told_apart_and_named_above_their_lines(runs):
    names = [f"an encoder with a long name {i}" for i in range(runs)]
    depths_of = {name: {"mean": [i, i + 1], "error": [0, 0]} for i, name in enumerate(names)}
    by_depth = depths.draw_depths(depths_of, "y", levels={"chance": 0.5})
    by_row = shares.draw_shares({name: {"row": (0.5, 0.1)} for name in names}, "x")
    for figure, with_levels in ((by_depth, ["chance"]), (by_row, [])):
        figure.canvas.draw()
        (axes,) = figure.axes
        above = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        beside = (
            [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []
        )
        expected = (names, with_levels) if runs > 3 else ([], names + with_levels)
        assert (above, beside) == expected
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
            assert box.y0 >= axes.get_window_extent().y1
    (axes,) = by_depth.axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == runs + 1


def test_an_encoder_that_a_panel_lacks_keeps_its_look_and_its_name():
    curve = {"mean": [0.1, 0.2], "error": [0.0, 0.0]}
    of_panels = ({"three heads": curve}, {"one head": curve, "three heads": curve})
    figure = depths.draw_panels([depths.Panel(curves, "y") for curves in of_panels])
    first, second = figure.axes
    legend = first.get_legend()
    named = dict(
        zip([text.get_text() for text in legend.get_texts()], legend.get_lines(), strict=True)
    )
    assert list(named) == ["three heads", "one head"] and second.get_legend() is None
    colours = {label: line.get_color() for label, line in named.items()}
    assert colours["three heads"] != colours["one head"]
    assert [line.get_color() for line in first.get_lines()] == [colours["three heads"]]
    assert [line.get_color() for line in second.get_lines()] == [
        colours["one head"], colours["three heads"]
    ]  # fmt: skip
