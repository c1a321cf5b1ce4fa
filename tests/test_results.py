"""The page of results: the paper's figures, and records without the paths of a machine."""

import copy
import json

import pytest
import tiny

from configs import eval as eval_config
from dppmask_jax.errors import InputError
from dppmask_jax.evaluating import subjects
from dppmask_jax.results import __main__ as results
from dppmask_jax.results import paper, portable, records
from dppmask_jax.results import rows as of_records
from dppmask_jax.results.page import page as page_of
from dppmask_jax.results.records import load
from dppmask_jax.runs import workdir


def record(task="linear", metrics=None, run="/home/me/runs/mine", source=None, **changes):
    """An eval_TASK.json of a run on folder:/home/me/my data/imagenette128."""
    source = source or "folder:/home/me/my data/imagenette128"
    trained = tiny.config(data__source=source, **changes)
    config = subjects.completed(eval_config.get_config(f"task={task},dataset=small"), trained)
    top1 = {"mean": 0.4321, "std": 0.0123, "values": []}
    return {
        "task": task,
        "protocol": f"tested on {source}, kept in {run}/features.npy",
        "score": {"name": "top-1 accuracy", "value": 0.4321, "std": 0.0123},
        "metrics": metrics or {"last": {"top1": top1}, "best": {"top1": top1 | {"mean": 0.44}}},
        "table": [["", run]],
        "checkpoint": {"workdir": run, "step": 1200, "config": workdir.to_json(trained)},
        "data": {"train_images": 10, "val_images": 5, "classes": 2},
        "config": workdir.to_json(config),
        "command": f"/opt/there/eval.py --config=configs/eval.py:task={task} --checkpoint={run} "
        f"'--config.data.source={source}'",
        "devices": "1 x cpu (cpu), 1 process",
    }


def sweep_record():
    points = []
    for ratio, tau, value in ((0.5, 0.9, 0.2), (0.5, 1.0, 0.3), (0.75, 0.9, 0.4)):
        run = f"/home/me/sweep/ratio-{ratio}_tau-{tau}"
        found = record(run=run, mask__ratio=ratio, mask__tau=tau)
        error = (value * (1 - value) / 5) ** 0.5
        found["score"] = {"name": "top-1 accuracy", "value": value, "std": None}
        found["score"]["standard_error"] = error
        pretraining = {"loss": 0.5 + ratio, "val_loss": 0.6, "knn": 0.25, "knn_images": 12}
        points.append(
            {
                "name": f"ratio-{ratio}_tau-{tau}",
                "values": {"mask.ratio": ratio, "mask.tau": tau},
                "evaluation": found,
                "pretraining": pretraining,
            }
        )
    return {
        "name": "sweep",
        "grid": {"mask.ratio": [0.5, 0.75], "mask.tau": [0.9, 1.0]},
        "config": workdir.to_json(tiny.config()),
        "eval": {},
        "points": points,
        "command": "python -m dppmask_jax.sweep --workdir=/home/me/sweep "
        "--grid='mask.ratio=0.5,0.75 mask.tau=0.9,1.0'",
    }


