"""Grids of pre-training and evaluation: what is trained, what is left alone, what is refused."""

import itertools
import json
import re
import shutil
import sys

import pytest
import tiny
from matplotlib.ticker import PercentFormatter
from PIL import Image

from configs import eval as eval_config
from dppmask_jax import evaluate, pretrain, sweep
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.figures.sweep import Panel, draw_sweep
from dppmask_jax.models import encoders
from dppmask_jax.runs import metrics, workdir
from dppmask_jax.sweeps import points as sweep_points
from dppmask_jax.sweeps import summary
from dppmask_jax.sweeps.grid import grid_points
from dppmask_jax.tasks import TASKS

GRID = "mask.ratio=0.5,0.75 mask.tau=0.9,1"


def evaluation(**changes):
    config = eval_config.get_config("task=linear,dataset=shapes")
    config.solver = "ridge"
    for name, value in changes.items():
        config[name] = value
    return config.lock()


@pytest.fixture
def calls(monkeypatch):
    """What is trained and evaluated, in order, by stand-ins that only write the files."""
    made = []

    def train(config, folder):
        made.append(f"train {folder.name}")
        folder.mkdir(parents=True)
        workdir.write_config(config, folder)
        lines = ({"step": 0, "knn": 0.1}, {"step": 3, "loss": 0.5, "lr": 0.1, "val_loss": None})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluated(config, folder, command=""):
        made.append(f"evaluate {folder.name}")
        saved = json.loads((folder / "config.json").read_text())
        full = subjects.completed(config, workdir.from_json(saved))
        path = folder / records.result_name(config)
        record = {
            "config": workdir.to_json(full),
            "checkpoint": {"config": saved, "step": 3},
            "score": {"name": "accuracy", "value": saved["mask"]["ratio"], "std": None},
            "command": command,
            "files": [records.images_name(config)],
        }
        (folder / records.images_name(config)).touch()
        path.write_text(json.dumps(record))
        return path

    monkeypatch.setattr(pretrain, "train", train)
    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    return made


def both(*names):
    return [f"{what} {name}" for name in names for what in ("train", "evaluate")]


def test_every_combination_is_a_point_and_the_last_field_varies_fastest():
    config = tiny.config(mask__strategy="dpp")
    points = grid_points(config, "mask.ratio=0.5,0.75 mask.strategy=random,'dpp'")
    assert [point.name for point in points] == [
        "ratio-0.5_strategy-random",
        "ratio-0.5_strategy-dpp",
        "ratio-0.75_strategy-random",
        "ratio-0.75_strategy-dpp",
    ]
    assert points[2].values == {"mask.ratio": 0.75, "mask.strategy": "random"}
    assert points[2].config.mask.ratio == 0.75 and points[2].config.mask.strategy == "random"
    assert config.mask.strategy == "dpp"


def test_a_value_may_be_any_literal():
    grid = "mask.ratio=(0.0, 0.5),(0.25,) mask.tau_end=None,1e-1 optim.base_lr=1"
    points = grid_points(tiny.config("ibot"), grid)
    ratios = [point.values["mask.ratio"] for point in points]
    assert ratios == [(0.0, 0.5), (0.0, 0.5), (0.25,), (0.25,)]
    assert [point.values["mask.tau_end"] for point in points] == [None, 0.1, None, 0.1]
    assert points[0].name == "ratio-0.0-0.5_tau_end-None_base_lr-1.0"


def test_a_path_names_a_point_by_its_last_part_and_equal_ends_by_the_whole_field():
    grid = "data.source=folder:/a/b/some,folder:/c/other epochs=1 evaluate.every_epochs=2"
    names = [point.name for point in grid_points(tiny.config(), grid)]
    assert names[1] == "source-other_epochs-1.0_every_epochs-2.0"
    names = [
        point.name
        for point in grid_points(
            tiny.config("ibot"), "loss.class_temp.end=0.04 loss.patch_temp.end=0.07"
        )
    ]
    assert names == ["loss.class_temp.end-0.04_loss.patch_temp.end-0.07"]


