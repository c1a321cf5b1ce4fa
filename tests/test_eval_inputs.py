"""What an evaluation is given: several runs, older ones, data and classes that fit or do not, and
several processes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from etils import epath
from every_task import EVERY_TASK
from matplotlib.figure import Figure
from PIL import Image
from test_eval_tasks import FINETUNE, files, found, painted, painted_squares

from dppmask_jax import evaluate
from dppmask_jax.errors import InputError
from dppmask_jax.evals import base
from dppmask_jax.evals.seeds import folder_of
from dppmask_jax.evaluating import records, subjects
from dppmask_jax.runs import checkpoint, integrity
from dppmask_jax.runs.run import load_run, open_data

pytestmark = pytest.mark.usefixtures("fewer_blocks")


@pytest.fixture(scope="module")
def mae_run(fewer_blocks, tmp_path_factory):
    return tiny.save_run(tmp_path_factory.mktemp("mae") / "run")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return painted(tmp_path_factory.mktemp("colours"), shuffled=False)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return painted_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def finetuned(mae_run, squares, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    return workdir, found(mae_run, workdir, "task=finetune", data__source=squares, **FINETUNE)


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def change_meta(folder, change):
    """Changes what a checkpoint says of its run, and its manifest with it."""
    (path,) = (folder / checkpoint.FOLDER).glob("*/meta/metadata")
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))
    integrity.write_manifest(epath.Path(path.parent.parent), ("state", "meta"))


def test_what_does_not_fit_is_refused_before_anything_is_written(mae_run, colours, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    (tmp_path / "none.csv").write_text(
        "path,split,round,red\n1.png,train,1,0\n1.png,train,0,1\n1.png,val,0,0\n"
    )
    for name in ("00_dog", "01_bird", "02_fish"):
        folder = _made(tmp_path / "three" / "original" / "val" / name)
        Image.new("RGB", (16, 16)).save(folder / "1.png")
    root = {"root": str(tmp_path / "three"), "mapping": "same"}
    before = files(tmp_path)
    for argument, changes, words in (
        ("multilabel", {"data__source": f"csv:{tmp_path}/none.csv"}, "has any of the 2 labels"),
        ("backgrounds", {"data__source": colours} | root, "4 classes 4 of the test, .* has 3"),
        ("cluster", {"data__source": colours, "num_clusters": 25}, "25 is more than the 24 val"),
        ("linear", {"seeds": (1, 1)}, r"config\.seeds=\(1, 1\) is not allowed"),
        ("knn", {"k": (5, 5)}, r"config\.k=\(5, 5\) is not allowed"),
        ("reconstruct", {"images": "/none.png"}, "no file or folder /none.png"),
    ):
        with pytest.raises(InputError, match=words) as error:
            found(mae_run, tmp_path / "new", f"task={argument}", **changes)
        assert "\n" not in str(error.value)
        assert files(tmp_path) == before


def test_a_fault_of_the_last_run_shows_before_the_first_is_evaluated(
    mae_run, colours, tmp_path, monkeypatch, capsys
):
    painted(tmp_path / "colours", shuffled=False)
    flat = _made(tmp_path / "flat")
    for number, path in enumerate(sorted((tmp_path / "colours").rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    good = tiny.save_run(tmp_path / "good", data__source=colours)
    unfit = tiny.save_run(tmp_path / "unfit", data__source=f"folder:{flat}")
    foreign = tmp_path / "foreign"
    checkpoints = checkpoint.Checkpoints(foreign / checkpoint.FOLDER)
    checkpoints.save(1, {"params": {"x": np.zeros(2)}}, {"config": {"task": "knn"}})
    checkpoints.close()
    before = files(tmp_path)
    config = tiny.evaluation("task=knn", k=(1,))
    for last, words in (
        (tmp_path / "none", "no checkpoint in"),
        (foreign, "is neither a pre-training run nor a fine-tuning"),
        (unfit, "needs labels"),
    ):
        with pytest.raises(InputError, match=words):
            evaluate.evaluate_all(config, [good, last])
        assert files(tmp_path) == before
    past = [{"step": 3, "changed": {"mask.tau": [0.5, 0.9]}}]
    other = tiny.save_run(tmp_path / "other", data__source=colours, seed=4, history=past)
    capsys.readouterr()
    paths = evaluate.evaluate_all(config, [other, good], command="as typed")
    assert paths == [other / "eval_knn.json", good / "eval_knn.json"]
    alone = [json.loads(path.read_text()) for path in paths]
    assert alone[0]["command"] == "as typed"
    compared = json.loads((other / "compared_knn.json").read_text())
    assert not (good / "compared_knn.json").exists()
    assert [run["workdir"] for run in compared["runs"]] == [str(other), str(good)]
    assert [run["score"] for run in compared["runs"]] == [record["score"] for record in alone]
    heading, *rows = compared["table"]
    assert heading == ["run", "step", *(f"{name}, k = 1" for name in ("cls", "patches", "pixels"))]
    for row, record, name in zip(rows, alone, ("other", "good"), strict=True):
        cells = [table_row[1] for table_row in record["table"][1:4]]
        assert row == [name, "12", *cells] and "±" in cells[0]
    assert compared["notes"][-1] == "other: changed at step 3: mask.tau: 0.5 -> 0.9"
    printed = capsys.readouterr().out
    assert compared["notes"][-1] in printed
    assert printed.count("\nother  ") == printed.count("\ngood  ") == 1
    assert printed.endswith(f"table   {other / 'compared_knn.json'}\n")
    one, two = (tiny.evaluation("task=knn", data__source=f"folder:{name}") for name in "ab")
    found = [{"config": config.to_dict()} for config in (one, two, one)]
    assert records._unlike(found) == ["not on the same images: data.source folder:a | folder:b"]
    assert records._unlike(found[::2]) == []


def recorded(config, row, protocol="", note=""):
    """A record of `records.evaluated` that has what a comparison reads."""
    return {
        "task": "", "row": row, "note": note, "protocol": protocol, "score": None, "metrics": {},
        "checkpoint": {"step": 3, "history": [], "config": {}}, "config": config.to_dict(),
    }  # fmt: skip


def test_runs_of_other_methods_share_a_table(tmp_path, capsys):
    config = tiny.evaluation("task=cluster")
    rows = ({"NMI": "0.1"}, {"NMI": "0.2", "of the head": "3"})
    found = [recorded(config, row, note=f"of all\n{row['NMI']}") for row in rows]
    chosen = [
        subjects.Subject(config, folder, folder, folder.name)
        for folder in (tmp_path, tmp_path.parent)
    ]
    records.compare(chosen, found, tmp_path, "")
    record = json.loads((tmp_path / "compared_cluster.json").read_text())
    heading, *rows = record["table"]
    own = [f"{tmp_path.name}: 0.1", f"{tmp_path.parent.name}: 0.2"]
    assert record["notes"] == ["of all", *own]
    assert heading[2:] == ["NMI", "of the head"]
    assert [row[2:] for row in rows] == [["0.1", ""], ["0.2", "3"]]
    assert "of the head" in capsys.readouterr().out


def test_runs_without_rows_share_figures_and_a_note_stands_once_of_each_run(tmp_path, monkeypatch):
    drawn = []

    def compare(found):
        drawn.append(list(found))
        return {"maps.png": Figure(figsize=(1, 1))}

    task = evaluate.TASKS["knn"]._replace(compare=compare)
    monkeypatch.setitem(evaluate.TASKS, "knn", task)
    config = tiny.evaluation("task=knn", projection="soap.safetensors")
    chosen = [
        subjects.Subject(config, tmp_path, tmp_path, "run", which)
        for which in ("without", "with projection")
    ]

    def compared(row):
        found = [recorded(config, row, f"k-NN; {records._NO_CLASS_TOKEN}")] * 2
        table, figures = records.compare(chosen, found, tmp_path, "")
        assert drawn.pop() == ["run, without", "run, with projection"]
        assert figures == {"maps.png": tmp_path / "figures" / "compare_projected_maps.png"}
        assert figures["maps.png"].is_file() and bool(table) == bool(row)
        return tmp_path / "compared_knn_projected.json"

    assert not compared(None).exists()
    notes = json.loads(compared({"cls": "1"}).read_text())["notes"]
    assert notes == [f"run: {records._NO_CLASS_TOKEN}"]


@pytest.mark.parametrize("whole", [True, False])
def test_labels_are_scored_on_what_is_seen(mae_run, colours, tmp_path, whole):
    """A white margin that the evaluation crop cuts off."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :2] = 255
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (tmp_path / "list.csv").write_text("path,split,margin\n1.png,train,1\n1.png,val,1\n")
    source = f"csv:{tmp_path}/list.csv"
    config = tiny.evaluation("task=multilabel", data__source=source, data__whole=whole)
    run = load_run(mae_run)
    config = subjects.completed(config, run.config)
    train, val = open_data(config)
    evaluation = base.Evaluation(config, run, tmp_path, train, val, print)
    (batch,) = base.batches(evaluation, val, "validation")
    seen = batch["image"][0]
    assert (seen[:, 0] > 100).all() if whole else not seen[:, 0].any()