@pytest.fixture
def written(tmp_path):
    def write(found, name="eval.json"):
        path = tmp_path / name
        path.write_text(json.dumps(found))
        return path

    return write


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(page, title, words="| *measured here*"):
    lines = [line for line in section(page, title).splitlines() if line.startswith(words)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_figures_of_the_paper():
    def figures(table, method, masks):
        (row,) = (
            row
            for row in paper.ROWS
            if row.table == table and row.method.startswith(method) and masks in row.masks
        )
        return row.figures

    assert [sum(row.table == table for row in paper.ROWS) for table in range(1, 7)] == [
        4,
        5,
        4,
        5,
        5,
        2,
    ]
    assert figures(1, "MAE", "0.6") == {"loss": "0.417", "finetune": "89.67"}
    assert figures(1, "MAE", "random")["linear"] == "67.08"
    assert figures(2, "iBOT", "AttMask")["nmi"] == "0.512"
    assert figures(2, "iBOT", "0.9") == {
        "nmi": "0.525",
        "acc": "68.68",
        "linear": "73.60",
        "finetune": "87.84",
    }
    assert figures(3, "SemMAE", "") == {"finetune": "83.3"}
    assert figures(4, "MAE", "DPP")["mixed_next"] == "39.43"
    assert figures(5, "MAE", "DPP") == {"mAP": "69.56", "f1_micro": "69.59", "f1_macro": "61.86"}
    assert figures(6, "MAE", "random")["f1_macro"] == "44.81"


def test_a_portable_record_names_no_folder_and_is_portable_already():
    found = record()
    before = copy.deepcopy(found)
    stripped = portable.portable(found)
    assert found == before
    text = json.dumps(stripped)
    assert "/home" not in text and "/opt" not in text and "my data" not in text
    assert stripped["checkpoint"]["workdir"] == "mine"
    assert stripped["config"]["data"]["source"] == "folder:imagenette128"
    assert stripped["protocol"] == "tested on folder:imagenette128, kept in mine/features.npy"
    assert stripped["command"] == (
        "python eval.py --config=configs/eval.py:task=linear --checkpoint=RUN "
        "--config.data.source=folder:IMAGES"
    )
    assert portable.portable(stripped) == stripped


@pytest.mark.parametrize(
    "typed,shown",
    [
        (
            "eval.py --workdir /a/b --checkpoint=c,d/e",
            "python eval.py --workdir=RUN --checkpoint=RUN",
        ),
        ("eval.py --config.root=/a/in9", "python eval.py --config.root=IMAGES"),
        (
            "python -m dppmask_jax.sweep --config=/a/b/configs/mae.py:dataset=small "
            "--grid='mask.ratio=0.5 mask.tau=1' --config.data.source=tfds:imagenette/160px-v2",
            "python -m dppmask_jax.sweep --config=configs/mae.py:dataset=small "
            "--grid='mask.ratio=0.5 mask.tau=1' --config.data.source=tfds:imagenette/160px-v2",
        ),
        (
            "eval.py --config.data.source=shapes:size=16 --config.data.classes=/a/b/some.txt",
            "python eval.py --config.data.source=shapes:size=16 --config.data.classes=some.txt",
        ),
    ],
)
def test_commands_are_generic(typed, shown):
    assert portable.portable({"command": typed})["command"] == shown
    assert portable.portable({"command": shown})["command"] == shown


def test_prose_keeps_its_slashes():
    words = "ViT-B/16, 300 images/s, and/or 1 / 2; see ~/a/b/c.txt, (/d/e) and csv:/f/g.csv"
    kept = "ViT-B/16, 300 images/s, and/or 1 / 2; see c.txt, (e) and csv:g.csv"
    assert portable.portable({"protocol": words})["protocol"] == kept
    assert portable.last_part("tfds:imagenette/160px-v2") == "tfds:imagenette/160px-v2"
    assert portable.last_part("csv:/a/b/pets/labels.csv") == "csv:pets/labels.csv"
    assert portable.last_part("folder:/a:b/c/") == "folder:c"


def test_a_measured_row_stands_next_to_the_papers(written):
    page = page_of([load(written(record(mask__tau=0.8)))])
    (row,) = rows(page, "Linear probing")
    assert row == [
        "*measured here* (1)",
        "imagenette128",
        "MAE Pi/4, 16×16, 1 epoch",
        "DPP (τ = 0.8), 75 % masked",
        "mine, step 1,200",
        "43.21 ± 22.15, σ 1.23",
        "–",
        "44.00 ± 22.20, σ 1.23",
    ]
    assert ["*paper*, table 1", "ImageNet-100", "MAE ViT-B/16", "DPP (τ = 0.9)", "–", "63.22"] in [
        row[:6] for row in rows(page, "Linear probing", "| *paper*")
    ]
    assert "1. tested on folder:imagenette128" in section(page, "Linear probing")
    assert "evaluation seed 0, pre-training seed 0" in page
    assert not rows(page, "Fine-tuning")
    assert "never their level" in page and "/home" not in page


METRICS = {
    "linear_ridge": (
        {"top1": 0.5, "top5": 0.75, "strength": 1.0},
        [["50.00 ± 22.36", "75.00 ± 19.36", "–"]],
    ),
    "knn": (
        {name: {"10": 0.1, "20": value} for name, value in (("cls", 0.2), ("patches", 0.3))},
        [
            ["10", "10.00 ± 13.42", "10.00 ± 13.42", "–"],
            ["20", "30.00 ± 20.49", "20.00 ± 17.89", "–"],
        ],
    ),
    "cluster": (
        {
            "clusters": {
                "k-means (cls)": {
                    "nmi": {"mean": 0.25, "std": 0.01},
                    "acc": {"mean": 0.4, "std": None},
                }
            },
            "agreement": 0.9,
        },
        [
            ["agreement of two views", "–", "90.00 ± 13.42"],
            ["k-means (cls)", "0.250, σ 0.010", "40.00 ± 21.91"],
        ],
    ),
    "backgrounds": (
        {
            "variants": {
                "original": {"accuracy": 0.5, "images": 100},
                "mixed_same": {"accuracy": 0.5, "images": 25},
                "mixed_rand": {"accuracy": 0.25, "images": 12},
            },
            "bg_gap": 0.25,
        },
        [["50.00 ± 5.00", "–", "50.00 ± 10.00", "25.00 ± 12.50", "–", "25.00 ± 16.01"]],
    ),
    "multilabel": (
        {
            "last": {
                "mAP": {"mean": 0.5, "std": None},
                "f1_macro": {"mean": 0.2, "std": 0.1},
                "accuracy": {"mean": 0.9, "std": 0.01},
            },
            "accuracy_standard_error": 0.002,
        },
        [["50.00", "–", "20.00, σ 10.00", "–", "90.00 ± 0.20, σ 1.00"]],
    ),
}
TITLES = {
    "linear_ridge": "Linear probing",
    "knn": "k nearest neighbours",
    "cluster": "Clusters",
    "backgrounds": "Background challenge",
    "multilabel": "Several labels an image",
}


def test_a_row_says_what_was_predicted_and_knows_runs_older_than_a_field():
    config = workdir.to_json(tiny.config(loss__target="hog", mask__strategy="cells"))
    del config["mask"]["cell"]  # which came later
    record = {"checkpoint": {"config": config}, "config": {}}
    assert of_records.model(record).startswith("MAE (hog) ")
    assert of_records.masks(record).startswith("cells (2 x 2 patches)")


@pytest.mark.parametrize("task", METRICS)
def test_the_columns_of_each_task(task, written):
    metrics, shown = METRICS[task]
    found = record(task.removesuffix("_ridge"), metrics) | {"task": task}
    page = page_of([load(written(found))])
    assert [row[5:] for row in rows(page, TITLES[task])] == shown


def test_the_page_does_not_depend_on_the_order_and_shows_a_result_once(written):
    first = load(written(record(mask__tau=0.9)))
    second = load(written(record(mask__strategy="random", run="/b/other")))
    third = load(written(record(mask__tau=0.85, run="runs/third")))
    page = page_of([first, second, third])
    assert page == page_of([third, first, second, first])
    masks = [row[3] for row in rows(page, "Linear probing")]
    assert masks == [
        "DPP (τ = 0.85), 75 % masked",
        "DPP (τ = 0.9), 75 % masked",
        "random, 75 % masked",
    ]


def test_a_sweep_shows_its_points_and_its_grid(written):
    page = page_of([load(written(sweep_record()))])
    assert len(rows(page, "Linear probing")) == 3
    assert [row[3] for row in rows(page, "Loss of pre-training")] == [
        "DPP (τ = 0.9), 50 % masked",
        "DPP (τ = 0.9), 75 % masked",
        "DPP (τ = 1), 50 % masked",
    ]
    assert rows(page, "Loss of pre-training")[1][5:] == ["1.250", "0.600", "25.00 ± 12.50"]
    sweeps = section(page, "Sweeps")
    assert "| `mask.ratio` | `mask.tau` 0.9 | `mask.tau` 1 |" in sweeps
    assert "| 0.5 | 20.00 ± 17.89 | 30.00 ± 20.49 |" in sweeps
    assert "| 0.75 | 40.00 ± 21.91 | – |" in sweeps
    assert "--workdir=RUN" in sweeps and "/home" not in page
    found = sweep_record()
    for point in found["points"]:
        point["evaluation"]["score"] |= {"std": 0.01, "in_percent": False}
    sweeps = section(page_of([load(written(found))]), "Sweeps")
    assert "| 0.5 | 0.200, σ 0.010 | 0.300, σ 0.010 |" in sweeps
    for point in found["points"]:  # several evaluations: a table for each
        ratio = point["values"]["mask.ratio"]
        score = {"name": "amplitude", "value": -ratio, "std": None, "in_percent": False}
        of_second = {**point["evaluation"], "task": "frequencies", "score": score}
        of_second["config"] = {**of_second["config"], "task": "frequencies"}
        point["beside"] = {"frequencies": of_second}
    sweeps = section(page_of([load(written(found))]), "Sweeps")
    assert "| 0.5 | 0.200, σ 0.010 | 0.300, σ 0.010 |" in sweeps
    assert "### sweep: amplitude" in sweeps and "| 0.75 | -0.750 | – |" in sweeps


def test_a_page_of_ones_own_runs_speaks_of_them_alone(tmp_path, written):
    files = [written(record(), "a.json"), written(record(run="/b/other"), "b.json")]
    out = tmp_path / "page.md"
    results.main([*map(str, files), "--out", str(out), "--no_paper"])
    text = out.read_text()
    assert "paper" not in text.lower().replace("not mae's protocol", "")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["Linear probing", "Commands"], "nothing is said of what was not measured"
    assert len(rows(text, "Linear probing")) == 2
    # A command is written once, however many rows and footnotes it made.
    (command_line,) = section(text, "Commands").split("\n1. ")[1:]
    assert text.count("python eval.py") == 1 and "1 x cpu" in command_line
    assert section(text, "Linear probing").count("; command 1.") == 2


def test_kept_copies_make_the_same_page(tmp_path, written):
    files = [written(record(), "a.json"), written(sweep_record(), "b.json")]
    out, kept = tmp_path / "page.md", tmp_path / "kept"
    results.main([*map(str, files), "--out", str(out), "--keep", str(kept)])
    copies = sorted(kept.iterdir())
    assert [path.name for path in copies] == ["linear_mine.json", "sweep_sweep.json"]
    assert not any("/home" in path.read_text() for path in copies)
    again = tmp_path / "again.md"
    results.main([*map(str, copies), "--out", str(again)])
    assert again.read_text() == out.read_text()


def test_the_page_in_the_docs_is_that_of_the_records_beside_it():
    docs = tiny.ROOT / "docs"
    records = [load(path) for path in (docs / "results").glob("*.json")]
    assert page_of(records) == (docs / "results.md").read_text()


def test_two_results_of_one_name_are_not_kept(tmp_path, written):
    found = [load(written(record(seed=seed))) for seed in (0, 1)]
    with pytest.raises(InputError, match=r"two results would be linear_mine\.json"):
        records.keep(found, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"task": "knn"}', '{"points": [{}]}'])
def test_what_is_no_result_is_refused(tmp_path, text):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"some\.json") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "missing.json")


def test_a_result_of_an_unknown_task_is_refused(written):
    found = record()
    found["config"]["task"] = "spelling"
    with pytest.raises(InputError, match=r"eval\.json is of task spelling; known are finetune, "):
        load(written(found))