@pytest.mark.parametrize(
    "grid,words",
    [
        ("", "is empty"),
        ("mask.rato=0.5", "did you mean mask.ratio"),
        ("mask=1", "unknown config field 'mask'"),
        ("mask.ratio", "lacks a value"),
        ("mask.ratio=0.5,", "lacks a value"),
        ("mask.ratio=half", "wrong type"),
        ("batch_size=8.5", "wrong type"),
        ("mask.ratio=0.5 mask.ratio=0.6", "twice"),
        ("mask.ratio=0.5,0.50", "two points"),
        ("mask.ratio=0.5,1.5", r"at mask.ratio=1.5: config.mask.ratio=1.5 is not allowed"),
        ("mask.tau_end=high", r"config.mask.tau_end='high'"),
        ("batch_size=True", r"config.batch_size=True"),
        ("data.source=folder:/is/not/there", "no folder /is/not/there"),
    ],
)
def test_a_bad_grid_is_one_line_before_anything_is_written(tmp_path, calls, grid, words):
    with pytest.raises(InputError, match=words) as caught:
        sweep.sweep(tiny.config(), evaluation(), grid, tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not calls and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "argument,changes,words",
    [
        ("task=linear", {"solver": "x"}, "--eval: config.solver"),
        ("task=reconstruct", {}, "gives no number"),
        ("task=backgrounds", {"classifier": "finetune"}, "a sweep does not make"),
        ("task=finetune", {"epochs": 0.0}, "the runs of a sweep have none"),
        ("task=frequencies", {"noise.classifier": "own"}, "the runs of a sweep have none"),
        ("task=knn", {"data.source": "folder:/is/not/there"}, "--eval: there is no folder"),
        (
            "task=linear",
            {"batch_size": 3},
            r"--eval: config\.batch_size=3 is not a positive multiple",
        ),
        ("task=finetune", {"epochs": 0.0}, "--eval: config.epochs=0 tests a classifier"),
        ("task=multilabel", {"data.source": "folder:colours"}, "--eval: .* needs several labels"),
        (
            "task=backgrounds",
            {"data.source": "folder:colours"},
            "--eval: .* needs foreground masks",
        ),
    ],
)
def test_a_bad_evaluation_is_refused_before_the_first_point(
    tmp_path, calls, monkeypatch, argument, changes, words
):
    for split, name in itertools.product(("train", "val"), ("blue", "red")):
        folder = tmp_path / "colours" / split / name
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16), name).save(folder / "1.png")
    monkeypatch.chdir(tmp_path)
    config = eval_config.get_config(argument)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        sweep.sweep(tiny.config(), config, GRID, tmp_path / "new")
    assert not calls


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_checked_without_a_run_or_says_why_no_sweep_takes_it(tmp_path, task):
    points = grid_points(tiny.config(model__size="Pi", image_size=(16, 16)), "mask.ratio=0.5")
    config = tiny.evaluation(f"task={task}")
    if task == "shift":
        config.changed = tiny.COMMON["data.source"]
    if because := TASKS[task].unswept(config):
        with pytest.raises(InputError, match=re.escape(f"--eval: {because}")):
            sweep._check_configs(points, (config,))
        return
    if "batch_size" in config:
        config.batch_size = 8
    try:
        sweep_points.check_data(points, config, tmp_path, "--eval")
    except InputError as error:  # shapes have one label an image
        assert task == "multilabel" and "needs several labels" in str(error)


