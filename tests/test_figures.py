"""What a run's figures show."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from matplotlib.figure import Figure
from ml_collections import config_dict
from PIL import Image

from dppmask_jax import patches
from dppmask_jax.errors import InputError
from dppmask_jax.evals import reconstruct
from dppmask_jax.evals.base import Evaluation
from dppmask_jax.figures import __main__ as command
from dppmask_jax.figures import attention as attention_figure
from dppmask_jax.figures import curves, of_run, run_masks, untrained
from dppmask_jax.figures import masks as masks_figure
from dppmask_jax.figures import tau as tau_figure
from dppmask_jax.figures.images import read_images
from dppmask_jax.masking import Seen, export_masks
from dppmask_jax.methods import ibot_masks
from dppmask_jax.methods.base import Method
from dppmask_jax.pixel_format import RGB
from dppmask_jax.runs import comparable

ROOT = Path(__file__).parent.parent


def _noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class _Run:
    """A run as the figures need it: one head looks at bright patches, the other at red ones."""

    kind, name, has_masks, can_restore = "mae", "an MAE", True, False
    num_hidden = (6, 24)  # of 32
    image_size, resized = (32, 64), "resized"
    gives, mask_recipes = frozenset({"features", "attention"}), ibot_masks.RECIPES
    method = Method(None, None, (), None)
    pixels = RGB

    def __init__(
        self,
        can_reconstruct=True,
        has_attention=False,
        tau=0.8,
        tau_end=None,
        strategy="dpp",
        ratio=0.75,
        norm_pix=True,
    ):
        self.can_reconstruct, self.has_attention = can_reconstruct, has_attention
        self.selection_settings = {"kernel": "gaussian", "bandwidth": 1.0, "threshold_on": "d2"}
        self.config = config_dict.ConfigDict(
            {
                "image_size": (32, 64),
                "data": {"range": "auto"},
                "model": {"patch_size": 8},
                "mask": {
                    "tau": tau,
                    "tau_end": tau_end,
                    "strategy": strategy,
                    "ratio": ratio,
                    "attention": "low",
                    "normalize": "l2",
                    **self.selection_settings,
                },
                "loss": {"norm_pix": norm_pix},
            }
        )
        self.orders, self.borrowed = [], []

    def features(self, images):
        return patches.patchify(images.astype(np.float32), 8) - 127.5

    def masks(self, images, keys, masker, count):
        seen = Seen(
            (4, 8),
            features=lambda: self.features(images),
            attention=lambda: self.attention(images),
        )
        return masker.draw(keys, count, seen, count)

    def attention(self, images):
        pixels = patches.patchify(images.astype(np.float32), 8)
        weights = np.stack([pixels.mean(axis=2), pixels[..., ::3].mean(axis=2)], axis=1)
        return weights / weights.sum(axis=2, keepdims=True)

    def reconstruct(self, images, order, borrow_statistics=False):
        self.orders.append(np.asarray(order))
        self.borrowed.append(borrow_statistics)
        return np.full(images.shape, 2.0 * len(self.orders) - 2.5, np.float32)  # -0.5, then 1.5

    def example_images(self, num):
        return _noise(num, 32, 64, 3)


def _spy(monkeypatch, module, name, draws=False):
    """The arguments of the next call of a function of a module, as a list to be filled; unless it
    `draws`, the figure is left empty, which is faster."""
    seen, draw = [], getattr(module, name)

    def spy(*args):
        seen.extend(args)
        return draw(*args) if draws else Figure((1, 1))

    monkeypatch.setattr(module, name, spy)
    return seen


# From a run to files.


@pytest.mark.parametrize(
    "can, names",
    [
        ({"can_reconstruct": True}, ["masks.png", "tau.png"]),
        ({"has_attention": True}, ["masks.png", "tau.png", "attention.png"]),
        ({}, ["masks.png", "tau.png"]),
        ({"strategy": "block"}, ["masks.png"]),  # which have no tau
        ({"has_attention": True, "has_masks": False}, ["attention.png"]),
        ({"has_masks": False}, []),
    ],
)
def test_a_run_is_drawn_as_far_as_its_method_goes(tmp_path, can, names):
    can = {"can_reconstruct": False, **can}
    has_masks = can.pop("has_masks", True)
    run = _Run(**can)
    run.has_masks = has_masks
    (tmp_path / "new").mkdir()
    paths = of_run.write_run_figures(tmp_path / "new", run, _noise(1, 32, 64, 3))
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)


def test_only_what_the_method_can_show_is_drawn_beside_its_masks(monkeypatch):
    drawn, run = _spy(monkeypatch, masks_figure, "draw_masks"), _Run(strategy="block")
    run.gives = frozenset()  # no features: no DPP
    masks_figure.mask_figure(run, _noise(1, 32, 64, 3))
    assert [one.title for one in drawn[1]] == ["Random mask", "Block mask\n(this run)"]


def test_masks_that_would_throw_all_that_they_hide_are_not_drawn():
    run = _Run(False, True)
    for num_hidden, can in ((6, False), (7, True)):  # a fifth of 32 is thrown
        assert run_masks.can_draw(run, run_masks.way(run, "amt", num_hidden)) == can


def test_both_masks_are_drawn_from_one_noise(tmp_path, monkeypatch):
    drawn, run = _spy(monkeypatch, masks_figure, "draw_masks"), _Run(tau=0.0)
    masks_figure.mask_figure(run, _noise(2, 32, 64, 3))
    _, (of_random, of_dpp), patch_size, _ = drawn
    assert ((~of_random.mask).sum(axis=1) == 8).all() and ((~of_dpp.mask).sum(axis=1) == 8).all()
    assert of_dpp.captions == ["8 DPP + 0 random"] * 2 and patch_size == 8
    # clipped to what a pixel can hold
    assert (of_random.reconstruction == 0).all() and (of_dpp.reconstruction == 255).all()
    # the first patch in noise order is the first pick of either
    orders = run.orders
    np.testing.assert_array_equal(orders[0][:, 0], orders[1][:, 0])
    for mask, order in ((of_random.mask, orders[0]), (of_dpp.mask, orders[1])):
        for row in range(2):
            assert set(np.flatnonzero(~mask[row])) == set(order[row, :8].tolist())
    assert not np.array_equal(orders[0][0], orders[0][1])  # another noise for each image


@pytest.mark.parametrize(
    "strategy, titles",
    [
        ("random", ["Random mask\n(this run)", "DPP mask, τ = 0.8"]),
        ("dpp", ["Random mask", "DPP mask, τ = 0.8\n(this run)"]),
        ("block", ["Random mask", "DPP mask, τ = 0.8", "Block mask\n(this run)"]),
        ("attention", ["Random mask", "DPP mask, τ = 0.8", "AttMask (low)\n(this run)"]),
    ],
)
def test_the_masks_of_the_run_are_among_those_drawn(tmp_path, monkeypatch, strategy, titles):
    drawn, images = _spy(monkeypatch, masks_figure, "draw_masks"), _noise(1, 32, 64, 3)
    ibot = strategy == "attention"
    run = _Run(not ibot, ibot, strategy=strategy, ratio=(0.0, 0.5) if ibot else 0.75)
    masks_figure.mask_figure(run, images)
    _, shown, _, note = drawn
    assert [one.title for one in shown] == titles
    hidden = 16 if ibot else 24
    assert all((one.mask.sum(axis=1) == hidden).all() for one in shown)
    assert all((one.reconstruction is None) == ibot for one in shown)
    assert note.startswith(f"{hidden} of 32 patches are hidden") and ("brightness" in note) != ibot
    if ibot:
        weights = run.attention(images).mean(axis=1)[0]
        assert set(np.flatnonzero(shown[2].mask[0])) == set(np.argsort(weights)[:16].tolist())
    if strategy == "block":
        assert len(run.orders) == 3
        assert set(np.flatnonzero(~shown[2].mask[0])) == set(run.orders[2][0, :8].tolist())


def test_an_unknown_strategy_is_not_drawn_as_another(tmp_path):
    with pytest.raises(InputError, match=r"config\.mask\.strategy='spiral'"):
        masks_figure.mask_figure(_Run(strategy="spiral"), _noise(1, 32, 64, 3))


@pytest.mark.parametrize(
    "norm_pix, borrow, words",
    [
        (True, False, "means over the visible ones, weighted by 1 / distance⁴"),
        (True, True, "borrowed from the original"),
        (False, True, ""),
    ],
)
def test_the_picture_says_where_brightness_comes_from(
    tmp_path, monkeypatch, norm_pix, borrow, words
):
    drawn, run = _spy(monkeypatch, masks_figure, "draw_masks"), _Run(norm_pix=norm_pix)
    masks_figure.mask_figure(run, _noise(1, 32, 64, 3), borrow_statistics=borrow)
    assert drawn[-1] == "24 of 32 patches are hidden" + (
        f"; their brightness and contrast are {words}" if words else ""
    )
    assert run.borrowed == [borrow] * 2


@pytest.mark.parametrize("given, drawn_at", [(None, 0.7), (0.8, 0.8)])
def test_the_task_draws_the_tau_of_the_run(tmp_path, monkeypatch, given, drawn_at):
    own, seen = "block" if given else "dpp", {}
    monkeypatch.setattr(
        masks_figure, "mask_figure", lambda *args, **settings: seen.update(settings)
    )
    config = tiny.evaluation("task=reconstruct", tau=given, borrow_statistics=given is None)
    run = _Run(tau=0.7, strategy=own)
    out = reconstruct.run(Evaluation(config, run, tmp_path, None, None, print))
    assert seen["tau"] == given and seen["borrow_statistics"] == (given is None)
    of_run = ", block" * (own == "block")
    assert out.protocol.startswith(f"masks: random, DPP (τ = {drawn_at}){of_run}, from the same")
    how = "borrowed from the original" if given is None else "weighted by 1 / distance⁴"
    assert "their brightness and contrast are" in out.protocol and out.protocol.endswith(how)


def test_the_attention_figure_has_the_masks_of_every_strategy(tmp_path, monkeypatch):
    drawn = _spy(monkeypatch, attention_figure, "draw_attention")
    by_tau = _spy(monkeypatch, tau_figure, "draw_tau")
    # one that hides other shares than its recipe
    run = _Run(False, True, ratio=(0.0, 0.75))
    images = _noise(2, 32, 64, 3)
    attention_figure.attention_figure(run, images, seed=3)
    tau_figure.tau_figure(run, images, seed=3)
    shown, attention, masks, patch_size, note, thrown = drawn
    np.testing.assert_array_equal(shown, images)
    np.testing.assert_array_equal(attention, run.attention(images))
    assert patch_size == 8 and "the share that is hidden" in note
    # of 32: 0.7 is 22, 0.3 is 9, and the run's own 0.75 is 24
    expected = {
        "Random\n69%": 22,
        "Block\n28%": 9,
        "AttMask\n(high)\n28%": 9,
        "AttMask\n(low)\n28%": 9,
        "AttMask\n(hint)\n22%": 7,  # of 3 patches that hints may come from, 2 are shown
        "AMT\n(20% thrown)\n69%": 22,
        "DPP\n(τ = 0.8)\n75%": 24,
    }
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert (mask.sum(axis=1) == expected[name]).all(), name
    ((title, away),) = thrown.items()
    assert title.startswith("AMT") and (away.sum(axis=1) == 6).all()  # a fifth of 32
    weights = attention.mean(axis=1)
    high, low, hint = (mask for name, mask in masks.items() if "AttMask" in name)
    for row in range(2):
        order = np.argsort(weights[row])
        assert set(np.flatnonzero(high[row])) == set(order[-9:].tolist())
        assert set(np.flatnonzero(low[row])) == set(order[:9].tolist())
        assert set(np.flatnonzero(high[row] & ~hint[row])) <= set(order[-3:].tolist())
    # the same noise as in the other figures: what 0.7 hides, 0.75 hides as well
    assert (masks["Random\n69%"] <= by_tau[1][1.0]).all()
    np.testing.assert_array_equal(masks["DPP\n(τ = 0.8)\n75%"], by_tau[1][0.8])


def test_the_tau_at_the_end_is_drawn(tmp_path, monkeypatch):
    drawn, run = _spy(monkeypatch, masks_figure, "draw_masks"), _Run(tau_end=1.0)
    masks_figure.mask_figure(run, _noise(1, 32, 64, 3))
    of_random, of_dpp = drawn[1]
    assert of_dpp.title == "DPP mask, τ = 1\n(this run)"
    np.testing.assert_array_equal(of_random.mask, of_dpp.mask)


def _records():
    return [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "knn": 0.5}]


def test_write_curves_reads_a_run_and_says_what_is_wrong(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in _records()) + '{"step": 9, "l')
    assert curves.write_curves(tmp_path / "out", path).is_file()
    assert curves.write_curves(tmp_path / "out", {"a": path, "b": path}).is_file()
    with pytest.raises(InputError, match=r"no .*absent"):
        curves.write_curves(tmp_path, tmp_path / "absent")
    path.write_text("not json\n" * 2)
    with pytest.raises(InputError, match="damaged"):
        curves.write_curves(tmp_path, path)
    path.write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(InputError, match="nothing to draw"):
        curves.write_curves(tmp_path, path)


# The command.


def test_read_images_takes_files_and_folders_in_order(tmp_path):
    for name in ("b/2.png", "b/1.png", "a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        value = 60 * (1 + ["a.png", "b/1.png", "b/2.png"].index(name))
        Image.new("RGB", (50, 40), (value, 0, 0)).save(path)
    (tmp_path / "b" / "0.txt").write_text("no image")
    images = read_images([tmp_path / "b", tmp_path / "a.png"], (16, 24), 9)
    assert images.shape == (3, 16, 24, 3) and images.dtype == np.uint8
    assert images[:, 8, 12, 0].tolist() == [120, 180, 60]
    assert len(read_images([tmp_path], (16, 24), 2)) == 2
    with pytest.raises(InputError, match="no file or folder"):
        read_images([tmp_path / "absent"], (16, 24), 2)
    with pytest.raises(InputError, match=r"0\.txt is no readable image"):
        read_images([tmp_path / "b" / "0.txt"], (16, 24), 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no readable image in"):
        read_images([tmp_path / "empty"], (16, 24), 2)


def test_the_command_draws_every_figure(tmp_path, monkeypatch, capsys):
    lines = "".join(json.dumps(record) + "\n" for record in _records())
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    monkeypatch.setattr(command, "load_run", lambda workdir, image_size: _Run())
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    configs = [
        {"method": "mae", "mask": {"strategy": strategy, "ratio": 0.75, "tau": tau}}
        for strategy, tau in (("dpp", 0.9), ("random", 0.5))
    ]
    for name, config in zip(("mine", "other"), configs, strict=True):
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    notes = _spy(monkeypatch, curves, "draw_curves")
    command.main(["--workdir", mine, "--compare", other, "--num=2"])
    printed, warned = capsys.readouterr()
    printed = printed.removeprefix("resized").split()
    note = "losses under different masks are not comparable: mask.strategy dpp | random"
    assert warned == f"warning: {note}\n" and notes[-1] == note
    names = ("masks.png", "tau.png", "curves.png")
    assert printed == [str(tmp_path / "mine" / "figures" / name) for name in names]
    assert all(Path(path).is_file() for path in printed)
    Image.fromarray(_noise(20, 30, 3)).save(tmp_path / "x.png")
    out = str(tmp_path / "out")
    command.main(["--workdir", mine, "--images", str(tmp_path / "x.png"), "--out", out])
    assert (tmp_path / "out" / "masks.png").is_file()
    with pytest.raises(InputError, match=r"no .*absent"):
        command.main(["--workdir", mine, "--compare", str(tmp_path / "absent")])
    with pytest.raises(InputError, match="--num"):
        command.main(["--workdir", mine, "--num=0"])


def test_a_run_that_was_not_trained_here_is_drawn_without_curves(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_run", lambda workdir, image_size: _Run())
    monkeypatch.setattr(command, "write_run_figures", lambda *args, **kwargs: [Path("drawn")])
    command.main(["--workdir", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "resized",
        f"no curves: {tmp_path} has no metrics.jsonl, it was not trained here",
        "drawn",
    ]

    monkeypatch.setattr(_Run, "has_masks", False)
    with pytest.raises(InputError, match="masks nothing"):
        command.main(["--workdir", str(tmp_path)])
    lines = "".join(json.dumps(record) + "\n" for record in _records())
    (tmp_path / "metrics.jsonl").write_text(lines)
    command.main(["--workdir", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "curves alone: this is an MAE run, which masks nothing",
        str(tmp_path / "figures" / "curves.png"),
    ]
    monkeypatch.setattr(_Run, "has_masks", True)

    def no_images(self, num):
        raise InputError("not prepared")

    monkeypatch.setattr(_Run, "example_images", no_images)
    with pytest.raises(InputError, match="not prepared; or name others: --images"):
        command.main(["--workdir", str(tmp_path)])


def test_masks_without_a_run_are_those_that_are_exported(tmp_path, monkeypatch, capsys):
    masks = _spy(monkeypatch, untrained, "draw_masks")
    by_tau = _spy(monkeypatch, untrained, "draw_tau")
    Image.fromarray(_noise(16, 24, 3)).save(tmp_path / "x.png")
    flags = ["--images", str(tmp_path / "x.png"), "--out", str(tmp_path / "out"), "--seed=5"]
    command.main([*flags, "--image_size=16,24", "--patch_size=4", "--ratio=0.5", "--tau=0.8"])
    printed = capsys.readouterr().out.split()
    assert printed == [str(tmp_path / "out" / name) for name in ("masks.png", "tau.png")]
    images, (of_random, of_dpp), patch_size, note = masks
    assert images.shape == (1, 16, 24, 3) and patch_size == 4
    settings = {"patch_size": 4, "ratio": 0.5, "seed": 5}
    exported = export_masks(images, **settings, tau=0.8)
    np.testing.assert_array_equal(of_dpp.mask, exported.mask)
    at_random = export_masks(images, **settings, strategy="random")
    np.testing.assert_array_equal(of_random.mask, at_random.mask)
    assert not np.array_equal(of_dpp.mask, of_random.mask)
    picks = int(exported.num_greedy[0])
    assert of_dpp.captions == [f"{picks} DPP + {12 - picks} random"]
    assert of_random.reconstruction is None and of_dpp.reconstruction is None
    assert note.startswith("12 of 24 patches are hidden; ") and "untrained embedding" in note
    assert set(np.flatnonzero(by_tau[2][0.8][0])) == set(exported.order[0, :picks].tolist())
    assert by_tau[2][0.0].sum() == 12 and not by_tau[2][1.0].any()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--workdir=a", "--tau=0.5"], "--tau is for masks without a run"),
        (["--images=a", "--compare=b"], "--compare is for a run"),
        (["--images=a", "--borrow_statistics"], "--borrow_statistics is for a run"),
        (["--images=a", "--patch_size=0"], "--patch_size must be at least 1"),
        (["--images=a", "--patch_size=8,0"], "--patch_size must be at least 1, got 8x0"),
        (["--images=a", "--image_size=60,64"], "no multiple of the patches of 16 pixels"),
        (["--images=x.png", "--ratio=1"], "ratio must be in"),
        (["--images=x.png", "--tau=2"], "tau must be a number from 0 to 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(_noise(20, 30, 3)).save("x.png")
    with pytest.raises(InputError, match=words):
        command.main(flags)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_what_cannot_be_compared_is_named():
    def run(**fields):
        mask = {"strategy": "dpp", "ratio": 0.75, "tau": fields.pop("tau", 0.9)}
        evaluate = {"knn_feature": fields.pop("token", "patches")}
        return {"method": "mae", "seed": 0, "mask": mask, "evaluate": evaluate} | fields

    losses = "losses under different masks are not comparable: "
    assert comparable.warnings([run(), run(seed=1)]) == []
    assert comparable.warnings([run(), run(tau=0.8), run()]) == [f"{losses}mask.tau 0.9 | 0.8"]
    assert comparable.warnings([run(), run(loss={"norm_pix": False}, token="cls")]) == [
        "k-NN accuracies are not comparable: evaluate.knn_feature patches | cls"
    ], "what only one of them has makes no difference"
    assert comparable.warnings([run(), run(method="ibot", image_size=[8, 8])]) == [
        "losses are not comparable: method mae | ibot"
    ]
    # a field that only the other strategy reads
    random = [run(mask={"strategy": "random", "ratio": 0.75, "tau": tau}) for tau in (0.1, 0.9)]
    assert comparable.warnings(random) == []
    for run_of, features in zip(random, ("embedding", "pixels"), strict=True):
        run_of["mask"]["features"] = features
    assert comparable.warnings(random) == [], "no features are looked at"
    own = [run(mask={"strategy": "own", "ratio": 0.75, "tau": tau, "defined_in": f"/{tau}/own.py"})
           for tau in (0.1, 0.9)]  # fmt: skip
    assert comparable.warnings(own) == [f"{losses}mask.tau 0.1 | 0.9"]
    assert comparable.warnings([{"task": "finetune"}, {"task": "finetune"}]) == []


@pytest.mark.parametrize(
    "method,field,differs",
    [
        ("hybrid", "hybrid.weight", True),
        ("adios", "masks.count", True),
        ("adios", "masks.optim.base_lr", True),
        ("moco", "batch_size", True),
        ("adios", "optim.accum_steps", True),
        ("hybrid", "data.crop_scale", True),
        ("ibot", "data.local_views", True),
        ("moco", "optim.base_lr", False),
        ("mae", "batch_size", False),
        ("mae", "data.crop_scale", False),
        ("elsewhere", "batch_size", False),
    ],
)
def test_a_method_says_what_its_loss_depends_on(method, field, differs):
    runs = [{"method": method, "seed": 0, field: value} for value in (1, 2)]
    found = comparable.warnings(runs)
    assert found == ([f"losses are not comparable: {field} 1 | 2"] if differs else [])


def test_run_labels_are_short_and_distinct():
    def label(*paths):
        return comparable.labels([Path(path) for path in paths])

    assert label("/runs/a", "/runs/b") == ["a", "b"]
    assert label("/runs/a/1", "/runs/b/1") == ["a/1", "b/1"]
    assert label("/runs/a", "/runs/a") == ["a (1)", "a (2)"]