def renamed(source, names, path):
    """A copy of the CSV file of `squares` with other class names."""
    text = Path(source.removeprefix("csv:")).read_text()
    for old, new in names.items():
        text = text.replace(f",{old},", f",{new},")
    Path(path).write_text(text)
    return f"csv:{path}"


@pytest.mark.slow
def test_a_trained_classifier_goes_with_its_own_classes_only(finetuned, mae_run, squares, tmp_path):
    workdir, _ = finetuned
    folder = Path(squares.removeprefix("csv:")).parent
    other = renamed(squares, {"blue": "azure"}, folder / "azure.csv")
    settings = {"classifier": "finetune"}
    for source, words in (
        (tiny.COMMON["data.source"], r"\(4 classes there, 9 here\); give the source"),
        (other, r"\(class 'blue' there, where 'azure' is here\); give the source"),
    ):
        with pytest.raises(InputError, match=words):
            found(mae_run, workdir, "task=backgrounds", data__source=source, **settings)


@pytest.mark.slow
def test_a_training_does_not_go_on_with_other_classes(finetuned, mae_run, squares, tmp_path):
    workdir, _ = finetuned
    shutil.copytree(workdir, tmp_path / "copy")
    folder = folder_of(tmp_path / "copy", "finetune", 0)
    change_meta(folder, lambda meta: meta["config"]["class_names"].__setitem__(1, "lime"))
    before = files(tmp_path / "copy")
    with pytest.raises(InputError, match=r"other classes \(class 'lime' there, where 'green'"):
        found(mae_run, tmp_path / "copy", "task=finetune", data__source=squares, **FINETUNE)
    assert files(tmp_path / "copy") == before