def test_points_of_other_encoders_are_each_checked(tmp_path, calls):
    grid = "model.width=24,36 model.heads=3"
    config = tiny.evaluation("task=attentive", query_heads=8)
    with pytest.raises(InputError, match="query_heads=8 does not divide the encoder's width 36"):
        sweep.sweep(tiny.config(), config, grid, tmp_path / "new")
    assert not calls
    encoder = encoders.ENCODERS["vit"]
    blind = encoder._replace(build=lambda *a, **k: encoder.build(*a, **k)._replace(trace=None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(encoders.ENCODERS, "vit", blind)
        with pytest.raises(InputError, match=r"and model\.encoder=vit has none; name a ViT"):
            sweep.sweep(tiny.config(), tiny.evaluation("task=layers"), grid, tmp_path / "new")


def test_a_finished_point_is_left_alone_and_a_deleted_one_is_redone(tmp_path, calls, monkeypatch):
    folder = tmp_path / "sweep"
    path = sweep.sweep(tiny.config(), evaluation(), GRID, folder, "typed")
    names = ["ratio-0.5_tau-0.9", "ratio-0.5_tau-1.0", "ratio-0.75_tau-0.9", "ratio-0.75_tau-1.0"]
    assert calls == both(*names)
    record = json.loads(path.read_text())
    assert record["name"] == "sweep" and record["command"] == "typed"
    assert record["grid"] == {"mask.ratio": [0.5, 0.75], "mask.tau": [0.9, 1.0]}
    point = record["points"][2]
    assert point["values"] == {"mask.ratio": 0.75, "mask.tau": 0.9}
    assert point["evaluation"]["score"]["value"] == 0.75
    assert point["pretraining"] == {"knn": 0.1, "loss": 0.5}

    calls.clear()
    sweep.sweep(tiny.config(data__workers=1), evaluation(), GRID, folder, "typed")
    assert not calls

    shutil.rmtree(folder / names[1])
    sweep.sweep(tiny.config(), evaluation(), GRID, folder, "typed")
    assert calls == both(names[1])
    assert json.loads(path.read_text()) == record

    calls.clear()
    monkeypatch.setattr(pretrain, "train", lambda config, folder: None)  # complete
    (folder / names[2] / "eval_linear_ridge_images.npy").unlink()
    sweep.sweep(tiny.config(), evaluation(), GRID, folder, "typed")
    assert calls == [f"evaluate {names[2]}"], "what belongs to a record is missing"


def test_a_sweep_goes_on_at_the_point_that_was_interrupted(tmp_path, calls, monkeypatch):
    real = pretrain.train

    def interrupted(config, folder):
        if config.mask.tau == 1:
            raise KeyboardInterrupt
        real(config, folder)

    monkeypatch.setattr(pretrain, "train", interrupted)
    grid = "mask.tau=0.8,1,0.9"
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(tiny.config(), evaluation(), grid, tmp_path / "sweep")
    assert calls == both("tau-0.8")
    calls.clear()
    monkeypatch.setattr(pretrain, "train", real)
    sweep.sweep(tiny.config(), evaluation(), grid, tmp_path / "sweep")
    assert calls == both("tau-1.0", "tau-0.9")


def test_more_values_are_added_to_a_sweep_and_another_sweep_is_refused(tmp_path, calls):
    folder = tmp_path / "sweep"
    path = sweep.sweep(tiny.config(), evaluation(), "mask.tau=0.8", folder)
    calls.clear()
    sweep.sweep(tiny.config(), evaluation(), "mask.tau=0.7,0.8", folder)
    assert calls == both("tau-0.7")
    record = json.loads(path.read_text())
    del record["config"]["mask"]["cell"], record["eval"]["memory_gb"]  # fields that came later
    path.write_text(json.dumps(record))
    calls.clear()
    sweep.sweep(tiny.config(), evaluation(), "mask.tau=0.7,0.8", folder)
    assert not calls
    before = path.read_text()
    calls.clear()
    for config, other, grid, words in (
        (tiny.config(seed=1), evaluation(), "mask.tau=0.8", "seed: 0 -> 1"),
        (tiny.config(), evaluation(ridge=(1.0,)), "mask.tau=0.8", "eval.ridge"),
        (tiny.config(), evaluation(), "mask.ratio=0.5", "mask.tau -> mask.ratio"),
    ):
        with pytest.raises(InputError, match=words):
            sweep.sweep(config, other, grid, folder)
    assert not calls and path.read_text() == before


def test_several_evaluations_of_a_point_are_kept_and_more_are_added(tmp_path, calls, monkeypatch):
    folder, grid = tmp_path / "sweep", "mask.ratio=0.5,0.75"
    seen = []
    stand_in = evaluate.evaluate

    def told(config, folder, command=""):
        seen.append(config.task)
        return stand_in(config, folder, command)

    monkeypatch.setattr(evaluate, "evaluate", told)
    attention, knn = (tiny.evaluation(f"task={task}") for task in ("attention", "knn"))

    def run(*beside):
        calls.clear(), seen.clear()
        return sweep.sweep(tiny.config(), evaluation(), grid, folder, "typed", beside)

    path = run(attention)
    names = ["ratio-0.5", "ratio-0.75"]
    assert calls == [f"{what} {name}" for name in names for what in ("train", *["evaluate"] * 2)]
    assert seen == ["linear", "attention"] * 2
    for point in json.loads(path.read_text())["points"]:
        held = {"linear_ridge": point["evaluation"], **point["beside"]}
        assert list(held) == ["linear_ridge", "attention"]
        for name, of_one in held.items():
            kept = (folder / point["name"] / f"eval_{name}.json").read_text()
            assert json.loads(kept) == of_one

    run(attention)
    assert not calls
    monkeypatch.setattr(pretrain, "train", lambda config, folder: None)  # complete
    run(knn, attention)
    assert seen == ["knn", "knn"], "what is there is not measured again"
    assert [list(p["beside"]) for p in json.loads(path.read_text())["points"]] == [
        ["knn", "attention"]
    ] * 2
    (folder / "ratio-0.75" / "eval_attention.json").unlink()
    run(attention, knn)
    assert calls == ["evaluate ratio-0.75"] and seen == ["attention"]

    before = path.read_text()
    for beside, words in (
        ((attention,), "the evaluation knn -> none"),
        ((tiny.evaluation("task=attention", images=9), knn), r"attention\.images"),
        ((knn, attention, knn), r"--eval4: eval_knn\.json is written by --eval2 already"),
        ((knn, tiny.evaluation("task=reconstruct")), "--eval3: task reconstruct gives no number"),
    ):
        with pytest.raises(InputError, match=words):
            run(*beside)
        assert not calls and path.read_text() == before


def test_each_evaluation_has_a_panel_and_columns_of_its_own(tmp_path):
    points = _points(({"mask.ratio": 0.5}, 0.2, 0.1), ({"mask.ratio": 0.75}, 0.3, 0.1))
    for point, value in zip(points, (-1.5, -2.25), strict=True):
        score = {"name": "Δ", "value": value, "std": None, "standard_error": 0.25}
        score |= {"in_percent": False, "images": 300}
        other = {**point["evaluation"], "score": score, "config": {"task": "frequencies"}}
        point |= {"beside": {"frequencies": other}, "pretraining": {}}
        point["evaluation"]["data"] = other["data"] = {"val_images": 1000}
    header, _, first, *_ = summary.table(points).splitlines()
    assert re.split(r"  +", header) == ["mask.ratio", "x", "std over seeds", "Δ", "std over seeds"]
    assert re.split(r"  +", first) == ["0.5", "20.00 %", "10.00 %", "-1.5000 ± 0.2500"]
    assert summary.note(points) == (
        "1 run a point; x: 1,000 validation images, bars: standard deviation over the seeds of the "
        "evaluation; Δ: 300 validation images, bars: standard error over the images"
    )
    assert summary.draw(tmp_path, points).stat().st_size > 0
    shown = [
        Panel(summary.lines(of_one), "", {}, in_percent)
        for of_one, in_percent in zip(summary.of_each(points), (True, False), strict=True)
    ]
    accuracy, amplitude = draw_sweep(shown, "ratio").axes
    assert list(amplitude.containers[0][0].get_ydata()) == [-1.5, -2.25]
    assert amplitude.get_ylim()[0] < -2.5 and accuracy.get_ylim()[0] >= 0
    assert isinstance(accuracy.yaxis.get_major_formatter(), PercentFormatter)
    assert not isinstance(amplitude.yaxis.get_major_formatter(), PercentFormatter)
    assert len(draw_sweep(shown + shown[:1], "ratio").axes) == 3


def test_other_seeds_of_the_evaluation_are_another_evaluation_of_the_same_sweep(
    tmp_path, calls, monkeypatch
):
    sweep.sweep(tiny.config(), evaluation(), "mask.tau=0.8", tmp_path / "sweep")
    calls.clear()
    monkeypatch.setattr(pretrain, "train", lambda config, folder: None)
    sweep.sweep(tiny.config(), evaluation(seeds=(0, 1)), "mask.tau=0.8", tmp_path / "sweep")
    assert calls == ["evaluate tau-0.8"]


def test_a_folder_that_is_no_sweep_is_refused(tmp_path, calls):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no sweep\.json"):
        sweep.sweep(tiny.config(), evaluation(), GRID, tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        sweep.sweep(tiny.config(), evaluation(), GRID, tmp_path)
    assert not calls


def _points(*rows):
    """Points of (values, score, std)."""
    return [
        {
            "values": values,
            "evaluation": {
                "config": {"task": "linear"},
                "checkpoint": {"config": values},
                "score": {"name": "x", "value": value, "std": std},
            },
        }
        for values, value, std in rows
    ]


def test_lines_are_the_other_fields_and_points_of_several_seeds_are_averaged():
    def values(ratio, strategy, seed):
        return {"seed": seed, "mask.ratio": ratio, "mask.strategy": strategy}

    lines = summary.lines(
        _points(
            (values(0.5, "dpp", 0), 0.2, 0.9),
            (values(0.5, "dpp", 1), 0.4, 0.9),
            (values(0.5, "random", 0), 0.3, 0.05),
            (values(0.75, "dpp", 0), 0.6, None),
        )
    )
    assert lines == {
        "dpp masks": [
            (0.5, pytest.approx(0.3), pytest.approx(0.02**0.5)),
            (0.75, 0.6, None),
        ],
        "random masks": [(0.5, 0.3, 0.05)],
    }
    # what the errors are is said, and one over the images stands where there is no other
    points = _points((values(0.5, "dpp", 0), 0.2, None), (values(0.5, "dpp", 1), 0.4, None))
    over_seeds = "bars: standard deviation over the seeds of pre-training"
    assert summary.note(points) == f"2 runs a point; {over_seeds}"
    points += _points((values(0.75, "dpp", 0), 0.5, None))
    for point in points:
        point["evaluation"]["score"]["standard_error"] = 0.05
        point["evaluation"]["data"] = {"val_images": 1000}
    assert summary.lines(points)["dpp masks"][1] == (0.75, 0.5, 0.05)
    note = f"1 to 2 runs a point; 1,000 validation images; {over_seeds}, or standard error over "
    assert summary.note(points) == f"{note}the images"


def test_a_line_is_named_by_what_its_masks_depend_on():
    def values(strategy, tau, seed=0):
        return {"mask.ratio": 0.5, "mask.strategy": strategy, "mask.tau": tau, "seed": seed}

    points = _points(
        (values("random", 0.8), 0.2, None),
        (values("random", 0.9), 0.2, None),  # the same training again
        (values("dpp", 0.8), 0.3, None),
        (values("dpp", 0.9), 0.4, None),
    )
    assert summary.lines(points) == {
        "random masks": [(0.5, 0.2, None)],
        "dpp masks, τ = 0.8": [(0.5, 0.3, None)],
        "dpp masks, τ = 0.9": [(0.5, 0.4, None)],
    }


def test_baselines_are_those_of_the_same_measure():
    config = tiny.config(evaluate__knn_k=20)
    tested = eval_config.get_config("task=knn,dataset=shapes")
    untrained = dict(zip((0.5, 0.75), (0.2, 0.3), strict=True))
    points = _points(*(({"mask.ratio": ratio}, 0.4, None) for ratio in untrained))
    for point, share in zip(points, untrained.values(), strict=True):
        point["pretraining"] = {"knn_untrained": share}
        point["evaluation"] |= {
            "task": "knn",
            "config": workdir.to_json(subjects.completed(tested, config)),
            "checkpoint": {"config": workdir.to_json(config)},
            "data": {"train_images": 96, "val_images": 24},
            "baselines": {"chance": 0.1},
        }
    found = summary.baselines(points)
    assert found == {"chance": [(0.5, 0.1), (0.75, 0.1)], "untrained": list(untrained.items())}
    for change in ({"k": (5,)}, {"temperature": 0.1}, {"data__source": "shapes"}):
        other = tiny.evaluation("task=knn", **change)
        points[0]["evaluation"]["config"] = workdir.to_json(subjects.completed(other, config))
        assert summary.baselines(points)["untrained"] == [(0.75, 0.3)], change
    points[1]["evaluation"]["data"]["train_images"] = 97  # more than the probe looked at
    assert "untrained" not in summary.baselines(points)


def test_a_score_that_is_no_share_is_shown_as_a_number_and_only_errors_are_explained():
    points = _points(({"mask.ratio": 0.5}, 0.123, 0.004), ({"mask.ratio": 0.75}, 0.3, None))
    for point in points:
        point["pretraining"] = {"knn": 0.5}
    table = summary.table(points)
    assert "12.30 %" in table and "0.40 %" in table and "±" not in table
    points[0]["evaluation"]["score"]["standard_error"] = 0.02
    points[0]["pretraining"]["knn_images"] = 100
    table = summary.table(points)
    assert "12.30 % ± 2.00" in table and "50.00 % ± 5.00" in table
    assert table.endswith("\n± is the standard error over the images that were tested")
    for point in points:
        point["evaluation"]["score"] |= {"standard_error": None, "in_percent": False}
    row = summary.table(points).splitlines()[2]
    assert row.split() == ["0.5", "0.1230", "0.0040", "50.00", "%", "±", "5.00"]
    words = "normalised mutual information, k-means (mean)"
    panel = Panel({"": [(0.5, 0.123, None)]}, words, in_percent=False)
    axes = draw_sweep([panel], "").axes[0]
    assert max(map(len, axes.get_ylabel().splitlines())) <= 40, "or it is cut off"
    assert not isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def test_the_axis_is_of_numbers_or_of_words():
    lines = {"a": [(0.75, 0.2, 0.1), (0.5, 0.1, None)], "b": [(0.6, 0.3, None)]}
    (axes,) = draw_sweep([Panel(lines, "accuracy")], "ratio").axes
    assert list(axes.get_xticks()) == [0.5, 0.6, 0.75]
    assert list(axes.containers[0][0].get_xdata()) == [0.5, 0.75]
    assert axes.containers[0][0].get_linestyle() == "-"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ratio", "accuracy")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    (axes,) = draw_sweep([Panel({"": [("random", 0.2, None), ("dpp", 0.1, None)]}, "")], "").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["random", "dpp"]
    assert axes.containers[0][0].get_linestyle() == "None", "nothing lies between kinds"
    assert axes.get_legend() is None
    baselines = {
        "chance": [(0.5, 0.1), (0.6, 0.1), (0.75, 0.1)],
        "pixels": [(0.75, 0.3), (0.5, 0.4)],
    }
    figure = draw_sweep([Panel(lines, "accuracy", baselines)], "ratio", "1 run a point")
    (axes,) = figure.axes
    chance, pixels = (next(line for line in axes.lines if line.get_label() == name)
                      for name in baselines)  # fmt: skip
    assert list(chance.get_ydata()) == [0.1, 0.1] and list(pixels.get_ydata()) == [0.4, 0.3]
    assert axes.get_ylim()[0] < 0.1 and axes.get_ylim()[1] > 0.4
    assert figure.get_supxlabel() == "1 run a point"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_sweep([Panel({}, "")], "")


def _command(folder, *extra):
    _, _, config, _, *overrides = tiny.command(folder, model__depth=1, evaluate__knn_images=0)
    return [
        sys.executable,
        "-m",
        "dppmask_jax.sweep",
        config,
        *overrides,
        "--eval=configs/eval.py:task=linear",
        "--eval.solver=ridge",
        f"--workdir={folder}",
        *extra,
    ]


def test_further_evaluations_have_no_gap():
    assert sweep._without_gap([None] * 5) == []
    assert sweep._without_gap(["a", "b", None, None, None]) == ["a", "b"]
    with pytest.raises(InputError, match=r"^--eval2 is missing, and a later one"):
        sweep._without_gap([None, "b", None, None, None])
    with pytest.raises(InputError, match=r"^--eval3 is missing"):
        sweep._without_gap(["a", None, None, "d", None])


@pytest.mark.slow
def test_bad_input_of_the_command_is_one_line_and_status_2(tmp_path):
    done = tiny.run(_command(tmp_path / "new", "--eval.solvr=ridge"))
    assert done.returncode == 2
    assert done.stderr == "error: unknown eval field 'solvr'; did you mean solver?\n"
    assert not (tmp_path / "new").exists()
    further = ("--eval2.imagez=3", "--eval2=configs/eval.py:task=attention")
    done = tiny.run(_command(tmp_path / "new", *further))
    assert done.returncode == 2
    assert done.stderr == "error: unknown eval2 field 'imagez'; did you mean images?\n"


@pytest.mark.slow
def test_a_real_sweep_trains_evaluates_and_draws(tmp_path):
    folder = tmp_path / "sweep"
    done = tiny.run(_command(folder, "--grid=mask.ratio=0.5,0.75"))
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "sweep.json").read_text())
    for point in record["points"]:
        run = folder / point["name"]
        assert json.loads((run / "eval_linear_ridge.json").read_text()) == point["evaluation"]
        score = point["evaluation"]["score"]
        assert score["value"] == point["evaluation"]["metrics"]["top1"]
        saved = json.loads((run / "config.json").read_text())
        assert saved["mask"]["ratio"] == point["values"]["mask.ratio"]
        logged = metrics.read_metrics(run / "metrics.jsonl")
        assert point["pretraining"]["val_loss"] == logged[-1]["val_loss"]
    assert (folder / "figures" / "sweep.png").stat().st_size > 0
    assert "top-1 accuracy, ridge probe" in done.stdout

    def times():
        return {path: path.stat().st_mtime_ns for path in folder.glob("ratio-*/**/*")}

    before = times()
    again = tiny.run(_command(folder, "--grid=mask.ratio=0.5,0.75"))
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert times() == before