@pytest.mark.slow
def test_every_task_on_two_processes_is_that_on_one(mae_run, squares, tmp_path):
    ibot_run = tiny.save_run(tmp_path / "ibot", method="ibot")
    port = tiny.free_port()

    def start(out, process, devices):
        arguments = map(str, (mae_run, ibot_run, squares, out, port, process))
        command = [sys.executable, "tests/every_task.py", *arguments]
        return tiny.start(command, devices, PYTHONPATH=str(tiny.ROOT))

    one, two = tmp_path / "one", tmp_path / "two"
    processes = [start(one, "", 2), start(two, "0", 1), start(two, "1", 1)]
    outs = [process.communicate(timeout=1800) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, outs
    names = {path.name for path in one.glob("*.json")}
    assert len(names) == len(EVERY_TASK) and names == {path.name for path in two.glob("*.json")}
    for name in names - {"eval_reconstruct.json"}:  # which holds the path of its figure
        alone, together = (json.loads((folder / name).read_text()) for folder in (one, two))
        assert together["data"] == alone["data"]
        assert together["metrics"] == alone["metrics"], name
    assert "result" in outs[1][0] and "result" not in outs[2][0], "one process speaks"


def test_examples_are_looked_for_where_the_first_cannot_be_read(mae_run, tmp_path):
    run, options = load_run(mae_run), {"val_fraction": 0.0, "source": f"folder:{tmp_path}"}
    run.config.data.update(options)
    for number in range(40):
        (tmp_path / f"{number:02}.png").write_bytes(b"broken")
    for number in (7, 8, 9):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    assert run.example_images(2)[:, 0, 0, 0].tolist() == [7, 8]
    (tmp_path / "more.png").write_bytes(b"broken")
    for number in (7, 8, 9):
        (tmp_path / f"{number:02}.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of the 41 images"):
        run.example_images(2)
    run.config.data.source = ""
    with pytest.raises(InputError, match="it does not know what it was trained on"):
        run.example_images(2)


def test_an_evaluation_passes_over_what_cannot_be_read_and_says_it_once(mae_run, tmp_path, capsys):
    painted(tmp_path / "colours", shuffled=False)
    bad = sorted((tmp_path / "colours").rglob("*.png"))[0]
    bad.write_bytes(b"")
    (bad.parent / "b.txt").write_text("x")
    options = {"data__source": f"folder:{tmp_path}/colours", "batch_size": 1, "k": (1,)}
    out = found(mae_run, tmp_path / "out", "task=knn", **options)
    assert out["metrics"]["pixels"]["1"] == 1.0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("unreadable")] == [
        f"unreadable image: {bad}: the file is empty"
    ]
    assert any(line.startswith("data: ignored below") and ": 1 .txt;" in line for line in lines)
